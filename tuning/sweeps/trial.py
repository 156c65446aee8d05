"""A trial's way to its next rung: the job that `tips-ray pretrain` runs, paused at the rung, then its scores."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Literal

from tips_ray import storage
from tips_ray.config.evaluation import SuiteConfig, trained_tokens
from tips_ray.config.run import RunConfig
from tips_ray.config.score import ScoreConfig
from tips_ray.errors import RunFailedError, RunStopped
from tips_ray.runs.checkpoint import checkpoint_at, checkpoints_of
from tips_ray.runs.folder import RunFolder

VIOLATIONS = ("CollapseError", "FloatingPointError")
"""Final failures that come from the setting's values; others may come from the machine or the data."""


class UnscorableError(ValueError):
    """No run of this kind has a score that the sweep names."""


@dataclass(frozen=True, repr=False)
class Job:
    """One trial and the rung that it is to reach. Picklable."""

    setting: int
    seed: int
    step: int
    run: RunConfig
    scores: tuple[ScoreConfig, ...]
    suite: SuiteConfig | None
    results_uri: str
    """Folder for the suite's results at this rung."""
    log: str | None
    """Local file for what the trial prints; None: it prints where it runs."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags of the trial's MLflow run."""

    def __repr__(self) -> str:
        return f"{self.run.name}-to-{self.step}"  # Ray Tune makes a name of it

    @property
    def run_uri(self) -> str:
        return storage.join(self.run.storage, self.run.name)


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    kind: Literal["scored", "violated", "failed", "stopped", "unscorable"]
    """`unscorable`: no trial of the sweep can have its scores."""
    scores: tuple[float, ...] = ()
    why: str = ""
    seconds: float = 0.0


def advance(job: Job) -> Outcome:
    """Train the trial up to the rung and score it; a trial that is there already is only scored. Raises nothing."""
    started, begun = time.monotonic(), datetime.now(UTC).isoformat()
    try:
        with _printed_to(job.log):
            _train(job)
            kind, scores, why = "scored", _scores(job), ""
    except RunStopped as stop:
        kind, scores, why = "stopped", (), str(stop)
    except RunFailedError as error:
        violation = _violation(job, begun)
        kind, scores, why = "violated" if violation else "failed", (), violation or str(error)
    except UnscorableError as error:
        kind, scores, why = "unscorable", (), str(error)
    except (ValueError, OSError) as error:
        kind, scores, why = "failed", (), str(error)
    except Exception as error:  # a trial must not end the sweep
        kind, scores, why = "failed", (), f"{type(error).__name__}: {error}"
    return Outcome(kind, scores, " ".join(why.split()), time.monotonic() - started)


def _train(job: Job) -> None:
    from tips_ray.launch.driver import pretrain
    from tips_ray.launch.on_ranks import RankTrainer

    trainer = RankTrainer() if is_on_rank(job.run) else None
    pretrain(job.run, trainer, until_step=job.step, tags=job.tags)


def is_on_rank(run: RunConfig) -> bool:
    """Whether a trial trains inside its Tune actor, and not on workers of Ray Train."""
    resources = run.resources
    return resources.workers == 1 and not resources.min_workers and run.captions.source != "live"


@contextmanager
def _printed_to(log: str | None) -> Iterator[None]:
    if log is None:
        yield
        return
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8", errors="backslashreplace") as file:
        with redirect_stdout(file), redirect_stderr(file):
            try:
                yield
            except Exception as error:
                print(f"error: {error}", file=sys.stderr)
                raise


def _violation(job: Job, since: str) -> str:
    """How the run has ended for good since this job began: by a loss that is not finite or by collapse; else empty."""
    failures = RunFolder(job.run_uri).final_failures()
    own = [event["error"] for event in failures if event["time"] > since and event["type"] in VIOLATIONS]
    return own[-1].partition(";")[0][:160] if own else ""


def _scores(job: Job) -> tuple[float, ...]:
    """A value for each score at the job's rung; NaN where it is not finite.

    Raises:
        UnscorableError: the run logs no such metric, or the task has no such score.
    """
    records = _evaluated(job) if any(score.task for score in job.scores) else {}
    return tuple(
        _logged(job, score) if score.metric else _of_task(job, records[score.task or ""], score) for score in job.scores
    )


def _logged(job: Job, score: ScoreConfig) -> float:
    """Mean of the metric's values in the last `over_steps` steps up to the rung."""
    lines = RunFolder(job.run_uri).read_metrics()
    near = [line for line in lines if job.step - score.over_steps < line["step"] <= job.step]
    values = [line[score.metric] for line in near if score.metric in line]
    if not values:
        known = ", ".join(sorted(near[-1].keys() - {"step", "time"})) if near else "nothing at that step"
        raise UnscorableError(f"no run of this sweep logs {score.metric}; it logs {known}")
    return fmean(values)


def _evaluated(job: Job) -> dict:
    from tips_ray.launch.evaluation import evaluate_model

    assert job.suite is not None
    model = checkpoint_at(checkpoints_of(job.run_uri), job.step).uri
    return evaluate_model(model, job.suite, job.results_uri, lambda name, record: None, is_alone=True)


def _of_task(job: Job, record: Mapping, score: ScoreConfig) -> float:
    if "skipped" in record:
        raise UnscorableError(f"task {score.task} was skipped: {record['skipped']}")
    name = (score.score or "").format(**trained_tokens(job.run.objective))
    if name not in record["scores"]:
        raise UnscorableError(f"task {score.task} has no score {name}; it has {', '.join(record['scores'])}")
    value = record["scores"][name]
    return nan if value is None else float(value)
