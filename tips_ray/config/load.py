"""YAML file + dotted overrides -> one validated config."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from tips_ray.config.faults import config_faults
from tips_ray.errors import listed

ConfigT = TypeVar("ConfigT", bound=BaseModel)
BRACES = """, and a text with braces once more: 'data.sources=[{uri: "shards/{00000..00012}.tar"}]'"""


def load_config(schema: type[ConfigT], path: Path, overrides: Sequence[str] = ()) -> ConfigT:
    """Read `path`, apply overrides such as `schedule.peak_lr=1e-3`, then validate once.

    Raises:
        ValueError: there is no such file, it is no YAML mapping or the config of another command, or an override has
            no `=`; or Faults: one sentence per wrong key or value.
    """
    tree = config_tree(path)
    if tree and not tree.keys() & schema.model_fields.keys():
        raise ValueError(
            f"{path}: none of its keys ({listed(map(str, tree))}) belongs to a {schema.__name__}; is it the config "
            f"of another command? A {schema.__name__} has {', '.join(schema.model_fields)}"
        )
    return override(schema, tree, override_values(overrides))


def override_values(overrides: Sequence[str]) -> dict[str, Any]:
    """Overrides such as `schedule.peak_lr=1e-3` as dotted keys with values parsed as YAML.

    Raises:
        ValueError: an override has no `=`, or its value is no YAML.
    """
    return dict(map(_parse, overrides))


def override(schema: type[ConfigT], tree: Mapping[str, Any], values: Mapping[str, Any]) -> ConfigT:
    """Validate `tree` with each dotted key of `values` replaced."""
    for dotted_key, value in values.items():
        tree = _with_value(tree, dotted_key.split("."), value, dotted_key)
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise config_faults(schema, error) from None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which by itself lets the last of two equal keys win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """The mapping of a node.

        Raises:
            YAMLError: a key is given twice.
        """
        first: dict[tuple[str, str], yaml.Node] = {}
        for key, _ in node.value:  # keys of `<<` are not among them yet: those may be replaced
            if isinstance(key, yaml.ScalarNode) and first.setdefault((key.tag, key.value), key) is not key:
                raise _given_twice(first[key.tag, key.value], key)
        return super().construct_mapping(node, deep)


def _number(loader: _Loader, node: yaml.ScalarNode) -> Any:
    """
    Raises:
        YAMLError: YAML 1.1 reads another number than is written: 010 as 8, 1:30 as 90.
    """
    if ":" in node.value or re.fullmatch(r"[-+]?0[0-9_]+", node.value):
        problem = (
            f"{node.value} would be read as another number; write it without {':' if ':' in node.value else 'the 0'}"
        )
        raise yaml.MarkedYAMLError(problem=f"{problem}, or quote it where it is a text", problem_mark=node.start_mark)
    return getattr(loader, f"construct_yaml_{node.tag.rpartition(':')[2]}")(node)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _number)


def _given_twice(first: yaml.Node, second: yaml.ScalarNode) -> yaml.MarkedYAMLError:
    lines = first.start_mark.line + 1, second.start_mark.line + 1
    where = "" if lines[0] == lines[1] else f" (lines {lines[0]} and {lines[1]})"
    problem = f"the key {second.value!r} is given twice{where}, and only the last would count"
    return yaml.MarkedYAMLError(problem=problem, problem_mark=second.start_mark)


def config_tree(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        ValueError: there is no such file, or it is no YAML mapping.
    """
    try:
        tree = _loaded(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file; give the YAML file of the config") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ValueError(f"{path}: cannot be read as text ({reason}); give the YAML file of the config") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}{_yaml_fault(error)}; correct the YAML there") from None
    if not isinstance(tree, dict | None):
        raise ValueError(f"{path}: holds a {type(tree).__name__}, a config is a mapping of `key: value` lines")
    return tree or {}


def _loaded(text: str) -> Any:
    """The value that a YAML text stands for.

    Raises:
        YAMLError: the text is no YAML, a key is given twice, or a value such as a date does not exist.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except ValueError as error:  # of a date, of a number of thousands of digits
        raise yaml.YAMLError(f"a value in it cannot be read ({error})") from None


def _with_value(tree: Mapping[str, Any], keys: list[str], value: Any, dotted_key: str) -> dict[str, Any]:
    head, *rest = keys
    below = tree.get(head) or {}
    if rest and not isinstance(below, Mapping):
        place, kind = dotted_key.removesuffix("." + ".".join(rest)), type(below).__name__
        whole = f"{place}=[...]" if isinstance(below, list) else f"{place}=..."
        raise ValueError(f"override {dotted_key}: {place} is a {kind} without keys; give it whole, as {whole}")
    return {**tree, head: _with_value(below, rest, value, dotted_key) if rest else value}


def _parse(text: str) -> tuple[str, Any]:
    dotted_key, separator, value = text.partition("=")
    if not separator or not all(dotted_key.split(".")):
        raise ValueError(f"override {text!r} is not of the form dotted.key=value")
    try:
        return dotted_key, _loaded(value)
    except yaml.YAMLError as error:
        cure = f"quote the whole of it for the shell{BRACES if '..' in value else ''}"
        raise ValueError(f"override {text!r}{_yaml_fault(error)}; {cure}") from None


def _yaml_fault(error: yaml.YAMLError) -> str:
    """Position and problem, such as ` line 3: mapping values are not allowed here`."""
    mark = getattr(error, "problem_mark", None)
    return f" line {mark.line + 1}: {error.problem}" if mark else f": {error}"  # pyright: ignore
