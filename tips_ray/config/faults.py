"""Describes the mistakes in a config, one sentence each."""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from tips_ray.errors import Faults

MOST_CHARACTERS = 60
"""Most characters of a wrong value that a sentence shows."""
_CHOICE = re.compile(r"constrained-|literal\[|function-|tuple\[")
"""How pydantic names one of the types that a value may have; it is no key."""
_IN_YAML = {"valid tuple": "list", "valid dictionary": "mapping of keys to values"}


def config_faults(schema: type[BaseModel], error: ValidationError) -> Faults:
    """Pydantic's errors as `dotted.key: rule`, with the key that was probably meant or the given value."""
    found: list[Any] = [fault | {"loc": _place(fault["loc"])} for fault in error.errors(include_url=False)]
    rules: dict[tuple, list[Any]] = {}  # a value that may have several types has a fault for each
    for fault in found:
        if not _follows(fault, found):
            rules.setdefault((fault["loc"], fault["type"] in ("extra_forbidden", "missing")), []).append(fault)
    return Faults([_sentence(schema, place, faults) for (place, _), faults in rules.items()])


def _place(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    return tuple(part for part in loc if not (isinstance(part, str) and _CHOICE.match(part)))


def _follows(fault: Any, found: list[Any]) -> bool:
    """Whether the fault follows from another: pydantic also calls a tuple too short if one of its items is wrong."""
    depth = len(fault["loc"])
    return fault["type"] == "too_short" and any(
        len(other["loc"]) > depth and other["loc"][:depth] == fault["loc"] for other in found
    )


def _sentence(schema: type[BaseModel], place: tuple[int | str, ...], faults: list[Any]) -> str:
    fault, key = faults[0], ".".join(map(str, place))
    rule = ", or ".join(each["msg"].removeprefix("Value error, ") for each in faults)
    for words, plain in _IN_YAML.items():
        rule = rule.replace(words, plain)
    if fault["type"] == "extra_forbidden":
        return f"{key}: {rule}; {_meant(schema, place)}"
    if fault["type"] == "missing":
        return f"{key}: {rule}; add it to the config"
    if fault["type"] == "value_error":
        return f"{key}: {rule}" if key else rule
    given = repr(fault["input"])
    return f"{key}: {rule}, not {given if len(given) <= MOST_CHARACTERS else given[:MOST_CHARACTERS] + '...'}"


def _meant(schema: type[BaseModel], place: tuple[int | str, ...]) -> str:
    """The nearest key at the same level, else a key of the same name elsewhere, else all keys at the level."""
    *above, name = map(str, place)
    beside = _keys_at(schema, above)
    near = [".".join([*above, found]) for found in get_close_matches(name, beside, n=1)]
    near += [words for key, words in _places(schema) if key == name]
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(beside)}"


def _keys_at(schema: type[BaseModel], above: list[str]) -> list[str]:
    """Keys at a place; it may lead through positions in lists, names in dictionaries and kinds of an item."""
    found = [schema]
    for part in above:
        inside = [one.model_fields[part].annotation for one in found if part in one.model_fields]
        of_kind = [one for one in found if "kind" in one.model_fields and one.model_fields["kind"].default == part]
        found = [inner for annotation in inside for inner in _schemas(annotation)] or of_kind or found
    return list(dict.fromkeys(name for one in found for name in one.model_fields))


def _places(schema: type[BaseModel], prefix: str = "", item_of: str = "") -> Iterator[tuple[str, str]]:
    """Every key and the words for its place, outer keys first; a key below a list has no dotted name."""
    for name in schema.model_fields:
        yield name, f"{prefix}{name} in an item of {item_of}" if item_of else f"{prefix}{name}"
    for name, field in schema.model_fields.items():
        for inner in _schemas(field.annotation):
            if item_of or not _is_collection(field.annotation):
                yield from _places(inner, f"{prefix}{name}.", item_of)
            else:
                yield from _places(inner, "", f"{prefix}{name}")


def _is_collection(annotation: Any) -> bool:
    """Whether the models in an annotation are items of a list or of a dictionary, also of one that may be None."""
    parts = get_args(annotation)
    return get_origin(annotation) in (tuple, list, dict) or any(map(_is_collection, parts))


def _schemas(annotation: Any) -> list[type[BaseModel]]:
    """The models in an annotation such as `tuple[SourceConfig, ...]`."""
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [schema for part in get_args(annotation) for schema in _schemas(part)]
