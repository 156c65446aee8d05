"""YAML file + dotted overrides -> one validated config."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel

ConfigT = TypeVar("ConfigT", bound=BaseModel)


def load_config(schema: type[ConfigT], path: Path, overrides: Sequence[str] = ()) -> ConfigT:
    """Read `path`, apply overrides such as `schedule.peak_lr=1e-3`, then validate once.

    Raises:
        ValueError: an override without `=`, or pydantic's ValidationError, which lists every wrong key with its path.
    """
    return override(schema, yaml.safe_load(path.read_text()) or {}, dict(map(_parse, overrides)))


def override(schema: type[ConfigT], tree: Mapping[str, Any], values: Mapping[str, Any]) -> ConfigT:
    """Validate `tree` with each dotted key of `values` replaced; a Tune trial enters here."""
    for dotted_key, value in values.items():
        tree = _with_value(tree, dotted_key.split("."), value)
    return schema.model_validate(tree)


def _with_value(tree: Mapping[str, Any], keys: list[str], value: Any) -> dict[str, Any]:
    head, *rest = keys
    return {**tree, head: _with_value(tree.get(head) or {}, rest, value) if rest else value}


def _parse(text: str) -> tuple[str, Any]:
    dotted_key, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"override {text!r} is not of the form dotted.key=value")
    return dotted_key, yaml.safe_load(value)
