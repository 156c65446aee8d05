"""Delimited text of many dialects: every row comes out as it was written, or the reading is refused."""

import csv
import io

import pytest
from fuzz import fuzz
from hypothesis import given
from hypothesis import strategies as st

from tips_ray.data.sources.tables import header, read_table

NAMES = [f"{number:03d}.jpg" for number in range(20)]


def _read(*lines: str) -> list[list[str]]:
    table = read_table("\n".join(lines) + "\n", "x.csv")
    assert table.misfits == []
    return [line.cells for line in table.lines]


def test_a_quotation_mark_that_never_closes_takes_in_no_other_line():
    texts = {3: '"a dog', 9: '"a cat', 12: '"happy" a dog'}
    rows = [[name, texts.get(number, "a dog")] for number, name in enumerate(NAMES)]
    assert _read("filepath\ttitle", *("\t".join(row) for row in rows)) == rows


def test_a_cell_that_closes_in_the_next_row_does_not_take_it_in():
    texts = {7: '"a dog', 8: 'end"'}
    rows = [[name, texts.get(number, "a dog")] for number, name in enumerate(NAMES)]
    assert _read("image\tcaption", *("\t".join(row) for row in rows)) == rows


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_quotation_marks_that_open_and_close_in_two_rows_take_in_no_line_between(delimiter):
    texts = {3: '"a dog', 9: 'a pipe of 9"'}
    rows = [[name, texts.get(number, "a dog")] for number, name in enumerate(NAMES)]
    assert _read(f"image{delimiter}caption", *(delimiter.join(row) for row in rows)) == rows


def test_a_table_in_which_a_cell_takes_in_rows_and_others_need_quotation_marks_is_refused():
    rows = ['1.jpg,"a dog', '2.jpg,a pipe of 9"', '3.jpg,"one, two"', "4.jpg,a dog", "5.jpg,a dog"]
    words = "x.csv: the quotation mark in line 2 opens a cell that takes in line 3, .* \\(line 4 has 3\\); put a text"
    with pytest.raises(ValueError, match=words):
        _read("image,caption", *rows)


def test_texts_of_several_lines_in_quotation_marks_stay_whole():
    lines = ["image,caption", 'a.jpg,"a dog\nruns, far"', 'b.jpg,"two ""words"""', "c.jpg,plain"]
    assert _read(*lines) == [["a.jpg", "a dog\nruns, far"], ["b.jpg", 'two "words"'], ["c.jpg", "plain"]]


def test_quotation_marks_escaped_by_a_backslash_are_read():
    lines = ["image,caption", r'a.jpg,"a \"big\" dog, far"', r"b.jpg,a cat\, near", "c.jpg,plain"]
    assert _read(*lines) == [["a.jpg", 'a "big" dog, far'], ["b.jpg", "a cat, near"], ["c.jpg", "plain"]]


def test_a_backslash_that_escapes_nothing_is_a_part_of_the_text():
    assert _read("image,caption", "x\\a.jpg,one", r"b.jpg,C:\dir") == [["x\\a.jpg", "one"], ["b.jpg", "C:\\dir"]]


def test_a_blank_may_stand_before_a_quotation_mark():
    assert _read("image, caption", 'a.jpg, "one, two"', "b.jpg, three") == [["a.jpg", "one, two"], ["b.jpg", "three"]]


def test_text_behind_a_closing_quotation_mark_is_accepted_where_no_other_way_fits():
    assert _read("image,caption", 'a.jpg,"one, two"', 'b.jpg,"big" dog')[1] == ["b.jpg", "big dog"]


def test_commas_outside_of_quotation_marks_are_refused_with_their_lines():
    lines = [f"{name},a dog, on a wall" for name in NAMES]
    with pytest.raises(
        ValueError, match=r"x.csv: lines .* the 2 columns \(line 2 has 3, line 3 has 3, .*15 more lines"
    ):
        _read("image,caption", *lines)


@pytest.mark.parametrize("cell", ["word " * 30_000, '"' + "word, " * 30_000 + '"'])
def test_a_cell_that_is_too_long_is_refused_with_what_to_do(cell):
    with pytest.raises(ValueError, match=r"line 2 has a cell of more than 131,072 characters.*; shorten its text, or"):
        read_table(f"image,caption\n0.jpg,{cell}\n1.jpg,dog\n", "x.csv")


def test_few_lines_without_their_delimiter_are_set_apart_with_their_numbers():
    lines = [f"{number}.jpg| {number % 5}| a dog" for number in range(300)]
    lines[200] = "200.jpg| 4   A dog runs"
    table = read_table("\n".join(["image_name| comment_number| comment", *lines]), "results.csv")
    assert table.columns == ["image_name", "comment_number", "comment"] and len(table.lines) == 299
    assert [(line.number, len(line.cells)) for line in table.misfits] == [(202, 2)]


def test_one_of_few_lines_without_its_delimiter_is_refused():
    with pytest.raises(ValueError, match="line 3 has 1"):
        _read("image,caption", "a.jpg,one", "b.jpg two", "c.jpg,three")


def test_empty_cells_may_be_left_out_at_the_end_or_added_behind_it():
    lines = ["image,caption,more", "a.jpg,one", "b.jpg,two,x,,", "c.jpg,three", "d.jpg"]
    assert _read(*lines) == [["a.jpg", "one"], ["b.jpg", "two", "x"], ["c.jpg", "three"], ["d.jpg"]]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_of_all_systems_and_a_byte_order_mark_are_read(end):
    table = read_table("\ufeff" + end.join(["image;caption", "a.jpg;one", "", "b.jpg;two"]), "x.csv")
    assert table.columns == ["image", "caption"] and [line.number for line in table.lines] == [2, 4]


def test_the_header_is_read_without_quotation_marks_and_blanks():
    assert header('"image" ;  "caption"; \nx') == ["image", "caption"] and header("") == []


def _standard(rows: list[list[str]], delimiter: str) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _quoted_all(rows: list[list[str]], delimiter: str) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator="\r\n", quoting=csv.QUOTE_ALL).writerows(rows)
    return out.getvalue()


def _escaped(rows: list[list[str]], delimiter: str) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, doublequote=False, escapechar="\\", quoting=csv.QUOTE_ALL).writerows(rows)
    return out.getvalue()


def _without_rule(rows: list[list[str]], delimiter: str) -> str:
    return "".join(delimiter.join(row) + "\n" for row in rows)


ODD = [
    '"a dog',
    '9" pipe',
    '"happy" dog',
    "dog, cat",
    "two\nlines, x",
    "C:\\dir\\",
    '"',
    '\\"',
    '["a", "b"]',
    'end"',
    "a; b|c",
]
texts = st.sampled_from(["a dog runs", "a cat", *ODD]) | st.text(st.sampled_from('ab 9"",;\t|\\\'\n[{é'), max_size=12)


@fuzz
@given(
    st.lists(texts, min_size=1, max_size=12),
    st.sampled_from(",\t;|"),
    st.sampled_from([_standard, _quoted_all, _escaped, _without_rule]),
)
def test_every_row_is_read_as_it_was_written_or_the_table_is_refused(captions, delimiter, write):
    if write is _without_rule:  # delimiters and blanks at the end of a line count as empty cells
        captions = [text.replace("\n", " ").rstrip(f"{delimiter} \t") for text in captions]
    rows = [[f"{number}.jpg", text] for number, text in enumerate(captions)]
    try:
        table = read_table(write([["image", "caption"], *rows], delimiter), "x.csv")
    except ValueError as error:
        assert "line " in str(error) and len(str(error)) < 600
        return
    assert len(table.lines) + len(table.misfits) == len(rows)
    same = str if write in (_standard, _quoted_all) else _words
    for line in table.lines:
        assert same(line.cells[1]) == same(captions[int(line.cells[0].removesuffix(".jpg"))])


def _words(text: str) -> str:
    """Without the marks that mean themselves in one dialect and enclose or escape in another."""
    return text.replace('"', "").replace("\\", "")
