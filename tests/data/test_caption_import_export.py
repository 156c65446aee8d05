"""Files of captions as other programs write them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tips_ray.data.captions.import_export import captions_by_hash
from tips_ray.data.sources.parquet_types import PICKLED

DIGEST = "ab" * 32


def _read(path: Path, content: bytes) -> list[list[str]]:
    path.write_bytes(content)
    return list(captions_by_hash(str(path)).values())


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        ('"[""first"", ""second""]"', ["first", "second"]),
        ("[logo] a red shoe", ["[logo] a red shoe"]),
        ('"[1, 2]"', ["[1, 2]"]),
        ("[]", []),
        ("[" * 20_000, ["[" * 20_000]),
    ],
)
def test_a_cell_is_a_list_of_texts_only_where_it_is_one_in_json(tmp_path, cell, texts):
    assert _read(tmp_path / "x.csv", f"sha256,captions\n{DIGEST},{cell}\n".encode()) == [texts]


def test_a_byte_order_mark_belongs_to_no_name(tmp_path):
    mark, line = b"\xef\xbb\xbf", json.dumps({"sha256": DIGEST, "captions": ["größe"]}, ensure_ascii=False).encode()
    assert _read(tmp_path / "x.csv", mark + f"sha256,captions\n{DIGEST},größe\n".encode()) == [["größe"]]
    assert _read(tmp_path / "x.jsonl", mark + line) == [["größe"]]


def test_a_damaged_page_is_named_by_file_and_row(tmp_path):
    table = pa.table({"sha256": [DIGEST] * 2000, "captions": [[str(number)] for number in range(2000)]})
    pq.write_table(table, tmp_path / "x.parquet", compression="snappy", use_dictionary=False)
    content = bytearray((tmp_path / "x.parquet").read_bytes())
    content[200:240] = bytes(40)
    with pytest.raises(ValueError, match=r"x.parquet behind row 0: it cannot be read: .*"):
        _read(tmp_path / "x.parquet", bytes(content))


def test_a_column_that_ray_would_unpickle_is_refused(tmp_path):
    field = pa.field("captions", pa.large_binary(), metadata={b"ARROW:extension:name": PICKLED.encode()})
    schema = pa.schema([("sha256", pa.string()), field])
    pq.write_table(pa.table([[DIGEST], [b"a pickle"]], schema), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="x.parquet: the column 'captions' holds pickled Python objects"):
        captions_by_hash(str(tmp_path / "x.parquet"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'["a", "b"]', "row 1: it needs sha256 .* there are no columns"),
        ("x.jsonl", b'{"sha256": "' + DIGEST.encode() + b'", "captions": []}\n{"sha', "behind row 1: .* Unterminated"),
        ("x.csv", b"sha256,captions\n" + DIGEST.encode() + b",caf\xe9\n", "behind row 0: .* decode byte 0xe9"),
        ("x.csv", b'sha256,captions\n"' + b"a" * 200_000, "behind row 0: .* field larger than field limit"),
        ("x.parquet", b"<html>", "behind row 0: it cannot be read: Parquet"),
    ],
)
def test_what_cannot_be_read_is_named_by_file_and_row(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=rf"{name} {message}"):
        _read(tmp_path / name, content)
