"""A cell of any kind becomes its captions, or says why it has none."""

import json

import numpy as np
import pytest

from tips_ray.data.sources.texts import NoCaptionError, captions_of, cell, column_of, lone_field, texts

TWO = ["a dog", "it's a cat"]


@pytest.mark.parametrize(
    "value",
    [
        TWO,
        [text.encode() for text in TWO],
        [{"id": 3, "text": text} for text in TWO],
        [{"raw": text, "tokens": text.split(), "sentid": "7"} for text in TWO],
        {"id": [1, 2], "text": TWO},
        [[("id", "x"), ("caption", text)] for text in TWO],
        json.dumps(TWO),
        str(TWO),
        str(np.array(TWO)),
        json.dumps([{"id": 1, "caption": text} for text in TWO]),
        str({"captions": TWO, "id": None}),
        str(tuple(TWO)),
        "{'a dog', \"it's a cat\"}",
        "('a dog', None, \"it's a cat\")",
        json.dumps(json.dumps(TWO)),
    ],
)
def test_two_captions_are_found_however_they_are_kept(value):
    assert texts(value) == TWO


@pytest.mark.parametrize(
    "value", ["größe".encode(), "größe", repr(b"gr\xc3\xb6\xc3\x9fe"), {"raw": "größe"}, "('größe',)"]
)
def test_one_caption_is_found_however_it_is_kept(value):
    assert texts(value) == ["größe"]


EMPTY = [None, float("nan"), "", " ", b"", [], [None], "[]", "{}", {"text": None}, {}, {"id": 7, "text": None}]
EMPTY += [{"id": "c0", "raw": None}, {"text": None, "lang": "en"}, {"caption": "", "id": "c0"}, {"en": None, "de": ""}]


@pytest.mark.parametrize("value", EMPTY)
def test_an_empty_cell_has_no_caption(value):
    assert texts(value) == []


@pytest.mark.parametrize(
    "text",
    ["(a dog)", "('a dog')", "(1, 2)", "{{'a'}}", '"[a dog]"', '"a" or "b"']
    + ["[sold] a dog", "a dog [1]", "[1, 2]", "{{ title }}", "[a dog]", '"a dog"', "b'a dog", "{a: 1}", "1984"],
)
def test_a_text_with_brackets_and_digits_is_a_text(text):
    assert texts(text) == [text]


@pytest.mark.parametrize(
    "value, words",
    [
        (7, "no text but int: 7"),
        (True, "no text but bool: True"),
        (b"gr\xf6\xdfe", "byte 2 is no UTF-8"),
        ({"en": "a dog", "de": "ein Hund"}, "several fields, and none is known to be it: {'en': 'a dog'"),
        ('{"en": "a dog", "de": "ein Hund"}', "several fields"),
        (["a dog", 3], "no text but int: 3"),
        ("['a dog', array(['a cat'])]", "looks like a list or dictionary, and cannot be read"),
        ([{"from": "human", "value": "Describe"}], "several fields"),
        ({"en": None, "de": "ein Hund"}, "several fields"),
        ('{"error": "content policy violation"}', "one field, which is not known to be it: {'error': "),
    ],
)
def test_a_cell_that_is_no_caption_says_what_it_is(value, words):
    with pytest.raises(NoCaptionError, match=words) as error:
        texts(value)
    assert len(str(error.value)) < 200
    assert captions_of([{"c": value}], "c", ()) == (("", []), str(error.value))


def test_a_set_with_a_gap_has_one_order_in_every_process():
    assert texts("{'b', None, 'a', 'c'}") == ["a", "b", "c"]


def test_the_first_known_field_with_text_is_the_caption():
    assert texts({"text": "a dog", "caption": ""}) == texts({"text": "a dog", "Caption": None}) == ["a dog"]
    assert texts({"text": "a dog", "caption": "a cat"}) == ["a cat"]


def test_an_unknown_field_counts_only_if_it_is_the_same_one_in_all_cells():
    values = [{"n": 1, "value": "a dog"}, None, "", '{"value": "a cat"}', [{"value": ""}, {"value": "a car"}]]
    assert lone_field(values) == "value" and lone_field([{"de": "ein Hund", "en": None}]) == "de"
    for other in ("a text", {"error": "x"}, {"value": "x", "caption": None}, ["a text"], {"a.b": "x"}):
        assert lone_field([other, *values]) == ""
    assert lone_field([]) == lone_field(["a dog"]) == lone_field([{"a.b": "x"}]) == lone_field(["[1, 2]"]) == ""


def test_a_field_in_dictionaries_lists_and_json_is_reached_by_dots():
    rows = [{"en": "a", "de": "b"}, {"en": "c", "de": "d"}]
    for value in (rows, json.dumps(rows), str(rows), json.dumps(rows).encode()):
        assert cell({"t": value}, "t.en") == ["a", "c"]
    assert cell({"t": {"x": {"en": "a"}}}, "t.x.en") == "a" and cell({"t": "plain"}, "t.en") is None
    assert cell({"t.en": "whole", "t": {"en": "a"}}, "t.en") == "whole" and cell({}, "t.en") is None


def test_the_column_of_a_dotted_name_is_its_longest_part_that_is_there():
    assert column_of("a.b.c", ["a", "a.b"]) == "a.b" and column_of("a.b", ["c"]) == "a.b"


def test_captions_of_several_rows_keep_their_order():
    rows = [{"w": "one", "s": ["a", "b"], "t": "c"}, {"w": "two", "s": "['d']"}]
    assert captions_of(rows, "w", ()) == (("one", ["two"]), "")
    assert captions_of(rows, "w", ("s", "t")) == (("one", ["a", "b", "c", "d"]), "")
    assert captions_of(rows, "", ("t",)) == (("", ["c"]), "")
