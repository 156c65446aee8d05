"""Runs an ablation: makes shared data once, trains and evaluates each row and seed, and writes a table."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tips_ray import storage
from tips_ray.config import RunConfig
from tips_ray.config.ablation import AblationConfig
from tips_ray.data.index_folder import index_of
from tips_ray.launch.checks import run_is_new_or_the_same
from tips_ray.launch.surroundings import KEPT_MEMORY
from tips_ray.launch.vocabulary import trained_vocabulary
from tips_ray.runs.run import config_fingerprint
from tips_ray.runs.tracking import prepare_tracking
from tips_ray.scenes.shards import stored_scenes
from tuning.ablations.chains import Chain, side_by_side
from tuning.ablations.table import RowRun, written_table

SUITE = "suite.yaml"
TRAIN_SEED = 0
"""Seed of the training scenes; the evaluation uses others."""


def run_ablation(config: AblationConfig, out: Path) -> str:
    """Run what is missing, then write `table.md` and `results.json` below `out`; return the table.

    Raises:
        ValueError: `base` is wrong, `out` holds runs with another config, or a metric names a missing score.
        RunFailedError: a run failed.
        KeyboardInterrupt: interrupted; the message says how to continue.
    """
    runs = prepared_runs(config, out)
    run_missing(runs, config.at_a_time, out)
    return written_table(config, runs, out)


def prepared_runs(config: AblationConfig, out: Path) -> list[RowRun]:
    """All rows with all seeds; makes scenes, vocabulary, index and tracking once for all of them.

    Raises:
        ValueError: `base` is wrong, or `out` holds runs with another config.
    """
    places = _places(config, out)
    runs = [
        RowRun(row, seed, config.run(row, seed, str(out / "runs"), places), out / "evaluation" / f"{row}-seed{seed}")
        for row in config.rows
        for seed in config.seeds
    ]
    for one in runs:
        run_is_new_or_the_same(one.config)
    _prepare(runs[0].config, config.scenes)
    (out / SUITE).write_text(yaml.safe_dump(config.suite.model_dump(mode="json"), sort_keys=False))
    return runs


def _places(config: AblationConfig, out: Path) -> dict[str, Any]:
    size = config.base.get("text", {}).get("vocab_size", "default")
    source = out / "scenes" / f"train-{config.scenes}"
    return {"data.sources": [{"uri": str(source)}], "captions.tokenizer": f"{source}-vocabulary-{size}.json"}


def _prepare(run: RunConfig, scenes: int) -> None:
    """Make what several runs would otherwise make at the same time."""
    columns = {"web_caption": "web_caption", "synthetic_caption": "synthetic_caption"}
    source, tokenizer = run.data.sources[0].uri, run.captions.tokenizer
    rate = stored_scenes(source, TRAIN_SEED, scenes, columns)
    print(f"scenes       {scenes:,} {f'rendered, {rate:.0f}/s' if rate else 'are there'}: {source}", flush=True)
    index = index_of(run.data, storage.join(run.storage, "index"))
    assert tokenizer is not None
    if not storage.exists(tokenizer):
        storage.write_bytes(tokenizer, trained_vocabulary(run, index))
    prepare_tracking(run)


def run_missing(runs: Sequence[RowRun], at_a_time: int, out: Path) -> None:
    """Train and evaluate the runs that are not complete.

    Raises:
        RunFailedError: a run failed.
        KeyboardInterrupt: interrupted; the message says how to continue.
    """
    suite = out / SUITE
    missing = [one for one in runs if not _is_complete(one, suite)]
    complete = len(runs) - len(missing)
    names = {one.config.name: one for one in missing}

    def tell(chain: Chain, seconds: float) -> None:
        nonlocal complete
        complete += 1
        _mark_complete(names[chain.name], suite)
        print(f"{chain.name:28} {seconds:.0f} s; {complete} of {len(runs)} are complete", flush=True)

    # The last rows have the most expensive steps; started first, none of them runs alone at the end.
    chains = [_chain(one, suite, out) for one in reversed(missing)]
    try:
        side_by_side(chains, at_a_time, _environment(at_a_time), tell)
    except KeyboardInterrupt:
        told = f"interrupted; {complete} of {len(runs)} runs are complete, the same command goes on with the others"
        raise KeyboardInterrupt(told) from None


def _chain(one: RowRun, suite: Path, out: Path) -> Chain:
    name = one.config.name
    path = out / "configs" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(one.config.model_dump(mode="json"), sort_keys=False))
    command = [sys.executable, "-m", "jobs.cli"]
    pretrain = [*command, "pretrain", str(path), "--without-ray"]
    evaluate = [*command, "evaluate", f"{one.config.storage}/{name}", "--suite", str(suite)]
    return Chain(name, [pretrain, [*evaluate, "--output", str(one.results)]], out / "logs" / f"{name}.log")


def _environment(at_a_time: int) -> dict[str, str]:
    """Environment of the commands: their share of the CPUs, glibc settings that keep freed memory for the next step,
    and no cluster, which an evaluation would otherwise join."""
    threads = max((os.cpu_count() or 1) // at_a_time, 1)
    return {"OMP_NUM_THREADS": str(threads), **KEPT_MEMORY, **os.environ, "RAY_ADDRESS": ""}


def _is_complete(one: RowRun, suite: Path) -> bool:
    """Whether the run was trained and evaluated with exactly these configs."""
    path = one.results / "complete.json"
    return path.is_file() and path.read_text() == _done(one, suite)


def _mark_complete(one: RowRun, suite: Path) -> None:
    (one.results / "complete.json").write_text(_done(one, suite))


def _done(one: RowRun, suite: Path) -> str:
    known = {"run": config_fingerprint(one.config.model_dump(mode="json")), "suite": suite.read_text()}
    return json.dumps(known, indent=1)
