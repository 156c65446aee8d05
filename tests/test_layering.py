"""An import points down: the tables are the architecture."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
LEAVES = {
    "errors",
    "words",
    "console",
    "config",
    "storage",
    "keyed",
    "batch",
    "distributed",
    "memory_kills",
    "precision",
    "devices",
}
"""Packages that all packages above may import; among themselves `config` may import `errors`, `devices` `config`."""
MAY_IMPORT = {
    "errors": set(),
    "words": set(),
    "console": set(),
    "config": {"errors"},
    "storage": set(),
    "keyed": set(),
    "batch": set(),
    "memory_kills": set(),
    "distributed": set(),
    "precision": set(),
    "devices": {"config"},
    "tokenizer": LEAVES,
    "scenes": LEAVES,
    "ray_data_adapter": set(),
    "losses": LEAVES,
    "models": LEAVES | {"tokenizer"},
    "objective": LEAVES | {"models", "losses"},
    "data": LEAVES | {"tokenizer", "ray_data_adapter"},
    "captioning": LEAVES | {"data", "ray_data_adapter"},
    "runs": LEAVES,
    "checkpoint_pickles": LEAVES | {"runs"},
    "checkpoint_io": LEAVES | {"runs", "checkpoint_pickles"},
    "weights": LEAVES | {"tokenizer", "models", "runs", "checkpoint_io"},
    "report": LEAVES | {"runs"},
    "train": LEAVES | {"models", "objective", "data", "ray_data_adapter", "runs", "checkpoint_io", "weights"},
    # data: images on disk; scenes: exact truth; report: features as colours
    "evaluation": LEAVES | {"tokenizer", "models", "scenes", "data", "ray_data_adapter", "weights", "report"},
    "embedding": LEAVES | {"data", "ray_data_adapter", "evaluation"},
    "curation": LEAVES | {"data", "ray_data_adapter", "report"},
    "launch": LEAVES
    | {"tokenizer", "data", "captioning", "ray_data_adapter", "runs", "report", "weights", "train"}
    # the commands that use a finished model on the cluster
    | {"evaluation", "embedding", "curation"},
    # what a run needs, from the very step; nothing but its command imports it
    "planning": LEAVES | {"models", "objective", "data", "runs", "train", "launch"},
    # it shows all of it at once, and keeps what no other part needs
    "demo": LEAVES | {"models", "scenes", "data", "runs", "train", "evaluation", "report", "launch"},
}
MAY_USE_RAY = {
    "tips_ray/ray_data_adapter.py",
    "tips_ray/data/pipeline.py",
    "tips_ray/data/shared_stream.py",
    "tips_ray/data/index_pipeline.py",
    "tips_ray/captioning/stream.py",
    "tips_ray/embedding/embed_pipeline.py",
    "tips_ray/curation/pipeline.py",
    "tips_ray/evaluation/suite_pipeline.py",
    "tips_ray/train/adapter.py",
    "tips_ray/train/dataset.py",
    "tips_ray/train/monitoring.py",
    "tips_ray/train/worker.py",
    "tips_ray/launch/",
    "tuning/",
    "cluster/",
}
ADAPTERS = {"tips_ray/ray_data_adapter.py", "tips_ray/train/adapter.py"}
OF_RAY_INSIDE = {"_logical_plan", "_plan", "_coordinator_client", "_latest_reserved_resources", "_latest_monitor_time"}
"""Attributes of Ray's objects that are not part of its interface."""
EXPORTS = {f"tips_ray.models.{name}" for name in ("model", "official", "timm_folder", "transformers_folder")}
"""`TipsModel.export_*` calls the writers, which import `TipsModel`: the only import cycle."""


class Module(NamedTuple):
    """One of our files, and all that it imports."""

    name: str
    place: str
    """Path below the root."""
    text: str
    imports: frozenset[str]
    """Dotted names; of `from a import b` both `a` and `a.b`."""
    attributes: frozenset[str]
    """Names after a dot."""

    @property
    def part(self) -> str:
        """`train` of `tips_ray.train.loop`."""
        return self.name.split(".")[1] if "." in self.name else ""


@cache
def _modules() -> dict[str, Module]:
    found = {}
    for top in ("tips_ray", "jobs", "tuning", "cluster"):
        for path in (ROOT / top).rglob("*.py"):
            place = str(path.relative_to(ROOT))
            name = place.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
            nodes = list(ast.walk(ast.parse(path.read_text())))
            attributes = frozenset(node.attr for node in nodes if isinstance(node, ast.Attribute))
            found[name] = Module(name, place, path.read_text(), frozenset(_imports(nodes)), attributes)
    return found


def _imports(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _library() -> list[Module]:
    return [module for name, module in _modules().items() if name.startswith("tips_ray.")]


def _is_of(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_every_module_imports_only_what_lies_below_it():
    for module in _library():
        inside = {name.split(".")[1] for name in module.imports if name.startswith("tips_ray.")}
        assert inside <= MAY_IMPORT[module.part] | {module.part}, (
            f"{module.place} imports {inside - MAY_IMPORT[module.part] - {module.part}}"
        )


def test_the_table_itself_has_no_circle():
    order: list[str] = []
    while len(order) < len(MAY_IMPORT):
        free = [part for part, below in MAY_IMPORT.items() if part not in order and below <= {*order, part}]
        assert free, f"{set(MAY_IMPORT) - set(order)} import each other"
        order += free


def test_nothing_but_the_commands_imports_jobs():
    for module in _modules().values():
        if not module.name.startswith("jobs."):
            assert not any(_is_of(name, "jobs") for name in module.imports), module.place


def test_the_library_does_not_import_tuning_or_clusters():
    for module in _library():
        assert not any(_is_of(name, top) for name in module.imports for top in ("tuning", "cluster")), module.place


def test_clusters_are_described_without_training_and_tuning():
    for module in _modules().values():
        inside = {name.split(".")[1] for name in module.imports if name.startswith("tips_ray.")}
        if _is_of(module.name, "cluster"):
            assert inside <= LEAVES | {"launch"}, module.place
            assert not any(_is_of(name, "tuning") for name in module.imports), module.place


def test_who_uses_finished_models_and_runs_does_not_import_the_training_loop():
    for module in _library():
        if module.part in ("evaluation", "report", "embedding", "runs", "weights", "checkpoint_io"):
            assert not any(_is_of(name, "tips_ray.train") for name in module.imports), module.place


def test_ray_is_used_where_the_table_says_so():
    folders = tuple(place for place in MAY_USE_RAY if place[-1] == "/")
    for module in _modules().values():
        if module.place in MAY_USE_RAY or module.place.startswith(folders):
            continue
        assert not any(_is_of(name, "ray") for name in module.imports), f"{module.place} imports ray"
        assert ".remote(" not in module.text, f"{module.place} calls an actor or a task of Ray"


def test_what_is_private_in_ray_stands_in_the_adapters():
    for module in _modules().values():
        if module.place in ADAPTERS:
            continue
        private = [name for name in module.imports if _is_of(name, "ray") and re.search(r"\._", name)]
        assert not private, f"{module.place} imports {private}"
        assert not module.attributes & OF_RAY_INSIDE, f"{module.place} reads {module.attributes & OF_RAY_INSIDE}"


def test_no_modules_import_each_other_but_the_models_export():
    edges = {name: set(_imported(module)) for name, module in _modules().items()}
    circles = [circle for circle in _circles(edges) if not circle <= EXPORTS]
    assert not circles, circles


def _imported(module: Module) -> Iterator[str]:
    """Our modules; a package itself only where a name of its `__init__` is imported, not on the path to a module."""
    for name in module.imports & _modules().keys():
        leads_on = any(
            other != name and other.startswith(f"{name}.") and other in _modules() for other in module.imports
        )
        if not leads_on:
            yield name


def _circles(edges: dict[str, set[str]]) -> list[set[str]]:
    """Sets of modules that reach each other."""
    reached = {name: _reached(name, edges) for name in edges}
    groups = {frozenset(other for other in reached[name] if name in reached[other]) for name in edges}
    return [set(group) for group in groups if len(group) > 1]


def _reached(name: str, edges: dict[str, set[str]]) -> set[str]:
    found, waiting = set(), list(edges[name])
    while waiting:
        other = waiting.pop()
        if other not in found and other != name:
            found.add(other)
            waiting += edges[other]
    return found | {name}


@pytest.mark.heavy
def test_config_and_runs_import_neither_torch_nor_ray():
    _assert_not_loaded("tips_ray.config", "torch", "ray", "transformers", "pyarrow")
    _assert_not_loaded("tips_ray.runs", "torch", "ray", "transformers", "mlflow")


@pytest.mark.heavy
def test_planning_and_reading_a_stream_start_without_torch():
    streams = "tips_ray.data.pipeline, tips_ray.captioning.stream, tips_ray.embedding.embed_pipeline"
    restarts = "tips_ray.train.dataset, tips_ray.ray_data_adapter"
    _assert_not_loaded(f"{streams}, {restarts}", "torch", "transformers")


@pytest.mark.heavy
def test_a_supervisor_starts_without_torch_and_ray():
    _assert_not_loaded("tips_ray.launch.supervisor", "torch", "ray")


def _assert_not_loaded(modules: str, *unwanted: str) -> None:
    code = f"import sys, {modules}; print([name for name in {unwanted} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]", result.stdout
