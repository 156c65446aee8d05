"""Describes the mistakes in a config, one sentence each."""

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from tips_ray.errors import Faults

MOST_CHARACTERS = 60
"""Most characters of a wrong value that a sentence shows."""


def config_faults(schema: type[BaseModel], error: ValidationError) -> Faults:
    """Pydantic's errors as `dotted.key: rule`, with the key that was probably meant or the given value."""
    found = error.errors(include_url=False)
    return Faults([_sentence(schema, fault["loc"], fault) for fault in found if not _follows(fault, found)])


def _follows(fault: Any, found: list[Any]) -> bool:
    """Whether the fault follows from another: pydantic also calls a tuple too short if one of its items is wrong."""
    depth = len(fault["loc"])
    return fault["type"] == "too_short" and any(
        len(other["loc"]) > depth and other["loc"][:depth] == fault["loc"] for other in found
    )


def _sentence(schema: type[BaseModel], place: tuple[int | str, ...], fault: Any) -> str:
    key, rule = ".".join(map(str, place)), fault["msg"].removeprefix("Value error, ")
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
    names = [part for part in above if not part.isdigit()]  # a schema's keys have no positions in lists
    keys = [key.split(".") for key in _keys(schema)]
    beside = [key[-1] for key in keys if key[:-1] == names]
    near = [".".join([*above, found]) for found in get_close_matches(name, beside, n=1)]
    near += [".".join(key) for key in keys if key[-1] == name]
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(beside)}"


def _keys(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key, outer ones first."""
    yield from (prefix + name for name in schema.model_fields)
    for name, field in schema.model_fields.items():
        for inner in _schemas(field.annotation):
            yield from _keys(inner, f"{prefix}{name}.")


def _schemas(annotation: Any) -> list[type[BaseModel]]:
    """The models in an annotation such as `tuple[SourceConfig, ...]`."""
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [schema for part in get_args(annotation) for schema in _schemas(part)]
