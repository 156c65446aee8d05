"""`tips-ray index` on files that are not what their names say, or of which a part is missing: each is named."""

import base64
import gzip
import io
import subprocess
import zipfile
from pathlib import Path

import pytest
from source_reader import captions_in, read_all
from writers import jpeg, pair, write_folder, write_parquet, write_tar

from jobs.cli import main

CONFIG = str(Path(__file__).parents[1] / "jobs" / "configs" / "photos.yaml")


@pytest.fixture
def told(tmp_path, capsys):
    """What the command prints about the data at a place, and the error where it refuses them."""

    def tell(place: Path | str, options: str = "") -> str:
        source = f"{{uri: '{place}'{options}}}"
        code = main(["index", CONFIG, f"storage={tmp_path / 'out'}", f"data.sources=[{source}]"])
        shown = capsys.readouterr()
        assert code == (2 if "error: " in shown.err else 0)
        assert not any(len(line) > 620 for line in shown.err.splitlines())
        return shown.out + shown.err

    return tell


def _zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("xl/workbook.xml", content)
    return buffer.getvalue()


HTML = b"<!DOCTYPE html><title>404</title>"
TABLE = b"image,caption\na.jpg,a dog\n"


def test_tars_without_bytes_or_rows_are_named(tmp_path, told):
    write_tar(tmp_path / "data" / "0.tar", pair("a", 0, "x"))
    (tmp_path / "data" / "1.tar").write_bytes(b"")
    write_tar(tmp_path / "data" / "2.tar", [])
    out = told(tmp_path / "data")
    assert "1 rows in 3 shards" in out and "    2 shards hold no rows: 1.tar, 2.tar\n" in out
    assert f"\n{tmp_path}/data/1.tar: the file has no bytes, as after a download that failed\n" in out
    assert "data/2.tar: " not in out and "not used" not in out
    words = "1.tar: the file has no bytes, as after a download that failed; write the shard again or leave it out"
    assert words in told(tmp_path / "data" / "1.tar")


@pytest.mark.parametrize(
    ("content", "kind"),
    [(gzip.compress(bytes(999)), "a gzip file: decompress it"), (HTML, "a page of HTML"), (_zipped(TABLE), "a zip")],
    ids=["gzip", "html", "zip"],
)
def test_another_file_with_the_name_of_a_tar_is_told_by_its_kind(tmp_path, told, content, kind):
    write_tar(tmp_path / "data" / "0.tar", pair("a", 0, "x"))
    (tmp_path / "data" / "1.tar").write_bytes(content)
    assert f"\n{tmp_path}/data/1.tar: this is no tar but {kind}" in told(tmp_path / "data")


def test_a_tar_that_is_damaged_at_its_start_is_still_a_tar(tmp_path, told):
    write_tar(tmp_path / "data" / "0.tar", pair("a", 0, "x"))
    content = bytearray((tmp_path / "data" / "0.tar").read_bytes())
    content[120] ^= 1
    (tmp_path / "data" / "0.tar").write_bytes(content)
    assert "0.tar: the tar header at byte 0 is damaged" in told(tmp_path / "data")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (gzip.compress(TABLE), "a gzip file: decompress it"),
        (_zipped(TABLE), "a zip archive or an Excel file"),
        (TABLE.decode().encode("utf-16"), "text in UTF-16: convert it to UTF-8"),
        (TABLE.decode().encode("utf-16-le"), "text in UTF-16 without a mark: convert it to UTF-8"),
        (TABLE.decode().encode("utf-16-be"), "text in UTF-16 without a mark: convert it to UTF-8"),
        (HTML, "a page of HTML"),
    ],
    ids=["gzip", "xlsx", "utf-16", "utf-16-le", "utf-16-be", "html"],
)
def test_another_file_with_the_name_of_a_table_is_told_by_its_kind(tmp_path, told, content, kind):
    write_folder(tmp_path / "data", ["a.jpg"], [""])
    (tmp_path / "data" / "captions.csv").write_bytes(content)
    words = "table" if kind == "a page of HTML" else "UTF-8 text"
    assert f"captions.csv: this is no {words} but {kind}" in told(tmp_path / "data")


def test_zeros_at_the_end_of_a_caption_are_no_part_of_it(tmp_path):
    write_folder(tmp_path, ["a.jpg", "b.jpg"], ["image,caption", "a.jpg,a dog\0\0", "b.jpg,\0"])
    assert captions_in(read_all(tmp_path)[0]) == [("a dog", []), ("", [])]


def test_sparse_files_in_a_tar_are_bad_rows_in_each_dialect(tmp_path, told):
    for number in range(2):
        with open(tmp_path / f"{number}.jpg", "wb") as file:
            file.write(jpeg(number))
            file.truncate(1 << 20)
        (tmp_path / f"{number}.txt").write_text("x")
    (tmp_path / "data").mkdir()
    for version in ("0.0", "0.1", "1.0"):
        options = ["--sparse", "--format=posix", f"--sparse-version={version}", "--sort=name"]
        names = ["0.jpg", "0.txt", "1.jpg", "1.txt"]
        tar = tmp_path / "data" / f"{version}.tar"
        subprocess.run(["tar", *options, "-cf", tar, "-C", tmp_path, *names], check=True)
    out = told(tmp_path / "data")
    assert "6 rows in 3 shards" in out and "6 bad rows: the image is a sparse file; pack the tar again without" in out
    assert {row["key"] for row in read_all(tmp_path / "data")[0]} == {"0", "1"}


def test_files_that_a_table_names_and_nobody_reads_are_not_told_as_absent(tmp_path, told):
    names = ["a.avif", "b.TIF", "c.jfif", ".d.jpg", ".cache/e.jpg", "f.jpg"]
    write_folder(tmp_path / "data", names, ["image,caption", *(f"{name},x" for name in (*names, "g.jpg", "a"))])
    (tmp_path / "data" / "g.txt").write_text("x")
    rows, rejects, _ = read_all(tmp_path / "data")
    assert [row["key"] for row in rows if not row["error"]] == ["c.jfif", "f.jpg"]
    hidden = "the file is there, but is left out as hidden or kept by a system; rename or move it"
    assert {reject.key: reject.reason for reject in rejects} == {
        "a.avif": "the file is there, but .avif is not read; write it as JPEG, PNG or WebP",
        "a": "the file is there, but .avif is not read; write it as JPEG, PNG or WebP",
        "b.TIF": "the file is there, but .tif is not read; write it as JPEG, PNG or WebP",
        ".d.jpg": hidden,
        ".cache/e.jpg": hidden,
        "g.jpg": "there is no such image file",
    }
    assert f"2 bad rows: {hidden}" in told(tmp_path / "data")


def test_a_jfif_beside_its_text_is_a_row(tmp_path, told):
    for name, content in (("a.jfif", jpeg(1)), ("a.txt", b"x"), ("b.jpg", jpeg(2)), ("b.txt", b"y")):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_bytes(content)
    assert [row["image"] for row in read_all(tmp_path / "data")[0]] == [jpeg(1), jpeg(2)]
    assert "image: jpg;jpeg;png;webp;gif;bmp; web_caption: txt" in told(tmp_path / "data")


def test_images_in_base64_are_read_from_a_column_of_texts(tmp_path, told):
    texts = [base64.b64encode(jpeg(number)).decode() for number in range(4)]
    images = [texts[0], f"data:image/jpeg;base64,{texts[1]}", base64.encodebytes(jpeg(2)).decode(), texts[3][:-3]]
    write_parquet(tmp_path / "data" / "0.parquet", {"image": images, "caption": ["x"] * 4})
    rows = read_all(tmp_path / "data")[0]
    assert [row["image"] for row in rows] == [jpeg(0), jpeg(1), jpeg(2), b""]
    assert "1 of 4 rows that were looked at are bad: its base64 text cannot be read" in told(tmp_path / "data")


@pytest.mark.parametrize("name", ["features.parquet", "features.tar"])
def test_a_stray_file_beside_a_table_of_images_is_told_with_a_cure_that_works(tmp_path, told, name):
    place = tmp_path / "data"
    write_folder(place, ["a.jpg"], ["image,caption", "a.jpg,x"], "c.csv")
    if name.endswith("tar"):
        write_tar(place / name, [("a.npy", bytes(9))])
    else:
        write_parquet(place / name, {"id": [1], "embedding": [[0.1]]})
    words = f"or, if the data are images and c.csv beside it, write format: folder or uri: {place}/c.csv"
    assert words in told(place)
    assert "1 rows in 1 shards" in told(place, ", format: folder") and "1 rows in 1 shards" in told(place / "c.csv")


def test_a_link_that_leads_in_a_circle_is_told_as_one(tmp_path, told):
    write_folder(tmp_path / "data", ["a.jpg"], ["image,caption", "a.jpg,x", "b.jpg,y"])
    (tmp_path / "data" / "b.jpg").symlink_to("b.jpg")
    assert "1 bad rows: b.jpg is a link to b.jpg, and it leads in a circle" in told(tmp_path / "data")
    write_parquet(tmp_path / "paths" / "0.parquet", {"image": [f"{tmp_path}/data/b.jpg"], "caption": ["x"]})
    assert "a symbolic link there leads in a circle; remove it, or" in told(tmp_path / "paths")
