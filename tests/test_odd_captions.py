"""Captions as people keep them, through `tips-ray index`: read whole, or refused with the line or an example."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from source_reader import captions_in, read_all
from writers import jpeg, write_folder, write_parquet, write_tar

from jobs.cli import main

CONFIG = str(Path(__file__).parents[1] / "jobs" / "configs" / "photos.yaml")
ROWS = 6
NAMES = [f"{number}.jpg" for number in range(ROWS)]


def _index(folder: Path, capsys, **columns: str | list[str]) -> tuple[int, str]:
    """The code of the command, and what it says."""
    source = json.dumps([{"uri": str(folder), "columns": columns}])
    code = main(["index", CONFIG, f"storage={folder}.out", f"data.sources={source}"])
    shown = capsys.readouterr()
    return code, shown.out if code == 0 else shown.err


def _parquet(folder: Path, **columns: Any) -> None:
    write_parquet(folder / "0.parquet", {"image": [jpeg(number) for number in range(ROWS)], **columns})


def _tar(folder: Path, fields: Mapping[str, Sequence[Any]]) -> None:
    members = []
    for number in range(ROWS):
        row = {name: values[number] for name, values in fields.items()}
        members += [(f"{number}.jpg", jpeg(number)), (f"{number}.json", json.dumps(row).encode())]
    write_tar(folder / "0.tar", members)


def test_open_clips_tsv_with_a_stray_quotation_mark_keeps_every_row(tmp_path, capsys):
    texts = ['"a dog', "a cat", 'a pipe of 9"', "a car", '"happy" a dog', "an egg"]
    lines = ["filepath\ttitle", *(f"{name}\t{text}" for name, text in zip(NAMES, texts, strict=True))]
    write_folder(tmp_path / "x", NAMES, lines, "train.tsv")
    code, told = _index(tmp_path / "x", capsys)
    assert code == 0 and "6 rows" in told and "bad rows:" not in told and "web '\"a dog'" in told
    assert [web for web, _ in captions_in(read_all(tmp_path / "x")[0])] == texts


def test_unquoted_commas_are_refused_with_their_lines(tmp_path, capsys):
    write_folder(tmp_path / "x", NAMES, ["image,caption", *(f"{name},a dog, far" for name in NAMES)])
    code, told = _index(tmp_path / "x", capsys)
    assert code == 2 and "captions.csv: lines have other numbers of cells than the 2 columns (line 2 has 3" in told
    assert len(told) < 600 + len(str(tmp_path))


def test_two_columns_of_one_name_are_refused(tmp_path, capsys):
    write_folder(tmp_path / "x", NAMES, ["image,caption,caption", *(f"{name},a dog,a cat" for name in NAMES)])
    code, told = _index(tmp_path / "x", capsys)
    assert code == 2 and "captions.csv: two columns have the name caption" in told


def test_flickr30ks_results_are_read_and_its_line_without_a_delimiter_is_counted(tmp_path, capsys):
    lines = [f"{number % ROWS}.jpg| {number // ROWS}| a dog, number {number}" for number in range(120)]
    lines[119] = "5.jpg| 19   a dog, number 119"
    write_folder(tmp_path / "x", NAMES, ["image_name| comment_number| comment", *lines], "results.csv")
    code, told = _index(tmp_path / "x", capsys)
    assert code == 0 and "1 bad rows: the line has not as many cells as there are columns: 2" in told
    assert "row 6 line 121" in told
    rows = read_all(tmp_path / "x")[0]
    assert sum(len([web, *made]) for web, made in captions_in(rows[:ROWS])) == 119


def test_a_line_that_names_no_image_is_counted(tmp_path, capsys):
    write_folder(tmp_path / "x", NAMES, ["image,caption", ",a dog", *(f"{name},a cat" for name in NAMES)])
    code, told = _index(tmp_path / "x", capsys)
    assert code == 0 and "1 bad rows: the line names no image" in told and "row 6 line 2" in told


def test_lists_in_a_table_are_captions(tmp_path, capsys):
    write_folder(tmp_path / "x", NAMES, ["image\tcaption", *(f"{name}\t['a dog', \"it's\"]" for name in NAMES)])
    code, told = _index(tmp_path / "x", capsys)
    assert code == 0 and "web 'a dog'; synthetic \"it's\"" in told


def test_a_column_of_numbers_does_not_win_over_one_of_texts(tmp_path, capsys):
    write_folder(tmp_path / "csv", NAMES, ["image,caption,text", *(f"{name},7,a dog" for name in NAMES)])
    _parquet(tmp_path / "parquet", caption=list(range(ROWS)), text=["a dog"] * ROWS)
    _tar(tmp_path / "tar", {"caption": list(range(ROWS)), "text": ["a dog"] * ROWS})
    for kind in ("csv", "parquet", "tar"):
        code, told = _index(tmp_path / kind, capsys)
        assert code == 0 and "web_caption: text;" in told and "web 'a dog'" in told


def test_a_column_of_numbers_alone_is_refused(tmp_path, capsys):
    _parquet(tmp_path / "x", caption=[0.5] * ROWS)
    code, told = _index(tmp_path / "x", capsys)
    assert code == 2 and "(caption holds numbers, which are no captions)" in told
    code, told = _index(tmp_path / "x", capsys, web_caption="caption")
    assert code == 2 and "the column caption holds numbers and no captions" in told


def test_a_csv_whose_captions_are_numbers_is_refused_unless_the_config_names_them(tmp_path, capsys):
    write_folder(tmp_path / "x", [f"{n}.jpg" for n in range(3)], ["image,caption", "0.jpg,7", "1.jpg,1.5", "2.jpg,3"])
    code, told = _index(tmp_path / "x", capsys)
    assert code == 2 and "(caption holds numbers, which are no captions)" in told
    code, told = _index(tmp_path / "x", capsys, web_caption="caption")
    assert code == 0 and "3 of 3 sampled web captions are numbers" in told


TWO = ["a dog", "a cat"]
KINDS = {
    "bytes": [text.encode() for text in TWO],
    "dictionaries": [{"id": 1, "text": text} for text in TWO],
    "raw": [{"raw": text, "tokens": text.split()} for text in TWO],
    "json": json.dumps(TWO),
    "python": str(TWO),
}


@pytest.mark.parametrize("kind", KINDS)
def test_captions_that_are_no_strings_are_read_in_parquet(tmp_path, capsys, kind):
    _parquet(tmp_path / "x", caption=[KINDS[kind]] * ROWS)
    code, told = _index(tmp_path / "x", capsys)
    assert code == 0 and "web 'a dog'; synthetic 'a cat'" in told and "bad rows:" not in told


@pytest.mark.parametrize("kind", ["dictionaries", "json", "python"])
def test_captions_that_are_no_strings_are_read_in_a_tars_json(tmp_path, capsys, kind):
    _tar(tmp_path / "x", {"caption": [KINDS[kind]] * ROWS})
    code, told = _index(tmp_path / "x", capsys)
    assert code == 0 and "web 'a dog'; synthetic 'a cat'" in told and "bad rows:" not in told


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_translations_are_refused_until_a_field_is_named(tmp_path, capsys, kind):
    cells = [{"en": "a dog", "de": "ein Hund"}] * ROWS
    _parquet(tmp_path / "x", caption=cells) if kind == "parquet" else _tar(tmp_path / "x", {"caption": cells})
    code, told = _index(tmp_path / "x", capsys)
    assert (
        code == 2
        and "{'en': 'a dog', 'de': 'ein Hund'}; name a field where it has some (columns.web_caption: cap" in told
    )
    code, told = _index(tmp_path / "x", capsys, web_caption="caption.en")
    assert code == 0 and "web 'a dog'; synthetic none" in told
    code, told = _index(tmp_path / "x", capsys, web_caption="caption.fr")
    assert code == 2 and "there is no field fr in {'en': 'a dog'" in told


@pytest.mark.parametrize("kind", ["parquet", "tar", "csv"])
def test_the_one_field_of_all_first_rows_is_the_caption_and_is_shown(tmp_path, capsys, kind):
    cells = [json.dumps({"n": number, "value": "a dog"}) for number in range(ROWS)]
    if kind == "csv":
        write_folder(tmp_path / "x", NAMES, ["image\tcaption", *map("\t".join, zip(NAMES, cells, strict=True))])
    else:
        _parquet(tmp_path / "x", caption=cells) if kind == "parquet" else _tar(tmp_path / "x", {"caption": cells})
    code, told = _index(tmp_path / "x", capsys)
    assert code == 0 and "web_caption: caption.value;" in told and "web 'a dog'" in told and " bad" not in told


def test_what_lies_beside_a_null_caption_and_the_text_of_an_error_are_no_captions(tmp_path, capsys):
    _parquet(
        tmp_path / "x", caption=[{"id": f"c{number}", "raw": "a dog" if number else None} for number in range(ROWS)]
    )
    code, told = _index(tmp_path / "x", capsys)
    assert code == 0 and "1 of 6 rows that were looked at have no captions at all, e.g. 0.parquet#0: they" in told
    cells = [{"caption": "a dog"}, {"error": "content policy"}, *[{"caption": "a cat"}] * 4]
    _tar(tmp_path / "y", {"caption": cells})
    code, told = _index(tmp_path / "y", capsys)
    words = "its caption has one field, which is not known to be it: {'error': 'content policy'} (1)"
    assert code == 0 and f"1 of 6 rows that were looked at are bad: {words}" in told


def test_names_that_differ_by_their_case_alone_are_refused_unless_one_is_named(tmp_path, capsys):
    write_folder(tmp_path / "csv", NAMES, ["image,Caption,caption", *(f"{name},SHORT,a dog" for name in NAMES)])
    _parquet(tmp_path / "parquet", Caption=["SHORT"] * ROWS, caption=["a dog"] * ROWS)
    write_parquet(tmp_path / "image" / "0.parquet", {"Image": [jpeg()], "image": [jpeg(1)], "caption": ["a dog"]})
    for kind in ("csv", "parquet"):
        code, told = _index(tmp_path / kind, capsys)
        assert code == 2 and "the columns Caption and caption differ by their case alone; name the one" in told
        code, told = _index(tmp_path / kind, capsys, web_caption="caption")
        assert code == 0 and "web 'a dog'" in told
    code, told = _index(tmp_path / "image", capsys)
    assert code == 2 and "the columns Image and image differ by their case alone" in told and "columns.image" in told


def test_web_captions_that_are_left_out_beside_synthetic_ones_are_told(tmp_path, capsys):
    lines = [f"{name},web {number},made {number}" for name in NAMES[:4] for number in range(2)]
    lines += [f"{name},web,made" for name in NAMES[4:]]
    write_folder(tmp_path / "x", NAMES, ["image,caption,recaption", *lines])
    code, told = _index(tmp_path / "x", capsys)
    words = "    4 of 6 rows that were looked at have more than one web caption, and all but the first are left out"
    assert code == 0 and words in told and "recaption holds the synthetic ones, e.g. 'web 1' of 0.jpg; columns" in told
    code, told = _index(tmp_path / "x", capsys, synthetic_captions=[])
    assert code == 0 and "web 'web 0'; synthetic 'web 1'\n" in told and "left out" not in told


def test_one_caption_that_is_none_is_a_bad_row(tmp_path):
    _tar(tmp_path / "x", {"caption": ["a dog", 7, *TWO, *TWO]})
    rows = read_all(tmp_path / "x")[0]
    assert [bool(row["error"]) for row in rows] == [False, True, False, False, False, False]
    assert rows[1]["error"] == "its caption is no text but int: 7"


def test_a_column_of_bytes_for_captions_is_not_the_image(tmp_path, capsys):
    _parquet(tmp_path / "x", photo=[jpeg()] * ROWS, caption=[b"a dog"] * ROWS)
    assert "image: image;" in _index(tmp_path / "x", capsys)[1]
    write_parquet(tmp_path / "y" / "0.parquet", {"photo": [jpeg()] * ROWS, "caption": [b"a dog"] * ROWS})
    assert "image: photo;" in _index(tmp_path / "y", capsys)[1]


def test_two_parquet_columns_of_one_name_are_refused(tmp_path, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "x").mkdir()
    table = pa.table([[jpeg()] * 2, ["a"] * 2, ["b"] * 2], names=["image", "caption", "caption"])
    pq.write_table(table, tmp_path / "x" / "0.parquet")
    code, told = _index(tmp_path / "x", capsys)
    assert code == 2 and "0.parquet: two columns have the name caption" in told


def test_karpathys_json_is_read_as_it_is(tmp_path, capsys):
    listed = [
        {
            "filename": name,
            "filepath": "val2014",
            "split": "train",
            "sentences": [{"raw": text, "tokens": []} for text in TWO],
        }
        for name in NAMES
    ]
    write_folder(tmp_path / "x", [f"images/{name}" for name in NAMES], [], "notes.txt")
    (tmp_path / "x" / "dataset_coco.json").write_text(json.dumps({"images": listed, "dataset": "coco"}))
    code, told = _index(tmp_path / "x", capsys)
    assert code == 0 and "(folder): 6 rows" in told and "0.jpg: " in told and "web 'a dog'; synthetic 'a cat'" in told
    (tmp_path / "x" / "dataset_coco.json").write_text(json.dumps({"images": [{"filename": "0.jpg"}]}))
    code, told = _index(tmp_path / "x", capsys)
    assert code == 2 and "dataset_coco.json: images[0] lacks 'sentences'; each needs" in told


ODD_CELLS = ["NaN", "null", "5", "true", '["a dog", null]', '"a cat"']
"""Captions in JSON; the third and the fourth are none."""


@pytest.mark.parametrize("name", ["metadata.jsonl", "dataset_flickr8k.json"])
def test_numbers_are_no_captions_and_gaps_are_gaps_in_json(tmp_path, name):
    if name == "metadata.jsonl":
        lines = [f'{{"file_name": "{number}.jpg", "text": {cell}}}' for number, cell in enumerate(ODD_CELLS)]
    else:
        sentences = (f'"sentences": [{{"raw": {cell}}}]' for cell in ODD_CELLS)
        listed = (f'{{"filename": "{number}.jpg", {sentence}}}' for number, sentence in enumerate(sentences))
        lines = [f'{{"images": [{", ".join(listed)}]}}']
    write_folder(tmp_path, NAMES, lines, name)
    rows = read_all(tmp_path)[0]
    assert captions_in(rows) == [("", []), ("", []), ("", []), ("", []), ("a dog", []), ("a cat", [])]
    faults = ["its caption is no text but int: 5", "its caption is no text but bool: True"]
    assert [row["error"] for row in rows] == ["", "", *faults, "", ""]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"images": null}', "no JSON with a list `images` (TypeError: `images` is NoneType)"),
        ('{"images": 5}', "no JSON with a list `images` (TypeError: `images` is int)"),
        ('{"images": [{"filename": "0.jpg", "sentences": ["a dog"]}]}', "images[0] has another form; each needs"),
        ('{"images": [{"filename": "0.jpg", "sentences": null}]}', "images[0] has another form; each needs"),
        ('{"images": ["0.jpg"]}', "images[0] has another form; each needs"),
    ],
)
def test_what_is_not_karpathys_json_is_refused(tmp_path, capsys, content, told):
    write_folder(tmp_path / "x", NAMES, [content], "dataset_coco.json")
    code, said = _index(tmp_path / "x", capsys)
    assert code == 2 and f"dataset_coco.json: {told}" in said.replace("this is ", "")


@pytest.mark.parametrize("name", ["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "dataset.json"])
def test_what_other_programs_say_about_a_data_set_is_no_table(tmp_path, capsys, name):
    write_folder(tmp_path / "x", NAMES, ["image,caption", *(f"{name},a dog" for name in NAMES)])
    (tmp_path / "x" / name).write_text("{}")
    code, told = _index(tmp_path / "x", capsys)
    assert code == 0 and "6 rows" in told
