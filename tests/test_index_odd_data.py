"""`tips-ray index` on data as people have them: each line says what is right."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from source_reader import captions_in, read_all
from writers import jpeg, pair, write_folder, write_parquet, write_tar

from jobs.cli import main
from tips_ray import storage
from tips_ray.config import ColumnsConfig, SourceConfig
from tips_ray.data import sources

CONFIG = str(Path(__file__).parents[1] / "jobs" / "configs" / "photos.yaml")


@pytest.fixture
def told(tmp_path, capsys):
    """What the command prints about the data at a place, and the error where it refuses them."""

    def tell(place: Path | str, *overrides: str) -> str:
        code = main(["index", CONFIG, f"storage={tmp_path / 'out'}", f"data.sources=[{{uri: '{place}'}}]", *overrides])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.out + shown.err
        assert code == (2 if "error: " in shown.err else 0)
        return shown.out + shown.err

    return tell


def _images(count: int) -> dict[str, list]:
    return {"image": [jpeg(n) for n in range(count)], "caption": [f"dog {n}" for n in range(count)]}


def test_a_parquet_file_without_rows_does_not_hide_the_one_behind_it(tmp_path, told):
    nulls = {"image": pa.array([], pa.null()), "caption": pa.array([], pa.null())}
    write_parquet(tmp_path / "data" / "0.parquet", nulls)
    write_parquet(tmp_path / "data" / "1.parquet", _images(3))
    write_parquet(tmp_path / "data" / "2.parquet", nulls)
    assert "3 rows in 3 shards" in told(tmp_path / "data")


def test_a_parquet_file_whose_images_are_all_null_is_bad_rows_and_hides_nothing(tmp_path, told):
    write_parquet(tmp_path / "data" / "0.parquet", {"image": pa.nulls(2), "caption": ["x", "y"]})
    write_parquet(tmp_path / "data" / "1.parquet", _images(3))
    out = told(tmp_path / "data")
    assert "5 rows in 2 shards" in out and "all of the first 2 rows are bad: the image has no bytes" in out


def test_parquet_files_without_any_rows_are_refused_by_name(tmp_path, told):
    write_parquet(tmp_path / "data" / "0.parquet", {"image": pa.array([], pa.null())})
    assert f"error: {tmp_path}/data/0.parquet: there are no rows in it" in told(tmp_path / "data")


def test_a_dictionary_column_of_paths_is_a_column_of_paths(tmp_path, told):
    write_folder(tmp_path / "data", ["a.jpg", "b.jpg"], [""], "notes.txt")
    paths = pa.array(["a.jpg", "b.jpg"]).dictionary_encode()
    write_parquet(tmp_path / "data" / "0.parquet", {"image_path": paths, "caption": ["x", "y"]})
    out = told(tmp_path / "data")
    assert "image: image_path" in out and f"0.parquet#0: {len(jpeg(0))} bytes; web 'x'" in out
    assert "1 files of other kinds are left out: 1 .txt" in out


def test_images_named_by_structs_without_any_bytes_are_read(tmp_path, told):
    write_folder(tmp_path / "data", ["a.jpg"], [""], "notes.txt")
    write_parquet(tmp_path / "data" / "0.parquet", {"image": [{"bytes": None, "path": "a.jpg"}], "caption": ["x"]})
    assert f"0.parquet#0: {len(jpeg(0))} bytes; web 'x'" in told(tmp_path / "data")


def test_the_txt_of_a_tar_is_the_caption_where_that_of_the_json_is_null(tmp_path, told):
    rows = [(None, b"from txt 0"), ("from json", b"from txt 1"), ("", b"from txt 2"), ("from json", b"\xff")]
    members = []
    for n, (caption, text) in enumerate(rows):
        fields = json.dumps({"caption": caption}).encode()
        members += [(f"{n}.jpg", jpeg(n)), (f"{n}.txt", text), (f"{n}.json", fields)]
    write_tar(tmp_path / "data" / "0.tar", members)
    out = told(tmp_path / "data")
    assert "web_caption: caption;txt;" in out and "bytes; web 'from txt 0'" in out
    read, _, _ = read_all(tmp_path / "data")
    assert [web for web, _ in captions_in(read)] == ["from txt 0", "from json", "from txt 2", "from json"]
    assert not any(row["error"] for row in read)
    named, _, _ = read_all(tmp_path / "data", columns=ColumnsConfig(web_caption="caption"))
    assert [web for web, _ in captions_in(named)] == ["", "from json", "", "from json"]


def test_photos_behind_a_link_to_another_disk_are_found_by_every_path_to_them(tmp_path, told):
    write_folder(tmp_path / "store", ["a.jpg", "deep/b.jpg"], [""], "notes.txt")
    lines = ["image,caption", "images/a.jpg,x", "latest/deep/b.jpg,y"]
    (tmp_path / "data").mkdir()
    write_folder(tmp_path / "data", [], lines)
    (tmp_path / "data" / "images").symlink_to("../store")
    (tmp_path / "data" / "latest").symlink_to("images")
    out = told(tmp_path / "data")
    assert "2 rows in 1 shards" in out and "bad rows" not in out
    assert [row["image"] for row in read_all(tmp_path / "data")[0]] == [jpeg(0), jpeg(1)]


def test_a_broken_link_is_one_bad_row_that_is_named(tmp_path, told):
    write_folder(tmp_path / "data", ["a.jpg"], ["image,caption", "a.jpg,x", "b.jpg,y", "off/c.jpg,z"])
    (tmp_path / "data" / "b.jpg").symlink_to("/none/b.jpg")
    (tmp_path / "data" / "off").symlink_to("/none/images")
    (tmp_path / "data" / "readme").symlink_to("/none/readme")
    out = told(tmp_path / "data")
    assert "3 rows in 1 shards" in out and "a.jpg: " in out
    assert "1 bad rows: b.jpg is a link to /none/b.jpg, and nothing is there" in out
    assert "1 bad rows: there is no such image file: off is a link to /none/images, and nothing is there" in out


@pytest.mark.parametrize("name", ["x.tar", "x.parquet", "x.csv"])
def test_a_shard_that_is_a_broken_link_is_refused_because_its_rows_would_be_lost(tmp_path, told, name):
    write_parquet(tmp_path / "data" / ("a.parquet" if name == "x.parquet" else "a.txt"), _images(2))
    (tmp_path / "data" / name).symlink_to("/none/x")
    words = f"error: {tmp_path}/data/{name} is a link to /none/x, and nothing is there"
    assert words in told(tmp_path / "data") and words in told(tmp_path / "data" / name)


def test_thumbnails_and_what_systems_keep_are_no_photos(tmp_path, told):
    kept = ["@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg", "__MACOSX/._a.jpg", "Thumbnails/a.jpg", "images/.thumbnails/b.jpg"]
    write_folder(tmp_path / "data", ["images/a.jpg", *kept], ["image,caption", "a.jpg,x"])
    out = told(tmp_path / "data")
    assert "1 rows in 1 shards" in out and f"a.jpg: {len(jpeg(0))} bytes; web 'x'" in out and "bad rows" not in out


def test_photos_that_all_lie_in_a_folder_called_thumbnails_are_the_data(tmp_path, told):
    write_folder(tmp_path / "data", ["thumbnails/a.jpg"], ["image,caption", "a.jpg,x"])
    assert f"a.jpg: {len(jpeg(0))} bytes; web 'x'" in told(tmp_path / "data")


@pytest.mark.parametrize("is_composed", [True, False])
def test_a_name_that_macos_has_decomposed_meets_the_composed_one(tmp_path, told, is_composed):
    spelled = [unicodedata.normalize("NFD", "größe/café"), unicodedata.normalize("NFC", "größe/café")]
    here, there = spelled[is_composed], spelled[not is_composed]
    write_folder(tmp_path / "csv", [f"{here}.jpg"], ["image,caption", f"{there}.jpg,x"])
    write_folder(tmp_path / "parquet", [f"{here}.jpg"], [""], "notes.txt")
    write_parquet(tmp_path / "parquet" / "0.parquet", {"image_path": [f"{there}.jpg"], "caption": ["x"]})
    write_tar(tmp_path / "tar" / "0.tar", [(f"{here}.jpg", jpeg(0)), (f"{there}.txt", b"x")])
    for place in ("csv", "parquet", "tar"):
        out = told(tmp_path / place)
        assert f": {len(jpeg(0))} bytes; web 'x'" in out and "1 rows in 1 shards" in out


def test_a_tar_that_is_cut_is_told_by_the_command(tmp_path, told):
    write_tar(tmp_path / "data" / "a.tar", [*pair("a", 0, "x"), *pair("b", 1, "y")])
    content = (tmp_path / "data" / "a.tar").read_bytes()
    (tmp_path / "data" / "a.tar").write_bytes(content[: content.index(b"b.jpg") - 1])
    out = told(tmp_path / "data")
    assert f"\n{tmp_path}/data/a.tar: the tar ends at byte 2559 without the mark of its end" in out
    assert "bad rows" not in out and "rows are bad" not in out


def test_what_is_left_out_is_counted_by_kind_and_folder(tmp_path, told):
    others = ["0.json", "1.JSON", "0.parquet", "notes", *(f"x.{suffix}" for suffix in ("a", "b", "c"))]
    kept = ["@eaDir/a.tar", "@eaDir/b.tar", "deep/.cache/a.tar", "deep/._a.tar"]
    for name in (*others, *kept):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(b"x")
    write_tar(tmp_path / "data" / "a.tar", pair("a", 0, "x"))
    out = told(tmp_path / "data")
    assert "1 rows in 1 shards" in out and "7 files of other kinds are left out: 2 .json, 1 " in out
    assert ", 1 .parquet" in out and ", 1 others" in out
    assert "4 files are left out as hidden, kept by a system or written by tips_ray: 2 in @eaDir, " in out
    assert "1 in deep/.cache" in out and "1 ._a.tar" in out and "thumbnails" not in out
    assert "left out" not in told(tmp_path / "data" / "a.tar") + told(tmp_path / "data" / "*.tar")


def test_what_is_left_out_beside_photos_is_counted(tmp_path, told):
    write_folder(tmp_path / "table", ["a.jpg", "thumbs/a.jpg"], ["image,caption", "a.jpg,x"])
    _pairs(tmp_path / "pairs" / "x", 2)
    write_folder(tmp_path / "pairs", ["alone.jpg", "x/thumbs/00000.jpg"], ["y"], "x/alone.txt")
    assert "1 thumbnails are left out: 1 in thumbs" in told(tmp_path / "table")
    out = told(tmp_path / "pairs")
    assert "2 rows in 1 shards" in out and "1 thumbnails are left out: 1 in x/thumbs" in out
    assert "2 files of other kinds are left out: 1 .jpg, 1 .txt" in out or "1 .txt, 1 .jpg" in out


def test_compressed_tars_beside_tars_are_refused_unless_they_are_copies(tmp_path, told):
    for name in ("a.tar", "b.tar"):
        write_tar(tmp_path / "data" / name, pair("a", 0, "x"))
    (tmp_path / "data" / "a.tar.gz").write_bytes(b"x")
    assert "2 rows in 2 shards" in told(tmp_path / "data")
    (tmp_path / "data" / "c.tgz").write_bytes(b"x")
    words = f"error: {tmp_path}/data/c.tgz: compressed tars cannot be read in parts, and 1 lie beside 2 others"
    assert words in told(tmp_path / "data")
    assert "2 rows in 2 shards" in told(tmp_path / "data" / "*.tar")


def _pairs(folder: Path, count: int, **fields: Any) -> None:
    """KEY.jpg, KEY.txt and KEY.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        for name, content in pair(f"{n:05d}", n, f"dog {n}", **fields):
            (folder / name).write_bytes(content)


def test_images_that_img2dataset_wrote_as_files_are_not_downloaded_again(tmp_path, told):
    for part in ("00000", "00001"):
        _pairs(tmp_path / "data" / part, 2, web_caption=f"dog of {part}", url="http://127.0.0.1:9/x.jpg")
        urls = {"url": ["http://127.0.0.1:9/x.jpg"] * 3, "caption": ["dog"] * 3, "key": list("abc")}
        write_parquet(tmp_path / "data" / f"{part}.parquet", urls)
        (tmp_path / "data" / f"{part}_stats.json").write_text("{}")
    out = told(tmp_path / "data")
    assert "4 rows in 2 shards" in out and "(pairs)" in out and "00000.jpg: " in out and "web 'dog of 00000'" in out


@pytest.mark.parametrize("named", ["jpg", "url"])
def test_the_config_says_whether_urls_or_the_files_beside_them_are_read(tmp_path, named):
    _pairs(tmp_path / "00000", 1)
    write_parquet(
        tmp_path / "00000.parquet", {"url": [f"file://{tmp_path}/00000/00000.jpg"], "caption": ["of the url"]}
    )
    rows, _, _ = read_all(tmp_path, columns=ColumnsConfig(image=named))
    assert captions_in(rows) == [("of the url" if named == "url" else "dog 0", [])] and rows[0]["image"] == jpeg(0)


def test_a_table_of_paths_is_read_even_where_texts_lie_beside_the_images(tmp_path, told):
    _pairs(tmp_path / "data" / "x", 1)
    write_parquet(tmp_path / "data" / "x.parquet", {"image_path": ["x/00000.jpg"], "caption": ["of the table"]})
    assert "web 'of the table'" in told(tmp_path / "data")


def test_images_beside_texts_of_their_names_are_rows(tmp_path, told):
    _pairs(tmp_path / "data", 3)
    _pairs(tmp_path / "data" / "deep", 1, re_caption="made")
    more = {"a.b.PNG": jpeg(7), "a.b.txt": b"dots", "c.jpg": jpeg(8), "c.jpg.txt": b"whole name", "d.jpg": jpeg(9)}
    more |= {"e.jpg": b"", "e.txt": b"e", "f.jpg": jpeg(10), "f.txt": b"\xff", "README.md": b"x"}
    for name, content in more.items():
        (tmp_path / "data" / name).write_bytes(content)
    rows, rejects, _ = read_all(tmp_path / "data", chunk_rows=2)
    found = {row["key"]: row["web_caption"] for row in rows if not row["error"]}
    assert found == {f"0000{n}.jpg": f"dog {n}" for n in range(3)} | {
        "a.b.PNG": "dots", "c.jpg": "whole name", "d.jpg": "",
    }  # fmt: skip
    assert len(rows) == 9 and [reject.key for reject in rejects] == ["e.jpg"]
    assert [row["error"][:25] for row in rows if row["error"]] == [
        "the image has no bytes",
        "its text cannot be read: ",
    ]
    assert "9 rows in 2 shards" in told(tmp_path / "data")


def test_a_folder_of_pairs_that_changed_is_refused(tmp_path):
    _pairs(tmp_path, 2)
    (shard,) = sources.shards(SourceConfig(uri=str(tmp_path)))
    (tmp_path / "00001.txt").write_text("another")
    with pytest.raises(ValueError, match="the folder is not as it was indexed"):
        sources.scan(shard, sources.Columns("jpg", "txt", (), ""), 64)


def test_a_metadata_jsonl_names_images_and_captions(tmp_path, told):
    lines = ['{"file_name": "images/a.jpg", "text": "x"}', "", '{"file_name": "b.jpg", "text": ["y", "z"], "n": 3}']
    write_folder(tmp_path / "data" / "train", ["images/a.jpg", "b.jpg"], lines, "metadata.jsonl")
    out = told(tmp_path / "data")
    assert "2 rows in 1 shards" in out and "image: file_name; web_caption: text" in out and "bad rows" not in out
    assert captions_in(read_all(tmp_path / "data" / "train")[0]) == [("x", []), ("y", ["z"])]
    write_folder(tmp_path / "data" / "test", ["c.jpg"], ['{"file_name": "c.jpg", "text": "x"}'], "metadata.jsonl")
    assert "there is test/metadata.jsonl, train/metadata.jsonl; uri may name the table" in told(tmp_path / "data")
    (tmp_path / "data" / "test" / "metadata.jsonl").write_text('{"file_name": "c.jpg", "text": "x"}\n{"file')
    assert "metadata.jsonl: line 2 is no JSON (" in told(tmp_path / "data" / "test")


def _coco(folder: Path, split: str, annotations: list[dict[str, Any]]) -> None:
    images = [{"id": n, "file_name": f"{n:012d}.jpg"} for n in (9, 25)]
    write_folder(folder / split, [image["file_name"] for image in images], [""], "notes.txt")
    (folder / "annotations").mkdir(exist_ok=True)
    listed = json.dumps({"info": {}, "images": images, "annotations": annotations})
    (folder / "annotations" / f"captions_{split}.json").write_text(listed)


def test_cocos_captions_belong_to_the_images_of_their_split(tmp_path, told):
    captions = [{"image_id": 9, "caption": "x"}, {"image_id": 25, "caption": "y"}, {"image_id": 9, "caption": "z\n"}]
    _coco(tmp_path / "data", "train2017", captions)
    (tmp_path / "data" / "annotations" / "instances_train2017.json").write_text("{}")
    out = told(tmp_path / "data")
    assert "2 rows in 1 shards" in out and "000000000009.jpg: " in out and "web 'x'; synthetic 'z'" in out
    _coco(tmp_path / "data", "val2017", captions)
    assert "there is annotations/captions_train2017.json, annotations/captions_val2017.json" in told(tmp_path / "data")
    assert "2 rows in 1 shards" in told(tmp_path / "data" / "annotations" / "captions_val2017.json")
    _coco(tmp_path / "data", "val2017", [*captions, {"image_id": 7, "caption": "lost"}])
    lost = told(tmp_path / "data" / "annotations" / "captions_val2017.json")
    assert "1 image ids have captions and no entry in images, e.g. 7" in lost


@pytest.mark.parametrize("other", ["c.jpg", "a.jpg"])
def test_coco_images_with_one_id_are_refused_unless_they_are_one(tmp_path, told, other):
    write_folder(tmp_path / "data", ["a.jpg", "b.jpg", "c.jpg"], [""], "notes.txt")
    images = [{"id": number, "file_name": name} for number, name in ((0, "a.jpg"), (1, "b.jpg"), (0, other))]
    annotations = [{"image_id": number, "caption": "x"} for number in (0, 1)]
    (tmp_path / "data" / "captions_train.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    said = told(tmp_path / "data")
    assert ("the images a.jpg and c.jpg both have the id 0" in said) == (other == "c.jpg")


def test_the_tables_of_flickr8k_are_read(tmp_path, told):
    write_folder(tmp_path / "kaggle", ["Images/a.jpg"], ["image,caption", "a.jpg,x", "a.jpg,y"], "captions.txt")
    write_folder(tmp_path / "old", ["a.jpg"], ["a.jpg#0\tx", "a.jpg#1\ty"], "Flickr8k.token.txt")
    write_folder(tmp_path / "hash", ["a#1.jpg"], ["a#1.jpg#0\tx", "a#1.jpg#1\ty"], "Flickr8k.token.txt")
    for place in ("kaggle", "old", "hash"):
        out = told(tmp_path / place)
        assert "1 rows in 1 shards" in out and "web 'x'; synthetic 'y'" in out


@pytest.mark.heavy
def test_layouts_are_the_same_on_an_object_store(tmp_path, told, s3):
    _pairs(tmp_path / "pairs" / "00000", 3)
    _coco(tmp_path / "coco", "train2017", [{"image_id": 9, "caption": "x"}])
    write_folder(tmp_path / "jsonl", ["a.jpg"], ['{"file_name": "a.jpg", "text": "x"}'], "metadata.jsonl")
    bucket = s3.make_bucket("layouts")
    for name in ("pairs", "coco", "jsonl"):
        for file in sorted((tmp_path / name).rglob("*.*")):
            storage.upload(file, f"{bucket}/{file.relative_to(tmp_path)}")
            storage.upload(file, f"{bucket}/{name}/@eaDir/{file.name}")
        here, there = (read_all(f"{root}/{name}", chunk_rows=2)[0] for root in (tmp_path, bucket))
        assert here == there and here
        assert f"{len(here)} rows in 1 shards" in told(f"{bucket}/{name}")


def test_images_in_a_tar_that_are_in_no_row_are_counted_and_no_row_changes(tmp_path, told):
    second = [("a.2.jpg", jpeg(1)), ("a.2.txt", b"dog 1")]
    write_tar(
        tmp_path / "data" / "0.tar", [*pair("a", 0, "dog 0"), *second, ("b.png", jpeg(2)), *pair("b", 3, "dog 3")]
    )
    write_tar(tmp_path / "data" / "1.tar", [*pair("a", 0, "dog 0"), ("c.0.jpg", jpeg(4)), ("c.1.JPG", jpeg(5))])
    out = told(tmp_path / "data", "data.max_bad_fraction=0.5")
    assert "    4 images in tars are left out, e.g. a.2.jpg of 0.tar: a key ends at its first dot" in out
    assert [row["image"] for row in read_all(tmp_path / "data")[0]] == [jpeg(0), jpeg(3), jpeg(0), b""]


def test_a_tar_whose_images_are_all_in_rows_has_none_left_out(tmp_path, told):
    write_tar(tmp_path / "data" / "0.tar", [*pair("a", 0, "dog 0"), ("a.cls", b"1"), *pair("b", 1, "dog 1")])
    assert "left out" not in told(tmp_path / "data")


def test_bad_rows_of_a_later_file_are_told_with_a_reason(tmp_path, told):
    write_parquet(tmp_path / "data" / "0.parquet", _images(3))
    write_parquet(tmp_path / "data" / "1.parquet", {**_images(3), "caption": [0, 1, 2]})
    out = told(tmp_path / "data")
    assert "    3 of 6 rows that were looked at are bad: its caption is no text but int: 0 (1.parquet#0)\n" in out
    assert "3 of 6 rows that were looked at have no synthetic caption, e.g. 0.parquet#0" in out


def test_several_lines_of_a_txt_are_one_caption_and_are_told_where_most_texts_have_them(tmp_path, told):
    for n, text in enumerate(["a dog\na red dog\n", "a cat\r\na blue cat", "a car\n\nIt is red.\n"]):
        for place in ("data", "few") if n else ("data",):
            (tmp_path / place).mkdir(exist_ok=True)
            (tmp_path / place / f"{n}.jpg").write_bytes(jpeg(n))
            (tmp_path / place / f"{n}.txt").write_text(text)
    words = (
        "2 of 3 sampled web captions have several lines, which are read as one caption, e.g. 'a dog\\na red dog' of 0.j"
    )
    assert words in told(tmp_path / "data") and "several lines" not in told(tmp_path / "few")


def test_the_image_is_a_column_that_begins_like_one_or_is_named_as_one(tmp_path, told):
    write_folder(tmp_path / "data", ["a.jpg"], [""], "notes.txt")
    vector, mask = [b"\0\1\2\3"], [b"\x89PNG\r\n\x1a\n"]
    for columns, image in (
        ({"image_path": ["a.jpg"], "embedding": vector}, "image_path"),
        ({"file_name": ["a.jpg"], "embedding": vector, "hash": vector}, "file_name"),
        ({"image": ["a.jpg"], "mask": mask}, "image"),
        ({"file_name": ["none.jpg"], "photo": [jpeg(0)], "embedding": vector}, "photo"),
        ({"file_name": ["none.jpg"], "photo": [{"bytes": jpeg(0), "path": None}]}, "photo"),
    ):
        write_parquet(tmp_path / "data" / "0.parquet", {**columns, "caption": ["x"]})
        out = told(tmp_path / "data")
        assert f"image: {image};" in out and f": {len(jpeg(0))} bytes; web 'x'" in out
    write_parquet(tmp_path / "data" / "0.parquet", {"embedding": vector, "caption": ["x"]})
    assert "no column holds images as bytes, and none with a common name" in told(tmp_path / "data")


def test_thumbnails_that_a_table_names_are_not_counted_as_left_out(tmp_path, told):
    names = ["a.jpg", "thumbs/a.jpg", "thumbs/b.jpg"]
    write_folder(tmp_path / "data", names, ["image,caption", "a.jpg,big", "thumbs/a.jpg,small"])
    out = told(tmp_path / "data")
    assert "2 rows in 1 shards" in out and "    1 thumbnails are left out: 1 in thumbs\n" in out
    write_folder(tmp_path / "data", names, ["image,caption", *(f"{name},small" for name in names)])
    assert "left out" not in told(tmp_path / "data")


@pytest.mark.parametrize("layout", ["table", "files", "parquet"])
def test_a_format_that_excludes_the_data_is_named_with_the_one_to_write(tmp_path, told, layout):
    place = tmp_path / "data"
    if layout == "parquet":
        write_parquet(place / "0.parquet", _images(1))
    else:
        write_folder(place, ["a.jpg"], ["image,caption", "a.jpg,x"], "captions.csv" if layout == "table" else "a.txt")
    wrong, right = ("folder", "parquet") if layout == "parquet" else ("parquet", "folder")
    out = told(place, f"data.sources=[{{uri: '{place}', format: {wrong}}}]")
    assert f"error: {place}: format: {wrong} excludes what is there, which is of the format {right}; write" in out
