"""An import points down: the table is the architecture."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "config": set(),
    "causes": set(),
    "distributed": set(),
    "keyed": set(),
    "batch": set(),
    "scenes": set(),
    "tokenizer": set(),
    "models": {"config", "keyed", "batch", "tokenizer"},
    "losses": {"distributed"},
    "objective": {"config", "batch", "models", "losses"},
    "storage": set(),
    "tracking": {"config", "storage"},
    "report": {"storage", "train"},
    "captioning": {"config", "keyed", "storage"},
    "data": {"config", "keyed", "batch", "storage", "tokenizer", "captioning"},
    # data: images on disk; train: what a run has reached; scenes: exact truth
    "evaluation": {"config", "models", "storage", "data", "scenes", "train"},
    "embedding": {"config", "storage", "data", "evaluation"},
    "train": {"config", "causes", "distributed", "batch", "models", "objective", "storage", "data", "tracking"},
}


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _files() -> list[tuple[str, Path]]:
    package = ROOT / "tips_ray"
    files = [path for path in package.rglob("*.py") if path != package / "__init__.py"]
    return [(path.relative_to(package).parts[0].removesuffix(".py"), path) for path in files]


def test_every_module_imports_only_what_lies_below_it():
    for part, path in _files():
        inside = {name.split(".")[1] for name in _imports(path) if name.startswith("tips_ray.")}
        assert inside <= MAY_IMPORT[part] | {part}, f"{path.name} imports {inside - MAY_IMPORT[part] - {part}}"


def test_only_the_edge_imports_ray():
    for _, path in _files():
        if not path.name.endswith(("pipeline.py", "worker.py", "adapter.py")):
            assert not any(name.split(".")[0] == "ray" for name in _imports(path)), path.name


def test_the_library_imports_neither_jobs_nor_tuning():
    for _, path in _files():
        assert not any(name.split(".")[0] in ("jobs", "tuning") for name in _imports(path)), path.name


def test_config_imports_neither_torch_nor_ray():
    _assert_not_loaded("tips_ray.config", "torch", "ray", "transformers")


def test_planning_and_reading_a_stream_start_without_torch():
    streams = "tips_ray.data.pipeline, tips_ray.captioning.stream, tips_ray.embedding.embed_pipeline"
    restarts = "tips_ray.train.dataset, tips_ray.ray_data_adapter"
    _assert_not_loaded(f"{streams}, {restarts}", "torch", "transformers")


def _assert_not_loaded(modules: str, *unwanted: str) -> None:
    code = f"import sys, {modules}; print([name for name in {unwanted} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]", result.stdout
