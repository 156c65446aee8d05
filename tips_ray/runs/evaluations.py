"""Evaluations of a run's own checkpoints: where they are, which wait, which is the best, whether patience ran out.

All of it is a function of the scores by step, whenever they came: `evaluation/step-XXXXXXXX/scores.json` in the run
folder (docs/formats.md). A checkpoint that waits for its evaluation is never deleted.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from math import inf, isfinite
from typing import Any

from pydantic import TypeAdapter

from tips_ray import storage
from tips_ray.config import RunConfig
from tips_ray.config.score import EvaluationConfig
from tips_ray.runs.checkpoint import CheckpointInfo, checkpoints_of, drop_old_checkpoints, list_checkpoints
from tips_ray.runs.folder import readable_config

SCORES = "scores.json"
PATIENCE = "evaluation.patience"
"""Begins the reason of a stop that patience asks for."""
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


_PARSED = TypeAdapter(Evaluation)


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
        return _PARSED.validate_json(storage.read_bytes(storage.join(folder, SCORES)))
    except storage.NotFoundError:
        return None
    except storage.StorageError:
        raise
    except ValueError:
        return None


def forget_after(run_uri: str, step: int) -> None:
    """Delete evaluations of steps after `step`: the run goes on from there, and saves those checkpoints again."""
    for uri in storage.list_folders(storage.join(run_uri, "evaluation")):
        if uri > folder_of(run_uri, step):
            storage.delete(storage.join(uri, SCORES))
            storage.delete_folder(uri)


def forget_failed(run_uri: str) -> None:
    """Delete evaluations without any score: the next start tries them again."""
    for one in evaluations_of(run_uri):
        if not one.scores:
            storage.delete(storage.join(folder_of(run_uri, one.step), SCORES))


def require_score(config: RunConfig, run_uri: str) -> None:
    """Compare the score that the config names with those that a run has.

    Raises:
        ValueError: none of its evaluations has it; checkpoints that were the best would be deleted.
    """
    name, known = score_name(config), {key for one in evaluations_of(run_uri) for key in one.scores}
    if name and known and name not in known:
        near = get_close_matches(name, sorted(known), 3, 0) or sorted(known)[:3]
        raise ValueError(f"evaluation.score: no evaluation of {run_uri} has {name}; it has such as {', '.join(near)}")


def is_due(config: RunConfig, step: int) -> bool:
    """Whether the checkpoint of a step is to be evaluated."""
    every = config.evaluate_every_steps
    return bool(every) and (step % every == 0 or step == config.schedule.total_steps)


@dataclass(frozen=True)
class Standing:
    """Evaluations and checkpoints of a run at one moment, and what follows from them."""

    config: RunConfig
    known: Sequence[Evaluation]
    saved: Sequence[CheckpointInfo]
    """Checkpoints that are not damaged, oldest first."""

    @property
    def waits(self) -> list[CheckpointInfo]:
        """Checkpoints that are to be evaluated and are not yet, oldest first."""
        done = {evaluation.step for evaluation in self.known}
        return [one for one in self.saved if is_due(self.config, one.step) and one.step not in done]

    @property
    def end(self) -> int | None:
        """The step at which `evaluation.patience` ran out; None: it has not, or a checkpoint before that waits.

        It is the first step that has a checkpoint and after so many evaluations in a row without a better score.
        Evaluations without the score do not count.
        """
        patience = self.config.evaluation.patience if self.config.evaluation else None
        first_wait = min((one.step for one in self.waits), default=inf)
        best, since_best, there = None, 0, {one.step for one in self.saved}
        for step, value in self._values:
            best, since_best = (value, 0) if best is None or value > best else (best, since_best + 1)
            if patience and since_best >= patience and step in there and step < first_wait:
                return step
        return None

    @property
    def tried_again(self) -> "Standing":
        """The standing as if evaluations without any score were still to be made."""
        return replace(self, known=[one for one in self.known if one.scores])

    def best_steps(self, count: int = 1) -> list[int]:
        """Steps of the best evaluations, best first; among equals the earlier one comes first."""
        return [step for step, _ in sorted(self._values, key=lambda one: (-one[1], one[0]))[:count]]

    @property
    def pinned(self) -> set[int]:
        """Steps whose checkpoints must stay: those that wait, the best, and the one at which patience ran out."""
        best = self.best_steps(self.config.evaluation.keep_best) if self.config.evaluation else []
        end = self.end
        return {*best, *(one.step for one in self.waits), *([] if end is None else [end])}

    @property
    def _values(self) -> list[tuple[int, float]]:
        """Step and value of each evaluation that has the score, turned so that higher is better."""
        score = self.config.evaluation.score if self.config.evaluation else None
        name, sign = score_name(self.config), -1 if score and score.better == "lower" else 1
        values = [(one.step, one.scores.get(name) if name else None) for one in self.known]
        return [(step, sign * value) for step, value in values if value is not None and isfinite(value)]


def standing_of(config: RunConfig, run_uri: str) -> Standing:
    """The standing of a run.

    Raises:
        StorageError: the storage does not answer.
    """
    known = evaluations_of(run_uri) if config.evaluation else []
    return Standing(config, known, list_checkpoints(checkpoints_of(run_uri)))


def is_over(config: Mapping[str, Any], run_uri: str, newest: int) -> bool:
    """Whether nothing is left of a run: no steps, and no evaluations of its checkpoints.

    Args:
        config: as the run folder holds it.
        run_uri: the run folder.
        newest: step of its newest checkpoint, -1 where there is none.
    """
    schedule = config.get("schedule")
    total = schedule.get("total_steps") if isinstance(schedule, Mapping) else None
    is_trained = isinstance(total, int) and newest >= total
    run = readable_config(config) if config.get("evaluation") else None
    if run is None:
        return is_trained
    standing = standing_of(run, run_uri)
    return newest == standing.end if standing.end is not None else is_trained and not standing.waits


def pictures_of(run_uri: str, step: int) -> dict[str, str]:
    """Pictures of an evaluation: title -> URI; empty where it has none."""
    folder = storage.join(folder_of(run_uri, step), "pictures")
    names = [name for name in storage.list_names(folder) if name.endswith(".png")]
    return {name.removesuffix(".png"): storage.join(folder, name) for name in sorted(names)}


def drop_unneeded(config: RunConfig, run_uri: str, step: int) -> None:
    """Delete checkpoints before `step`, the newest, that neither retention by the config nor evaluation needs."""
    drop_old_checkpoints(
        checkpoints_of(run_uri),
        step,
        config.keep_last,
        config.keep_every_steps,
        pinned=lambda: standing_of(config, run_uri).pinned if config.evaluation else (),
    )


def in_words(config: Mapping[str, Any], run_uri: str) -> str:
    """The best and the newest evaluation, and what waits, in one line; empty for a run that evaluates nothing.

    Args:
        config: as the run folder holds it.
        run_uri: the run folder.
    """
    run = readable_config(config)
    if run is None or run.evaluation is None:
        return ""
    standing = standing_of(run, run_uri)
    known, name = standing.known, score_name(run)
    parts = [f"{len(known)} checkpoints", f"{len(standing.waits)} wait"]
    if name and (best := standing.best_steps()):
        values = {one.step: one.scores.get(name) for one in known}
        newest = values[known[-1].step]
        parts.append(f"best {name} {values[best[0]]:.4g} at step {best[0]:,}")
        parts.append(f"newest {'none' if newest is None else f'{newest:.4g}'} at step {known[-1].step:,}")
    faulty = [one for one in known if one.failure]
    parts += [f"{len(faulty)} incomplete, the last at step {one.step:,}: {one.failure}" for one in faulty[-1:]]
    return "; ".join(parts)


def required(config: RunConfig) -> EvaluationConfig:
    """The config of evaluation, of a run that has one."""
    assert config.evaluation is not None
    return config.evaluation


def score_name(config: RunConfig) -> str | None:
    """`task/score` of the score that checkpoints are compared by; None: the config names none."""
    score = config.evaluation.score if config.evaluation else None
    return score.of_run(config.objective) if score else None
