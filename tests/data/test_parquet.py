"""Parquet files: images as bytes, in structs, or named by path, key or URL."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_reader import captions_in, read_all
from writers import jpeg, write_folder, write_parquet

from tips_ray import storage
from tips_ray.config import ColumnsConfig, SourceConfig
from tips_ray.data import sources
from tips_ray.data.columns import SourceRow
from tips_ray.data.sources import image_urls, parquet
from tips_ray.data.sources.parquet_types import PICKLED
from tips_ray.storage import StorageError


def test_parquet_gives_rows_by_row_group(tmp_path):
    table = {"image": [jpeg(n) for n in range(12)], "caption": [f" web {n} " for n in range(12)]}
    table |= {"synthetic_caption": [f"made {n}" for n in range(12)], "uid": [f"u{n}" for n in range(12)]}
    write_parquet(tmp_path / "x.parquet", table, row_group_size=5)
    (shard,) = sources.shards(SourceConfig(uri=str(tmp_path)))
    chunks = sources.scan(shard, sources.columns_of([shard], ColumnsConfig()), chunk_rows=3).chunks
    assert [chunk[:4] for chunk in chunks] == [(0, 3, 0, 0), (3, 2, 0, 3), (5, 3, 1, 0), (8, 2, 1, 3), (10, 2, 2, 0)]
    rows, _, _ = read_all(tmp_path, chunk_rows=3)
    assert [row["key"] for row in rows] == [f"u{n}" for n in range(12)]
    assert [row["image"] for row in rows] == [jpeg(n) for n in range(12)]
    assert captions_in(rows) == [(f"web {n}", [f"made {n}"]) for n in range(12)]


def test_parquet_of_hugging_face_holds_structs_and_lists(tmp_path):
    images = [{"bytes": jpeg(0), "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, None]
    write_parquet(tmp_path / "x.parquet", {"image": images, "caption": [["one", "two", ""], [], None]})
    rows, _, columns = read_all(tmp_path)
    assert captions_in(rows) == [("one", ["two"]), ("", []), ("", [])]
    assert [row["image"] for row in rows] == [jpeg(0), b"", b""]
    assert [row["error"] for row in rows] == [
        "",
        f"there is no such image: {tmp_path}/b.jpg",
        "the image has no bytes",
    ]
    assert columns.key == ""
    assert [row["key"] for row in read_all(tmp_path, chunk_rows=2)[0]] == [
        f"{tmp_path}/x.parquet#{n}" for n in range(3)
    ]


def test_named_columns_go_before_common_ones(tmp_path):
    table = {
        "image": [b"no"],
        "photo": [b"yes"],
        "caption": ["no"],
        "words": ["yes"],
        "a": ["1"],
        "b": [["2", "3"]],
        "n": [7],
    }
    write_parquet(tmp_path / "x.parquet", table)
    named = ColumnsConfig(image="photo", web_caption="words", synthetic_captions=("a", "b"), key="n")
    (row,), _, _ = read_all(tmp_path, columns=named)
    assert (row["image"], row["key"]) == (b"yes", "7") and captions_in([row]) == [("yes", ["1", "2", "3"])]


@pytest.mark.parametrize("field", ["image", "web_caption", "key"])
def test_a_named_column_that_is_absent_is_an_error_that_lists_the_others(tmp_path, field):
    write_parquet(tmp_path / "x.parquet", {"image": [b"x"], "caption": ["y"]})
    with pytest.raises(ValueError, match=f"x.parquet: columns.{field} is 'none', .*there are caption, image"):
        read_all(tmp_path, columns=ColumnsConfig.model_validate({field: "none"}))


def test_a_later_shard_without_a_column_is_named(tmp_path):
    write_parquet(tmp_path / "0.parquet", {"image": [b"x"], "caption": ["y"]})
    write_parquet(tmp_path / "1.parquet", {"image": [b"x"], "text": ["y"]})
    with pytest.raises(ValueError, match="1.parquet: columns.web_caption is 'caption', .*there are image, text"):
        read_all(tmp_path)


@pytest.fixture
def web_server(tmp_path) -> Iterator[str]:
    """URL of a server of the folder `web` of the test, which answers 503 to the first request for each file."""
    asked = set()

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.path in asked:
                super().do_GET()
            else:
                asked.add(self.path)
                self.send_error(503)

        def log_message(self, format, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "web"))) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _linked(root: Path, places: list[str], name: str = "image_path") -> list[SourceRow]:
    write_parquet(root / "tables" / "x.parquet", {name: places, "caption": ["y"] * len(places)})
    return read_all(root / "tables")[0]


def test_images_that_a_table_names_are_read_from_its_folder_from_elsewhere_and_from_s3(tmp_path, s3):
    write_folder(tmp_path / "tables", ["photos/a.jpg", "b.jpg"], ["image,caption"])
    (tmp_path / "tables" / "captions.csv").unlink()
    uri = f"{s3.make_bucket('linked')}/deep/a.jpg"
    storage.upload(tmp_path / "tables" / "b.jpg", uri)
    rows = _linked(tmp_path, ["photos/a.jpg", str(tmp_path / "tables" / "b.jpg"), uri, "c.jpg", ""])
    assert [row["image"] for row in rows] == [jpeg(0), jpeg(1), jpeg(1), b"", b""]
    assert [row["error"].partition(":")[0] for row in rows] == [
        *["", "", "", "there is no such image"],
        "the image has no bytes",
    ]


@pytest.mark.heavy
def test_urls_are_downloaded_and_tried_again_where_that_may_help(tmp_path, web_server):
    write_folder(tmp_path / "web", ["a.jpg"], ["x"])
    gone, nobody = f"{web_server}/none.jpg", "http://127.0.0.1:9/x.jpg"
    rows = _linked(tmp_path, [f"{web_server.upper()}/a.jpg", gone, nobody], "url")
    assert rows[0]["image"] == jpeg(0) and rows[1]["error"] == f"no download: {gone} (status 404)"
    assert rows[2]["error"] == f"no download: {nobody} (NewConnectionError)"


@pytest.fixture
def stubborn_server() -> Iterator[str]:
    """URL of a server whose /endless never ends, and whose /cut promises more than it sends at the first request."""
    asked = set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            is_cut = self.path == "/cut" and self.path not in asked
            asked.add(self.path)
            self.send_response(200)
            if self.path == "/cut":
                self.send_header("Content-Length", str(len(jpeg(4))))
            self.end_headers()
            with suppress(OSError):
                while self.path == "/endless":
                    self.wfile.write(b"x")
                    time.sleep(0.01)
                self.wfile.write(jpeg(4)[: 10 if is_cut else None])

        def log_message(self, format, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_download_ends_whatever_the_server_does(tmp_path, stubborn_server, monkeypatch):
    monkeypatch.setattr(image_urls, "WHOLE_DOWNLOAD_SECONDS", 0.5)
    endless, cut = f"{stubborn_server}/endless", f"{stubborn_server}/cut"
    rows = _linked(tmp_path, [endless, cut], "url")
    assert rows[0]["error"] == f"no download: {endless} (not here after 0.5 s)" and rows[1]["image"] == jpeg(4)
    monkeypatch.setattr(image_urls, "DOWNLOAD_BYTES", 5)
    rows = _linked(tmp_path, [endless], "url")
    assert rows[0]["error"] == f"no download: {endless} (more than 5 bytes)"


def test_what_is_no_place_is_a_bad_row(tmp_path):
    places = [str(tmp_path), "ftp://there/a.jpg", "a" * 5000, "http://[bad", "x\0y"]
    errors = [row["error"] for row in _linked(tmp_path, places)]
    assert all("there is no such image" in error or "no download" in error for error in errors), errors


def test_bytes_that_are_no_text_become_a_character_that_says_so(tmp_path):
    captions = pa.array([b"caf\xe9", b"tea"]).cast(pa.binary())
    broken = pa.StringArray.from_buffers(2, *captions.buffers()[1:])
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), broken)
    write_parquet(tmp_path / "x.parquet", {"image": [jpeg(1), jpeg(2)], "caption": broken, "synthetic_captions": lists})
    rows, _, _ = read_all(tmp_path)
    assert captions_in(rows) == [("caf\ufffd", ["caf\ufffd"]), ("tea", ["tea"])]


def test_the_path_of_a_hugging_face_struct_stands_in_for_bytes_that_are_not_there(tmp_path):
    write_folder(tmp_path, ["a.jpg"], ["x"])
    cells = [{"bytes": None, "path": "a.jpg"}, {"bytes": jpeg(1), "path": "gone.jpg"}]
    write_parquet(tmp_path / "x.parquet", {"image": cells, "caption": ["x", "y"]})
    (tmp_path / "captions.csv").unlink()
    assert [row["image"] for row in read_all(tmp_path)[0]] == [jpeg(0), jpeg(1)]


def test_a_column_of_numbers_is_no_image(tmp_path):
    write_parquet(tmp_path / "x.parquet", {"image": [1], "caption": ["y"]})
    with pytest.raises(ValueError, match=r"no column holds images as bytes.*there are image \(int64\)"):
        read_all(tmp_path)
    with pytest.raises(ValueError, match="a column of type int64; it must hold bytes"):
        read_all(tmp_path, columns=ColumnsConfig(image="image"))


def test_the_only_column_of_bytes_is_the_image_and_of_several_one_is_asked_for(tmp_path):
    write_parquet(tmp_path / "one" / "x.parquet", {"photo": [jpeg(1)], "Caption": ["y"]})
    assert [(row["image"], row["web_caption"]) for row in read_all(tmp_path / "one")[0]] == [(jpeg(1), "y")]
    write_parquet(tmp_path / "two" / "x.parquet", {"photo": [b"x"], "thumbnail": [b"x"], "caption": ["y"]})
    with pytest.raises(ValueError, match=r"several columns hold bytes \(photo, thumbnail\); name columns.image"):
        read_all(tmp_path / "two")


def test_what_is_no_parquet_file_is_named(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"not at all")
    with pytest.raises(StorageError, match="x.parquet: this is no Parquet file"):
        read_all(tmp_path)


def test_a_damaged_row_group_is_bad_rows(tmp_path):
    table = {"image": [os.urandom(5000) for _ in range(4)], "caption": ["x"] * 4}
    write_parquet(tmp_path / "x.parquet", table, row_group_size=2)
    content = bytearray((tmp_path / "x.parquet").read_bytes())
    content[4:30] = b"\xff" * 26  # the header of the first page
    (tmp_path / "x.parquet").write_bytes(content)
    rows, _, _ = read_all(tmp_path)
    assert ["damaged" in row["error"] for row in rows] == [True, True, False, False]
    assert rows[3]["image"] == table["image"][3]


def test_pages_with_checksums_are_bad_rows_where_a_bit_is_another(tmp_path):
    table = pa.table({"image": [f"image {number} ".encode() * 40 for number in range(4)], "caption": ["x"] * 4})
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2, **options)
    content = bytearray((tmp_path / "x.parquet").read_bytes())
    content[content.index(b"image 1 ") + 100] ^= 1
    (tmp_path / "x.parquet").write_bytes(content)
    rows, _, _ = read_all(tmp_path)
    assert ["damaged" in row["error"] for row in rows] == [True, True, False, False]


def test_a_file_whose_counts_of_rows_disagree_is_refused(tmp_path):
    write_parquet(tmp_path / "x.parquet", {"image": [b"x"] * 300, "caption": ["y"] * 300}, row_group_size=200)
    content = bytearray((tmp_path / "x.parquet").read_bytes())
    place = content.rindex(b"\x16\xc8\x01")  # 100 rows of the last group, as Thrift's compact protocol has them
    content[place + 1 : place + 3] = b"\xc6\x01"
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(StorageError, match=r"x.parquet: .*its row groups have 299 rows, and the file has 300\)"):
        read_all(tmp_path)


def test_a_file_with_a_column_whose_name_is_no_text_is_refused_by_name(tmp_path):
    write_parquet(tmp_path / "x.parquet", {"image": [b"x"], "caption": ["y"], "marker": [7]})
    content = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(content.replace(b"marker", b"m\xe7rker"))
    with pytest.raises(StorageError, match=r"x.parquet: .*the name of a column is no text"):
        read_all(tmp_path)


@pytest.fixture(params=["as Ray Data registers it", "as a name alone"])
def rays_type(request) -> Iterator[dict[bytes, bytes]]:
    """Metadata of a field of Ray's pickled type, which pyarrow knows or does not know."""

    class Pickled(pa.ExtensionType):
        def __arrow_ext_serialize__(self) -> bytes:
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> "Pickled":
            return cls(storage_type, PICKLED)

    with suppress(pa.ArrowKeyError):
        pa.unregister_extension_type(PICKLED)
    if request.param != "as a name alone":
        pa.register_extension_type(Pickled(pa.large_binary(), PICKLED))
    yield {b"ARROW:extension:name": PICKLED.encode(), b"ARROW:extension:metadata": b""}
    with suppress(pa.ArrowKeyError):
        pa.unregister_extension_type(PICKLED)


@pytest.mark.parametrize("place", ["itself", "in a list", "in a struct in a list"])
def test_a_column_that_ray_would_unpickle_is_refused_wherever_it_is(tmp_path, rays_type, place):
    field, cell = pa.field("odd", pa.large_binary(), metadata=rays_type), b"a pickle"
    if place == "in a list":
        field, cell = pa.field("odd", pa.list_(field)), [cell]
    if place == "in a struct in a list":
        field, cell = pa.field("odd", pa.list_(pa.struct([field]))), [{"odd": cell}]
    fields = [pa.field("image", pa.binary()), pa.field("caption", pa.string()), field]
    rows = [{"image": jpeg(0), "caption": "web", "odd": cell}]
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(fields)), tmp_path / "x.parquet")
    with pytest.raises(StorageError, match="x.parquet: the column 'odd' holds pickled Python objects, .*; write the"):
        read_all(tmp_path)


def test_large_row_groups_are_warned_of_once(tmp_path, monkeypatch, caplog):
    write_parquet(tmp_path / "x.parquet", {"image": [bytes(900)] * 9, "caption": ["x"] * 9}, row_group_size=9)
    read_all(tmp_path)
    assert caplog.text == ""
    monkeypatch.setattr(parquet, "LARGE_GROUP_BYTES", 1000)
    read_all(tmp_path)
    assert caplog.text.count("row groups of 9 rows") == 1


def test_large_binary_columns_are_images_too(tmp_path):
    write_parquet(tmp_path / "x.parquet", {"bytes": pa.array([b"x"], pa.large_binary()), "TEXT": ["y"]})
    assert read_all(tmp_path)[0][0]["image"] == b"x"
