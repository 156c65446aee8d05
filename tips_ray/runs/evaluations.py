"""Evaluations of a run's own checkpoints: where they are, which wait, which is the best, and whether patience ran out.

All of it is a function of the scores by step, whenever they came: `evaluation/step-XXXXXXXX/scores.json` in the run
folder (docs/formats.md). A checkpoint that waits for its evaluation is never deleted.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from math import isfinite
from typing import Any

from pydantic import ValidationError

from tips_ray import storage
from tips_ray.config import RunConfig
from tips_ray.config.score import EvaluationConfig
from tips_ray.runs.checkpoint import CheckpointInfo, checkpoints_of, drop_old_checkpoints, list_checkpoints

SCORES = "scores.json"
AT_ONCE = 16
"""Files that are read at a time: on an object store each takes a request."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluated checkpoint."""

    step: int
    checkpoint: str
    """URI."""
    time: str = ""
    """When it ended, in UTC."""
    seconds: float = 0.0
    scores: Mapping[str, float | None] = field(default_factory=dict)
    """`task/score` -> value; None: it is not finite."""
    standard_errors: Mapping[str, float | None] = field(default_factory=dict)
    """Over the test images, of those scores that have one."""
    data: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Task -> name and fingerprint of its data."""
    weights: str = ""
    """Fingerprint of the encoder."""
    failure: str = ""
    """Why there are no scores, or none by the name that the config gives; empty: there are."""


def folder_of(run_uri: str, step: int) -> str:
    """Folder of the results and pictures of a checkpoint."""
    return storage.join(run_uri, "evaluation", f"step-{step:08d}")


def write(run_uri: str, evaluation: Evaluation) -> None:
    """Write the file that makes an evaluation count."""
    uri = storage.join(folder_of(run_uri, evaluation.step), SCORES)
    storage.write_text(uri, json.dumps(asdict(evaluation), indent=1) + "\n")


def evaluations_of(run_uri: str) -> list[Evaluation]:
    """All evaluations of a run, by step; a damaged file counts as none, so that it is made again.

    Raises:
        StorageError: the storage does not answer.
    """
    folders = storage.list_folders(storage.join(run_uri, "evaluation"))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = [one for one in pool.map(_read, folders) if one]
    return sorted(found, key=lambda one: one.step)


def _read(folder: str) -> Evaluation | None:
    try:
        return Evaluation(**json.loads(storage.read_bytes(storage.join(folder, SCORES))))
    except storage.NotFoundError:
        return None
    except storage.StorageError:
        raise
    except (ValueError, TypeError):
        return None


def forget_after(run_uri: str, step: int) -> None:
    """Delete evaluations of steps after `step`: the run goes on from there, and saves those checkpoints again."""
    for uri in storage.list_folders(storage.join(run_uri, "evaluation")):
        if uri > folder_of(run_uri, step):
            storage.delete(storage.join(uri, SCORES))
            storage.delete_folder(uri)


def is_due(config: RunConfig, step: int) -> bool:
    """Whether the checkpoint of a step is to be evaluated."""
    every = config.evaluate_every_steps
    return bool(every) and (step % every == 0 or step == config.schedule.total_steps)


def waiting(config: RunConfig, run_uri: str, known: Sequence[Evaluation]) -> list[CheckpointInfo]:
    """Checkpoints that are to be evaluated and are not among the known evaluations, oldest first."""
    if not config.evaluate_every_steps:
        return []
    done = {evaluation.step for evaluation in known}
    saved = list_checkpoints(checkpoints_of(run_uri))
    return [one for one in saved if is_due(config, one.step) and one.step not in done]


def ran_out(config: RunConfig, known: Sequence[Evaluation], waits: Sequence[CheckpointInfo] = ()) -> int | None:
    """The step at which `evaluation.patience` ran out; None: it has not, or a checkpoint before that waits.

    An evaluation without the score is no better than those before it.
    """
    patience = config.evaluation.patience if config.evaluation else None
    if patience is None:
        return None
    best, since_best = None, 0
    for step, value in _values(config, known):
        if waits and step > waits[0].step:
            return None
        is_better = value is not None and (best is None or value > best)
        best, since_best = (value, 0) if is_better else (best, since_best + 1)
        if since_best == patience:
            return step
    return None


def best_steps(config: RunConfig, known: Sequence[Evaluation], count: int = 1) -> list[int]:
    """Steps of the best evaluations, best first; among equals the earlier one comes first."""
    scored = [(step, value) for step, value in _values(config, known) if value is not None]
    return [step for step, _ in sorted(scored, key=lambda one: (-one[1], one[0]))[:count]]


def pinned_steps(config: RunConfig, run_uri: str) -> Collection[int]:
    """Steps whose checkpoints must stay: those that wait, the best, and the one at which patience ran out."""
    if config.evaluation is None:
        return ()
    known = evaluations_of(run_uri)
    waits = waiting(config, run_uri, known)
    end = ran_out(config, known, waits)
    best = best_steps(config, known, config.evaluation.keep_best)
    return {*best, *(one.step for one in waits), *([] if end is None else [end])}


def drop_unneeded(config: RunConfig, run_uri: str, step: int) -> None:
    """Delete checkpoints before `step`, the newest, that neither retention by the config nor evaluation needs."""
    drop_old_checkpoints(
        checkpoints_of(run_uri),
        step,
        config.keep_last,
        config.keep_every_steps,
        pinned=partial(pinned_steps, config, run_uri),
    )


def in_words(config: Mapping[str, Any], run_uri: str) -> str:
    """The best and the newest evaluation, and what waits, in one line; empty for a run that evaluates nothing.

    Args:
        config: as the run folder holds it.
        run_uri: the run folder.
    """
    try:
        run = RunConfig.model_validate(config)
    except ValidationError:
        return ""  # of another version
    if run.evaluation is None:
        return ""
    known = evaluations_of(run_uri)
    parts = [f"{len(known)} checkpoints", f"{len(waiting(run, run_uri, known))} wait"]
    if (name := score_name(run)) and (best := best_steps(run, known)):
        values = {one.step: one.scores.get(name) for one in known}
        newest = values[known[-1].step]
        parts.append(f"best {name} {values[best[0]]:.4g} at step {best[0]:,}")
        parts.append(f"newest {'none' if newest is None else f'{newest:.4g}'} at step {known[-1].step:,}")
    parts += [f"step {one.step:,} has no score: {one.failure}" for one in known[-1:] if one.failure]
    return "; ".join(parts)


def required(config: RunConfig) -> EvaluationConfig:
    """The config of evaluation, of a run that has one."""
    assert config.evaluation is not None
    return config.evaluation


def score_name(config: RunConfig) -> str | None:
    """`task/score` of the score that checkpoints are compared by; None: the config names none."""
    score = config.evaluation.score if config.evaluation else None
    return score.of_run(config.objective) if score else None


def _values(config: RunConfig, known: Sequence[Evaluation]) -> list[tuple[int, float | None]]:
    """Step and value of the score, turned so that higher is better; None where there is no finite one."""
    score = config.evaluation.score if config.evaluation else None
    if score is None:
        return []
    name, sign = score_name(config), 1 if score.better == "higher" else -1
    values = [(one.step, one.scores.get(str(name))) for one in known]
    return [(step, sign * value if value is not None and isfinite(value) else None) for step, value in values]
