import itertools
import json
import os
import tarfile
from pathlib import Path

import pytest
from source_reader import captions_in, read_all
from writers import jpeg, pair, write_folder, write_pairs, write_parquet, write_tar

from tips_ray import storage
from tips_ray.config import ColumnsConfig, SourceConfig
from tips_ray.data import sources
from tips_ray.data.sources import webdataset
from tips_ray.storage import StorageError

FLICKR = Path(__file__).parents[3] / "shared" / "data" / "flickr-sample"


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_gives_its_rows_whatever_its_dialect(tmp_path, format):
    long_key = "folder/" + "k" * 90 if format == tarfile.USTAR_FORMAT else "folder/" + "k" * 200
    members = pair("0", 0, "web 0", synthetic_caption="made 0") + pair(
        long_key, 1, "web 1", synthetic_caption=["a", "b"]
    )
    write_tar(tmp_path / "x.tar", [*members, *pair("größe", 2, "web 2")], format)
    rows, rejects, _ = read_all(tmp_path, chunk_rows=2)
    assert [row["key"] for row in rows] == ["0", long_key, "größe"]
    assert [row["image"] for row in rows] == [jpeg(0), jpeg(1), jpeg(2)]
    assert captions_in(rows) == [("web 0", ["made 0"]), ("web 1", ["a", "b"]), ("web 2", [])]
    assert rejects == [] and not any(row["error"] for row in rows)


def test_chunks_of_a_tar_are_cut_by_rows_and_read_their_own_bytes(tmp_path):
    write_pairs(tmp_path / "x.tar", rows=10)
    (shard,) = sources.shards(SourceConfig(uri=str(tmp_path)))
    columns = sources.columns_of([shard], ColumnsConfig())
    chunks = sources.scan(shard, columns, chunk_rows=4).chunks
    assert [(chunk.row, chunk.rows) for chunk in chunks] == [(0, 4), (4, 4), (8, 2)]
    assert all(one.stop == other.start for one, other in itertools.pairwise(chunks))
    rows = sources.read_chunk(shard, chunks[1]._replace(first_sample=100), columns)
    assert [row["sample_id"] for row in rows] == [100, 101, 102, 103]
    assert [row["key"] for row in rows] == ["00004", "00005", "00006", "00007"]


def test_scanning_a_local_tar_reads_headers_and_no_payloads(tmp_path, monkeypatch):
    image = os.urandom(200_000)
    write_tar(
        tmp_path / "x.tar",
        [(f"{n}.{kind}", image if kind == "jpg" else b"c") for n in range(20) for kind in ("jpg", "txt")],
    )
    (shard,) = sources.shards(SourceConfig(uri=str(tmp_path)))
    read, read_bytes = [], storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda *place: read.append(read_bytes(*place)) or read[-1])
    columns = sources.columns_of([shard], ColumnsConfig())
    assert sources.scan(shard, columns, 64).rows == 20
    assert sum(map(len, read)) < shard.bytes / 4


def test_image_members_of_several_kinds_mix(tmp_path):
    write_tar(tmp_path / "x.tar", [("a.PNG", b"png"), ("a.txt", b"one"), ("b.webp", b"webp"), ("b.txt", b"two")])
    rows, _, _ = read_all(tmp_path)
    assert [row["image"] for row in rows] == [b"png", b"webp"]


def test_bad_members_are_rows_with_a_reason(tmp_path):
    members = [("a.txt", b"no image"), ("b.jpg", b""), ("b.txt", b"b"), ("c.jpg", b"c"), ("c.txt", b"\xff\xfe")]
    members += [
        ("d.jpg", b"d"),
        ("d.txt", b"d"),
        ("d.jpg", b"again"),
        ("README", b""),
        ("x/.hidden.jpg", b""),
        *pair("e", 1, "fine"),
    ]
    write_tar(tmp_path / "x.tar", members)
    rows, rejects, _ = read_all(tmp_path)
    assert [row["key"] for row in rows] == ["a", "b", "c", "d", "e"]
    words = ["no image", "no bytes", "cannot be read: it seems to be UTF-16", "jpg is there twice", ""]
    assert all(word in row["error"] for word, row in zip(words, rows, strict=True)) and rows[4]["error"] == ""
    assert [row["image"] for row in rows[:4]] == [b""] * 4 and rows[4]["image"] == jpeg(1)
    assert [(reject.row, reject.key) for reject in rejects] == [(0, "a"), (1, "b"), (3, "d")]


def test_an_image_with_several_names_in_a_table_is_one_row_with_the_captions_of_all_lines(tmp_path):
    lines = ["image,caption", "a.jpg,one", "b.jpg,two", "./a.jpg,three", "a,four", "x.jpg,five", "x.jpg,six"]
    write_folder(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], [*lines, f"{tmp_path}/a.jpg,seven", "a.jpg,eight"])
    rows, rejects, _ = read_all(tmp_path)
    assert [row["key"] for row in rows] == ["a.jpg", "b.jpg", "x.jpg", "c.jpg"]
    assert captions_in(rows)[:2] == [("one", ["three", "four", "seven", "eight"]), ("two", [])]
    assert [reject.key for reject in rejects] == ["x.jpg"]
    (shard,) = sources.shards(SourceConfig(uri=str(tmp_path)))
    with pytest.raises(StorageError, match="its index has more rows than are read; delete the index"):
        sources.read_chunk(shard, sources.Chunk(0, 9, 0, 9), sources.columns_of([shard], ColumnsConfig()))


@pytest.mark.parametrize("kind", ["tar", "files"])
def test_text_files_of_windows_have_no_mark_in_their_caption_and_utf16_is_a_bad_row(tmp_path, kind):
    texts = ["größe".encode("utf-8-sig"), "a dog".encode("utf-16"), "a dog".encode("utf-16-le"), b"\0a\0 \0d", b"\xe9"]
    members = [pair for n, text in enumerate(texts) for pair in ((f"{n}.jpg", jpeg(n)), (f"{n}.txt", text))]
    if kind == "tar":
        write_tar(tmp_path / "x.tar", members)
    for name, content in members if kind == "files" else ():
        (tmp_path / name).write_bytes(content)
    rows = read_all(tmp_path)[0]
    assert rows[0]["web_caption"] == "größe" and not rows[0]["error"]
    cure = "its text cannot be read: it seems to be UTF-16; write it again as UTF-8"
    assert [row["error"] for row in rows[1:4]] == [cure] * 3 and "'utf-8'" in rows[4]["error"]


def test_a_broken_json_is_a_bad_row_only_where_it_is_needed(tmp_path):
    write_tar(tmp_path / "x.tar", [*pair("a", 0, "a", re_caption="made"), *pair("b", 1, "b"), ("b.json", b"{")])
    assert [bool(row["error"]) for row in read_all(tmp_path)[0]] == [False, True]
    only_text = ColumnsConfig(web_caption="txt", synthetic_captions=())
    assert not any(row["error"] for row in read_all(tmp_path, columns=only_text)[0])


def test_a_cut_tar_gives_the_rows_before_the_cut(tmp_path):
    write_tar(tmp_path / "whole.tar", [*pair("a", 0, "a"), ("b.txt", b"b"), ("b.jpg", os.urandom(3000))])
    content = (tmp_path / "whole.tar").read_bytes()
    end = content.rindex(b"b.jpg") + 512
    (tmp_path / "cut.tar").write_bytes(content[: end + 1000])
    rows, rejects, _ = read_all(tmp_path / "cut.tar")
    assert [row["error"] for row in rows] == ["", "the tar ends inside the member jpg"] and rows[1]["image"] == b""
    assert [reject.row for reject in rejects] == [1]


def test_a_damaged_header_ends_the_shard_and_is_listed(tmp_path):
    write_pairs(tmp_path / "x.tar", rows=4)
    content = bytearray((tmp_path / "x.tar").read_bytes())
    content[content.index(b"00002.jpg")] = ord("9")
    (tmp_path / "x.tar").write_bytes(content)
    rows, rejects, _ = read_all(tmp_path)
    assert [row["key"] for row in rows] == ["00000", "00001"]
    assert (
        len(rejects) == 1 and rejects[0].key == "" and "damaged; the rest of the shard is not used" in rejects[0].reason
    )


@pytest.mark.parametrize("record", [b"0 path=x", b"5abc=1", b"15 size=-1024\n\n", b"999999999999999999999 x"])
def test_a_damaged_extended_header_ends_the_shard_and_is_listed(tmp_path, record):
    long = "n" * 120
    write_tar(tmp_path / "x.tar", [*pair("00000", 0, "web"), *pair(long, 1, "web")], tarfile.PAX_FORMAT)
    content = bytearray((tmp_path / "x.tar").read_bytes())
    place = content.index(b" path=" + long.encode()) - 3
    content[place : place + len(record)] = record
    (tmp_path / "x.tar").write_bytes(content)
    rows, rejects, _ = read_all(tmp_path)
    assert [row["key"] for row in rows] == ["00000"]
    assert "the extended tar header at byte" in rejects[-1].reason and "is damaged" in rejects[-1].reason


def test_names_and_captions_that_are_no_unicode_are_told_apart_and_can_be_stored(tmp_path):
    members = [*pair("caf\udce9", 0, "web", re_caption="half \ud83d"), *pair("caf\udce8", 1, "web", re_caption="whole")]
    write_tar(tmp_path / "x.tar", members)
    rows, _, _ = read_all(tmp_path)
    assert [row["key"] for row in rows] == ["caf\\xe9", "caf\\xe8"]
    assert captions_in(rows)[0][1] == ["half \ufffd\ufffd\ufffd"]
    assert all(text.encode() for row in rows for text in (row["key"], *row["synthetic_captions"]))


def test_a_tar_without_order_is_refused(tmp_path):
    write_tar(tmp_path / "x.tar", [("a.jpg", b"a"), ("b.jpg", b"b"), ("a.txt", b"a"), ("b.txt", b"b")])
    with pytest.raises(ValueError, match="members of a are not next to each other; .*--sort=name"):
        read_all(tmp_path)


def test_two_tars_in_one_file_are_read_as_one(tmp_path):
    write_pairs(tmp_path / "one.tar", rows=2)
    write_pairs(tmp_path / "two.tar", rows=2, first=2)
    (tmp_path / "both.tar").write_bytes((tmp_path / "one.tar").read_bytes() + (tmp_path / "two.tar").read_bytes())
    assert [row["key"] for row in read_all(tmp_path / "both.tar", chunk_rows=3)[0]] == [
        "00000",
        "00001",
        "00002",
        "00003",
    ]


def test_a_tar_that_changed_since_it_was_indexed_is_refused(tmp_path):
    write_pairs(tmp_path / "x.tar", rows=4)
    (shard,) = sources.shards(SourceConfig(uri=str(tmp_path)))
    columns = sources.columns_of([shard], ColumnsConfig())
    (chunk,) = sources.scan(shard, columns, 64).chunks
    write_pairs(tmp_path / "x.tar", rows=3)
    with pytest.raises(StorageError, match="x.tar: the tar is not the one that was indexed"):
        sources.read_chunk(shard, chunk, columns)


def test_without_a_web_caption_the_columns_there_are_listed(tmp_path):
    write_tar(tmp_path / "x.tar", [("a.jpg", b"a"), ("a.json", json.dumps({"label": 3}).encode())])
    with pytest.raises(
        ValueError, match="name for columns.web_caption .*there are __key__, jpg, json, label; name one"
    ):
        read_all(tmp_path)


def test_the_first_caption_of_a_photo_is_the_web_one_and_the_next_are_synthetic(tmp_path):
    lines = ["image,caption", "b.jpg,first of b", 'a.jpg,"first, of a"', "b.jpg,second of b", "b.jpg,third of b"]
    write_folder(tmp_path, ["images/a.jpg", "images/b.jpg"], lines)
    rows, rejects, _ = read_all(tmp_path)
    assert [row["key"] for row in rows] == ["b.jpg", "a.jpg"] and [row["image"] for row in rows] == [jpeg(1), jpeg(0)]
    assert captions_in(rows) == [("first of b", ["second of b", "third of b"]), ("first, of a", [])] and rejects == []


def test_a_table_may_have_columns_for_both_kinds_ofcaptions_in(tmp_path):
    write_folder(
        tmp_path, ["a.jpg"], ["file_name\ttext\trecaption", "a.jpg\tweb\tmade", "a.jpg\tmore\t"], "metadata.tsv"
    )
    assert captions_in(read_all(tmp_path)[0]) == [("web", ["made"])]


@pytest.mark.parametrize("delimiter", [";", "|", "\t"])
def test_a_table_may_part_its_columns_otherwise_and_pad_their_names(tmp_path, delimiter):
    lines = [f"Image_Name{delimiter} Comment_Number{delimiter} Caption", f"a.jpg{delimiter} 0{delimiter} one, and more"]
    write_folder(tmp_path, ["a.jpg"], lines)
    rows, rejects, _ = read_all(tmp_path)
    assert captions_in(rows) == [("one, and more", [])] and rows[0]["image"] == jpeg(0) and rejects == []


def test_a_table_may_name_photos_by_whole_paths_or_without_their_suffix(tmp_path):
    write_folder(tmp_path, ["x/a.jpg", "b.jpg"], ["id,text", f"{tmp_path}/x/a.jpg,A", "b,B"])
    rows, rejects, _ = read_all(tmp_path)
    assert [(row["image"], row["web_caption"]) for row in rows] == [(jpeg(0), "A"), (jpeg(1), "B")] and rejects == []


def test_a_table_without_a_header_is_refused(tmp_path):
    write_folder(tmp_path, ["a.jpg"], ["a.jpg,one", "a.jpg,two"])
    with pytest.raises(ValueError, match="first line must name the columns, and it is a.jpg, one; put a line `image,"):
        read_all(tmp_path)


def test_photos_without_a_caption_and_captions_without_a_photo_are_rows(tmp_path):
    write_folder(
        tmp_path, ["b.jpg", "a.jpg", "one/c.jpg", "two/c.jpg"], ["image,caption", "gone.jpg,x", "b.jpg,", "c.jpg,y"]
    )
    rows, rejects, _ = read_all(tmp_path)
    assert [row["key"] for row in rows] == ["gone.jpg", "b.jpg", "c.jpg", "a.jpg", "one/c.jpg", "two/c.jpg"]
    assert [row["error"] for row in rows[:3]] == ["there is no such image file", "", "2 images have this name"]
    assert captions_in(rows[1:4:2]) == [("", []), ("", [])] and rows[3]["image"] == jpeg(1)
    assert [(reject.row, reject.key) for reject in rejects] == [(0, "gone.jpg"), (2, "c.jpg")]


def test_a_folder_with_two_tables_asks_for_one(tmp_path):
    write_folder(tmp_path, ["a.jpg"], ["image,caption", "a.jpg,x"])
    write_folder(tmp_path, [], ["image,caption", "a.jpg,y"], "other.csv")
    with pytest.raises(ValueError, match="needs one CSV or TSV .*there is captions.csv, other.csv"):
        read_all(tmp_path)
    assert captions_in(read_all(tmp_path / "other.csv")[0]) == [("y", [])]


def test_a_photo_that_is_gone_is_a_bad_row_and_a_folder_that_changed_is_refused(tmp_path):
    write_folder(tmp_path, ["a.jpg", "b.jpg"], ["image,caption", "a.jpg,x", "b.jpg,y"])
    (shard,) = sources.shards(SourceConfig(uri=str(tmp_path)))
    columns = sources.columns_of([shard], ColumnsConfig())
    (chunk,) = sources.scan(shard, columns, 64).chunks
    (tmp_path / "a.jpg").unlink()
    assert [row["error"] for row in sources.read_chunk(shard, chunk, columns)] == ["the file is gone", ""]
    sources.folder._entries.cache_clear()
    with pytest.raises(StorageError, match="captions.csv: the folder is not as it was indexed"):
        sources.read_chunk(shard, chunk, columns)


@pytest.mark.parametrize("name, words", [("x.tar.gz", "decompress"), ("x.doc", "none of the format 'auto'")])
def test_files_of_no_known_format_are_refused(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=words):
        read_all(tmp_path)


def test_photos_without_a_table_ask_for_one(tmp_path):
    write_folder(tmp_path, ["a.jpg"], [""], "notes.txt")
    with pytest.raises(ValueError, match="there are 1 images and no table of their captions; put a CSV beside them"):
        read_all(tmp_path)


def test_tars_win_over_the_tables_that_img2dataset_leaves_beside_them(tmp_path):
    write_pairs(tmp_path / "0.tar", rows=2)
    write_parquet(tmp_path / "0.parquet", {"url": ["x"]})
    assert len(read_all(tmp_path)[0]) == 2


def test_all_formats_are_the_same_on_an_object_store(tmp_path, monkeypatch, s3):
    write_pairs(tmp_path / "tars" / "0.tar", rows=5)
    write_parquet(
        tmp_path / "tables" / "0.parquet", {"image": [jpeg(n) for n in range(5)], "caption": list("abcde")}, 2
    )
    write_folder(tmp_path / "photos", ["a.jpg", "b.jpg"], ["image,caption", "a.jpg,x", "b.jpg,y"])
    monkeypatch.setattr(webdataset, "REMOTE_BLOCK", 3000)
    bucket = s3.make_bucket("data")
    for name in ("tars", "tables", "photos"):
        for file in (tmp_path / name).iterdir():
            storage.upload(file, f"{bucket}/{name}/{file.name}")
        here, there = (read_all(f"{root}/{name}", chunk_rows=2)[0] for root in (tmp_path, bucket))
        assert [{**row, "key": ""} for row in here] == [{**row, "key": ""} for row in there] and len(here) > 1


@pytest.mark.skipif(not FLICKR.exists(), reason="the photos of ../shared/data/flickr-sample are not here")
def test_the_flickr_sample_has_five_captions_a_photo():
    rows, rejects, _ = read_all(FLICKR)
    assert len(rows) == 400 and rejects == []
    assert all(row["image"][:3] == b"\xff\xd8\xff" and not row["error"] for row in rows)
    assert all(row["web_caption"] and len(row["synthetic_captions"]) == 4 for row in rows)
    assert rows[0]["web_caption"].startswith("A little girl covered in paint")
