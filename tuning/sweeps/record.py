"""The durable record of a sweep: JSON lines in its folder, local or s3://, from which everything else is derived.

Every decision is written before it is carried out. A sweep that is killed anywhere goes on from its record: Ray Tune,
Optuna's study and MLflow hold nothing that the record and the folders of the runs do not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import isfinite
from statistics import fmean
from typing import Any

from tips_ray import storage
from tips_ray.runs.jsonl import LineLog
from tuning.sweeps.space import Values

PATIENCE_SECONDS = 600.0
"""How long a line is tried to be written while the storage does not answer."""
ADDED = "added"
"""Who proposed a setting of the user's own; it does not count among those that the config asks for."""
MOST_FAILURES = 3
"""Failures of one trial in a row, without getting to its next rung, after which the setting is given up."""


@dataclass
class Trial:
    """One setting with one seed: a run."""

    scores: dict[int, tuple[float | None, ...]] = field(default_factory=dict)
    """Rung -> a value for each score of the sweep; None: not a finite number."""
    violation: str = ""
    """Why the run can never reach its next rung: it collapsed or diverged."""
    failures: list[str] = field(default_factory=list)
    """Errors since the last rung."""
    seconds: float = 0.0
    """Time of all its starts that have ended."""
    gpu_seconds: float = 0.0
    """The same, times the GPUs that it held."""


@dataclass
class Setting:
    """One point of the space and what is known of it."""

    number: int
    values: Values
    by: str
    """Who proposed it: grid, prior, earlier, random, tpe, added; of a list the name."""
    granted: int = 0
    """Optimizer steps that its trials may do."""
    ended: str = ""
    """Why it gets no further steps; empty: it may."""
    is_given_up: bool = False
    """It has ended by failures, which the next start of the sweep tries again."""
    trials: dict[int, Trial] = field(default_factory=dict)
    """By seed."""

    def trial(self, seed: int) -> Trial:
        return self.trials.setdefault(seed, Trial())

    def violation(self, seeds: Sequence[int]) -> str:
        """Why one of these seeds can go no further; empty: all can."""
        return next((self.trial(seed).violation for seed in seeds if self.trial(seed).violation), "")

    def score(self, step: int, seeds: Sequence[int]) -> tuple[float, ...] | None:
        """The mean over the seeds at a rung; None until all have finite scores there."""
        of_seeds = [self.trial(seed).scores.get(step) for seed in seeds]
        if any(one is None or None in one for one in of_seeds):
            return None
        return tuple(map(fmean, zip(*of_seeds, strict=True)))  # pyright: ignore[reportArgumentType]

    def last_score(self, seeds: Sequence[int]) -> tuple[int, tuple[float, ...]] | None:
        """The highest rung with a score, and the score."""
        steps = sorted({step for seed in seeds for step in self.trial(seed).scores}, reverse=True)
        found = ((step, self.score(step, seeds)) for step in steps)
        return next(((step, score) for step, score in found if score is not None), None)


class Record:
    """Settings of a sweep, in memory, with every change written to the sweep's folder first."""

    def __init__(self, sweep_uri: str) -> None:
        self._lines = LineLog(storage.join(sweep_uri, "record"), "attempt-{attempt:04d}", ("kind", "time"))
        self.settings: dict[int, Setting] = {}
        self.earlier: list[Values] = []
        """Values of earlier sweeps or runs, to come before those of the search."""
        for line in self._lines.read():  # driver after driver, whatever their clocks say
            try:
                self._apply(line)
            except (KeyError, TypeError, ValueError) as error:
                raise storage.StorageError(
                    f"{self._lines.uri}: a line ({str(line)[:100]}) does not follow from those before it "
                    f"({type(error).__name__}: {error}): restore the file from a copy"
                ) from None

    @property
    def seconds(self) -> float:
        """Time of all starts of all trials that have ended."""
        return sum(trial.seconds for setting in self.settings.values() for trial in setting.trials.values())

    @property
    def gpu_seconds(self) -> float:
        """The same, times the GPUs of each."""
        return sum(trial.gpu_seconds for setting in self.settings.values() for trial in setting.trials.values())

    def add_setting(self, values: Mapping[str, Any], by: str, step: int) -> Setting:
        """A new setting, with the next number, whose trials may train up to a step."""
        number = len(self.settings)
        self._write("setting", setting=number, values=dict(values), by=by, step=step)
        return self.settings[number]

    def add_earlier(self, settings: Sequence[Values]) -> None:
        """Values that are to be proposed before those of the search."""
        if new := [values for values in settings if values not in self.earlier]:
            self._write("earlier", settings=new)

    def grant(self, setting: Setting, step: int) -> None:
        """Let the trials of a setting train up to a step."""
        self._write("grant", setting=setting.number, step=step)

    def replace(self, step: int, survivors: Sequence[Setting], children: Sequence[Mapping[str, Any]]) -> None:
        """A generation of population-based training: survivors and children may train up to a step.

        Each child has `values`, `donor`, whose history it takes, and `instead_of`, which gets no further steps.
        """
        numbered = [{**child, "number": len(self.settings) + place} for place, child in enumerate(children)]
        self._write("generation", step=step, survivors=[one.number for one in survivors], children=numbered)

    def end(self, setting: Setting, why: str) -> None:
        """Give a setting no further steps."""
        self._write("end", setting=setting.number, why=why)

    def add_scores(
        self, setting: Setting, seed: int, step: int, scores: Sequence[float], seconds: float, gpus: float
    ) -> None:
        """The scores of a trial at a rung; values that are not finite are kept as none."""
        finite = [float(score) if isfinite(score) else None for score in scores]
        self._write("score", setting=setting.number, seed=seed, step=step, scores=finite, **_used(seconds, gpus))

    def add_violation(self, setting: Setting, seed: int, why: str, seconds: float, gpus: float) -> None:
        """A trial collapsed or diverged: it can go no further."""
        self._write("violation", setting=setting.number, seed=seed, why=why, **_used(seconds, gpus))

    def add_failure(self, setting: Setting, seed: int, why: str, seconds: float, gpus: float) -> None:
        """A start of a trial failed, and another may do better."""
        self._write("failure", setting=setting.number, seed=seed, why=why, **_used(seconds, gpus))

    def give_up(self, setting: Setting, why: str) -> None:
        """Give a setting no further steps until the sweep is started again."""
        self._write("give_up", setting=setting.number, why=why)

    def start(self) -> None:
        """Begin a start of the sweep: what failed in an earlier one is tried again."""
        if any(trial.failures for setting in self.settings.values() for trial in setting.trials.values()):
            self._write("start")

    def _replace(self, line: Mapping[str, Any]) -> None:
        for number in line["survivors"]:
            self.settings[number].granted = line["step"]
        for child in line["children"]:
            self.settings[child["number"]] = _child(child, self.settings[child["donor"]], line["step"])
            self.settings[child["instead_of"]].ended = f"replaced by setting {child['number']}"

    def _write(self, kind: str, **what: Any) -> None:
        line = {"time": _now(), "kind": kind, **what}
        self._lines.add([line])
        storage.keep_trying(self._lines.seal, PATIENCE_SECONDS)
        self._apply(line)

    def _apply(self, line: Mapping[str, Any]) -> None:
        kind, number = line["kind"], line.get("setting")
        if kind == "generation":
            self._replace(line)
        elif kind == "earlier":
            self.earlier += line["settings"]
        elif kind == "start":
            for setting in self.settings.values():
                _try_again(setting)
        if number is None:
            return
        if kind == "setting":
            self.settings[number] = Setting(number, line["values"], line["by"], line["step"])
        elif kind == "grant":
            self.settings[number].granted = line["step"]
        elif kind in ("end", "give_up"):
            self.settings[number].ended = line["why"]
            self.settings[number].is_given_up = kind == "give_up"
        else:
            _add_result(self.settings[number].trial(line["seed"]), line)


def _used(seconds: float, gpus: float) -> dict[str, float]:
    return {"seconds": round(seconds, 3), "gpus": gpus}


def _child(line: Mapping[str, Any], donor: Setting, step: int) -> Setting:
    copied = {seed: Trial(dict(trial.scores)) for seed, trial in donor.trials.items()}
    return Setting(line["number"], line["values"], f"child of {donor.number}", step, trials=copied)


def _try_again(setting: Setting) -> None:
    if setting.is_given_up:
        setting.ended, setting.is_given_up = "", False
    for trial in setting.trials.values():
        trial.failures.clear()


def _add_result(trial: Trial, line: Mapping[str, Any]) -> None:
    trial.seconds += line["seconds"]
    trial.gpu_seconds += line["seconds"] * line.get("gpus", 0.0)
    if line["kind"] == "score":
        trial.scores[line["step"]] = tuple(line["scores"])
        trial.failures.clear()
    elif line["kind"] == "violation":
        trial.violation = line["why"]
    else:
        trial.failures.append(line["why"])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
