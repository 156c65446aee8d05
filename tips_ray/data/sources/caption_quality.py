"""Whether sampled captions look like something else: markup, code, file names, several lines, one text, two languages.

A doubt is a warning and refuses nothing, so a few odd captions among many are none.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tips_ray.data.sources.texts import QUOTED, is_number, shown

LEAST_COUNT, LEAST_SHARE = 2, 0.05
"""Captions of a kind below which nothing is said, unless there are no others."""
REPEATED_COUNT, REPEATED_SHARE = 3, 0.1
JUDGED_CHARACTERS = 1000
"""Characters at the head of a caption that are looked at."""

_TAGS = "a|b|body|br|center|div|em|figcaption|figure|font|h[1-6]|hr|html|i|iframe|img|li|ol|p|script|small|span|strong"
_TAGS += "|style|sub|sup|table|td|th|tr|u|ul"
_MARKUP = re.compile(
    rf"</?(?:{_TAGS})(?:\s+[\w-]+\s*=[^<>]*)?\s*/?>|&(?:[a-z]{{2,8}}|#\d+|#x[\da-f]+);|\]\(https?://", re.IGNORECASE
)
_CODE = re.compile(
    r"""^\s*[\[{].*["']\s*:.*[\]}]?\s*$ | ["']\s*:\s*(?:["'\[{\d]|null|true|false) | \bdef\ \w+\( | \bfunction\s*\w*\(
    | \b(?:var|let|const)\ \w+\s*= | ^\s*(?:import|from)\ \w[\w.]*(?:\ import\ |\ as\ |;) | \#include\s*[<"]
    | \)\s*(?:=>\s*)?\{ | \w\(["'\w\s,.]*\); | ;\s*[\w-]+\s*:[^;{}]+; | \bSELECT\ .+\ FROM\  | \{\{
    | \$[({]\S | <\?(?:php|xml)
    | ^\s*\w+\[?["'\w]*\]?\s*[-+*/]?=\s*[\w"'\[({].*[;)\]}]\s*$""",
    re.VERBOSE | re.DOTALL,
)
_SUFFIXES = "jpe?g|png|gif|webp|bmp|tiff?|heic|avif|svg|raw|cr2|nef|mp4|mov|txt|json|xml|html?|pdf|npy"
_FILE = re.compile(
    rf"""\S(?:.*\S)?\.(?:{_SUFFIXES}) | (?:https?://|www\.|s3://|file:/)\S+
    | (?:img|dsc[fn]?|image|photo|pic|pict|p|pxl|mvi|screenshot|screen\ shot)[-_ ]?\d{{3,}}\S* | [\da-f]{{16,}}
    | [\da-f]{{8}}(?:-[\da-f]{{4}}){{3}}-[\da-f]{{12}} | [^\W_]+(?:_[^\W_]+){{2,}}""",
    re.VERBOSE | re.IGNORECASE,
)
_BROKEN = re.compile("\ufffd|Ã[\x80-\xbf]|â€|Â[\xa0-\xbf]")
_SCRIPTS = {"CJK": "Chinese or Japanese", "HIRAGANA": "Chinese or Japanese", "KATAKANA": "Chinese or Japanese"}
_SCRIPTS |= {name: name.title() for name in ("LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI", "HANGUL")}
_SCRIPTS |= {name: name.title() for name in ("THAI", "BENGALI", "TAMIL", "TELUGU", "GEORGIAN", "ARMENIAN", "KHMER")}
_WORDS = {
    "English": "the and with of is are an on at his her from in to a by for near its",
    "German": "der die das und mit ein eine einem einer auf ist im in von den dem neben vor für",
    "French": "le la les un une des dans avec est sur et du au en devant près qui",
    "Spanish": "el la los las un una con en y del es por sobre junto al para",
    "Italian": "il lo la gli un una con di della del che e è nel nella sono su",
    "Portuguese": "o os as um uma com do da em na no ao e é para sobre",
    "Dutch": "een het van met op en de is zijn naast voor in aan",
    "Polish": "i w z na się jest do przez obok dwa od pod nad",
    "Turkish": "bir ve ile için bu olan üzerinde var yanında",
    "Indonesian": "yang dan di dengan seorang sebuah dari untuk pada",
}
_LANGUAGES = {language: frozenset(words.split()) for language, words in _WORDS.items()}


class Doubt(NamedTuple):
    """What some captions of a sample look like."""

    which: list[int]
    """Places of these captions in the sample."""
    what: str
    """`of N captions ...`."""
    cure: str


def doubts(captions: Sequence[str]) -> list[Doubt]:
    """What is odd about a sample of one column's captions; nothing for sentences in one language.

    A pure function of the captions. Each of them counts for the first kind of markup, code, numbers and file names that
    it looks like.
    """
    kinds = [_kind(caption[:JUDGED_CHARACTERS]) for caption in captions]
    found = []
    for name, (_, what, cure) in _KINDS.items():
        found.append(Doubt([at for at, kind in enumerate(kinds) if kind == name], what, cure))
    foreign = _of_other_tongues([caption if not kind else "" for caption, kind in zip(captions, kinds, strict=True)])
    found = [doubt for doubt in (*found, *foreign) if _are_many(len(doubt.which), len(captions))]
    return [*found, *_of_several_lines(captions), *_repeated(captions)]


def described(doubt: Doubt, sampled: int, column: str, example: str, place: str) -> str:
    """A doubt as one sentence with its count, an example and what to do.

    Args:
        doubt: one of `doubts`.
        sampled: captions in the sample.
        column: what they are called (`web captions`).
        example: the first caption that it is about.
        place: where that is.
    """
    what = f"{len(doubt.which)} of {sampled} sampled {column} {doubt.what}"
    return f"{what}, e.g. {shown(example)} of {place}; {doubt.cure}"


def _are_many(count: int, of: int) -> bool:
    return count > 0 and (count == of or count >= max(LEAST_COUNT, LEAST_SHARE * of))


def _kind(caption: str) -> str:
    return next((name for name, (is_such, _, _) in _KINDS.items() if is_such(caption)), "")


def _has_no_word(caption: str) -> bool:
    text = caption.strip()
    return is_number(text) or bool(text) and not any(letter.isalpha() for letter in text)


_NAME_ANOTHER = "if another column holds sentences, name it in `columns` of this source"
_KINDS: dict[str, tuple[Callable[[str], object], str, str]] = {
    "markup": (_MARKUP.search, "hold markup such as HTML", "take it out, because the model would learn it as words"),
    "code": (_CODE.search, "look like code or JSON", f"a field of JSON is COLUMN.FIELD; {_NAME_ANOTHER}"),
    "numbers": (_has_no_word, "are numbers or signs without a word", _NAME_ANOTHER),
    "files": (lambda caption: _FILE.fullmatch(caption.strip()), "look like file names or addresses", _NAME_ANOTHER),
    "quoted": (
        lambda caption: QUOTED.fullmatch(caption.strip()),
        "are in quotation marks, as strings of JSON",
        "write the texts without them, because the model would learn the marks and backslashes",
    ),
    "broken": (_BROKEN.search, "hold letters that were broken by a wrong encoding", "write the texts again as UTF-8"),
}  # fmt: skip
"""By name: the test, the words for it, the cure. The first kind that fits is the caption's."""


def _of_several_lines(captions: Sequence[str]) -> list[Doubt]:
    """Captions whose lines differ, if most are so; paragraphs, with blank lines between, are one text."""
    lines = [[line.strip() for line in caption.splitlines()] for caption in captions]
    which = [at for at, texts in enumerate(lines) if len({*texts}) > 1 and all(texts)]
    what = "have several lines, which are read as one caption"
    cure = "if each line is a caption, write a list into KEY.json, or a line of a CSV for each"
    return [Doubt(which, what, cure)] if 2 * len(which) > len(captions) else []


def _repeated(captions: Sequence[str]) -> list[Doubt]:
    """The commonest text, where its share is large or fewer than half of the captions are different."""
    counts = Counter(captions)
    text, count = counts.most_common(1)[0] if captions else ("", 0)
    is_common = count >= REPEATED_SHARE * len(captions) or 2 * len(counts) < len(captions)
    if count < REPEATED_COUNT or not is_common:
        return []
    which = [at for at, caption in enumerate(captions) if caption == text]
    what = f"are one text ({count / len(captions):.0%}), and {len(counts)} texts are different"
    return [Doubt(which, what, "check that each image has a caption of its own")]


def _of_other_tongues(captions: Sequence[str]) -> list[Doubt]:
    """Captions of other scripts than most, and those of the commonest script in other languages than most."""
    scripts = [_script(caption) for caption in captions]
    script = _commonest(scripts)
    latin = [caption if script == one == "Latin" else "" for caption, one in zip(captions, scripts, strict=True)]
    language = _commonest([_language(caption) for caption in latin])
    languages = [_language(caption, language) for caption in latin]
    return [_other(scripts, script, "script"), _other(languages, language, "language")]


def _other(found: list[str], most: str, kind: str) -> Doubt:
    which = [at for at, one in enumerate(found) if one not in ("", most)]
    names = Counter(found[at] for at in which).most_common(3)
    counted = ", ".join(f"{count} {name}" for name, count in names)
    what = f"are of another {kind} than most ({counted}; most are {most})"
    return Doubt(which, what, "leave these rows out unless the model should learn them")


def _commonest(found: list[str]) -> str:
    counts = Counter(one for one in found if one)
    return counts.most_common(1)[0][0] if counts else ""


def _script(caption: str) -> str:
    """The script of most letters; empty where there are none of a known script."""
    names = (unicodedata.name(letter, "").partition(" ")[0] for letter in caption[:100] if letter.isalpha())
    return _commonest([_SCRIPTS.get(name, "") for name in names])


def _language(caption: str, most: str = "") -> str:
    """The language with the most small words in a caption; empty where fewer than two or those of others are as many.

    Names of places mix languages: against `most`, the language of most captions, it must have more than twice as many.
    """
    words = set(re.findall(r"\w+", caption.lower()))
    counts = {name: len(words & small) for name, small in _LANGUAGES.items()}
    (name, count), (_, second) = sorted(counts.items(), key=lambda one: -one[1])[:2]
    is_clear = count >= 2 and count > second and (name == most or count > 2 * counts.get(most, 0))
    return name if is_clear else ""
