"""What a sweep has found so far: a row for each setting, the winner, and whether its rungs predict the end."""

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import yaml
from scipy import stats

from tips_ray.config.sweep import SweepConfig
from tuning.sweeps.population import current_values
from tuning.sweeps.record import Record, Setting
from tuning.sweeps.rungs import Rungs, front_numbers, losses_of
from tuning.sweeps.space import CHANGES, lies_in, name_in_list, run_of
from tuning.words import counted, short

FEWEST = 5
"""(D) Settings that must have reached both a rung and the end before a rank correlation says anything."""
PREDICTS = 0.5
"""(D) Rank correlation below which a rung is called a bad predictor of the end."""


class Prediction(NamedTuple):
    """How a rung ranks settings compared with the end of the run."""

    step: int
    settings: int
    """Those with scores at both."""
    correlation: float | None
    """Spearman's; None where there are fewer than `FEWEST` settings."""

    def __str__(self) -> str:
        if self.correlation is None:
            return (
                f"the rung at step {self.step}: {counted(self.settings, 'setting')} reached the end, too few to say "
                f"whether it predicts the end ({FEWEST} are needed)"
            )
        word = "predicts" if self.correlation >= PREDICTS else "does not predict"
        found = f"rank correlation {self.correlation:.2f} over {self.settings} settings"
        return f"the rung at step {self.step} {word} the end: {found}"


class Summary:
    """A view of the record; nothing is kept."""

    def __init__(self, config: SweepConfig, record: Record) -> None:
        self.config, self.base = config, run_of(config, {})
        self.rungs = Rungs(config, self.base)
        self.settings = [one for one in record.settings.values() if lies_in(config, one.values)]
        self.outside = len(record.settings) - len(self.settings)
        """Settings of an earlier space."""
        self.hours = record.seconds / 3600

    def winner(self) -> tuple[Setting, int] | None:
        """The best setting at the highest rung that any has reached, and the rung; None: nothing is scored."""
        for step in reversed(self.rungs.steps):
            if ranked := self.rungs.ranked(self.settings, step):
                return ranked[0], step
        return None

    def front(self, step: int) -> list[Setting]:
        """Settings that no other beats in both scores at a rung."""
        ranked = self.rungs.ranked(self.settings, step)
        scores = [one.score(step, self.rungs.seeds) or () for one in ranked]
        fronts = front_numbers(losses_of(scores, self.config.scores))
        return [one for one, front in zip(ranked, fronts, strict=True) if front == 0]

    def predictions(self) -> list[Prediction]:
        """For each rung below the end, by the first score."""
        return [self._prediction(step) for step in self.rungs.steps[:-1]]

    def compared(self) -> tuple[list[Setting], int]:
        """Settings at the highest rung that `FEWEST` have reached, the best first, and the rung; else at the first."""
        at = [(self.rungs.ranked(self.settings, step), step) for step in reversed(self.rungs.steps)]
        return next((one for one in at if len(one[0]) >= FEWEST), at[-1])

    def early_and_late(self, step: int) -> list[tuple[float, float]]:
        """First scores at a rung and at the end, of the settings that have both of their own."""
        end = self.rungs.steps[-1]
        own = [one for one in self.settings if CHANGES not in one.values]  # a child has its donor's score at the rung
        both = [(one.score(step, self.rungs.seeds), one.score(end, self.rungs.seeds)) for one in own]
        return [(early[0], late[0]) for early, late in both if early is not None and late is not None]

    def _prediction(self, step: int) -> Prediction:
        pairs = self.early_and_late(step)
        if len(pairs) < FEWEST:
            return Prediction(step, len(pairs), None)
        early, late = zip(*pairs, strict=True)
        found: Any = stats.spearmanr(early, late)
        return Prediction(step, len(pairs), float(found.statistic))

    def best_config(self) -> str | None:
        """The winner as YAML that `tips-ray pretrain` takes as it is; None: there is no winner."""
        if not (found := self.winner()):
            return None
        run = run_of(self.config, found[0].values, f"{self.config.name}-best", self.base.seed)
        return yaml.safe_dump(run.model_dump(mode="json", exclude_none=True), sort_keys=False)

    def state(self, setting: Setting) -> str:
        """What a setting does or has done, in words."""
        if setting.ended:
            return setting.ended
        if any(self.rungs.next_step(setting, seed) for seed in self.rungs.seeds):
            failures = [trial.failures[-1] for trial in setting.trials.values() if trial.failures]
            return f"trains to step {setting.granted}" + (f"; failed: {failures[-1]}" if failures else "")
        return "complete" if setting.granted == self.rungs.steps[-1] else f"paused at step {setting.granted}"

    def heads(self) -> list[str]:
        """Column names of `rows`."""
        return ["setting", *short(self.config.space), "step", *short(self._names()), "by", "state"]

    def rows(self) -> list[list[str]]:
        """A row for each setting with its scores at the highest rung that it has reached, the best first."""
        return [self._row(setting) for setting in self.order()]

    def whole_table(self) -> list[list[str]]:
        """A head and a row for each setting with its scores at all rungs, the best first."""
        scores = [f"{name} at {step}" for step in self.rungs.steps for name in self._names()]
        return [["setting", *self.config.space, *scores, "by", "state"], *map(self._whole_row, self.order())]

    def _names(self) -> list[str]:
        return [score.name for score in self.config.scores]

    def order(self) -> list[Setting]:
        """Settings, the best first."""
        found: dict[int, Setting] = {}
        for step in reversed(self.rungs.steps):
            for setting in self.rungs.ranked(self.settings, step):
                found.setdefault(setting.number, setting)
        return list({**found, **{one.number: one for one in self.settings if one.number not in found}}.values())

    def _row(self, setting: Setting) -> list[str]:
        step, score = setting.last_score(self.rungs.seeds) or ("", [""] * len(self.config.scores))
        values = map(_text, current_values(self.config, setting.values).values())
        return [str(setting.number), *values, str(step), *map(_text, score), self.by(setting), self.state(setting)]

    def _whole_row(self, setting: Setting) -> list[str]:
        none = (None,) * len(self.config.scores)
        scores = [value for step in self.rungs.steps for value in setting.score(step, self.rungs.seeds) or none]
        cells = ["" if value is None else repr(value) for value in scores]
        values = map(str, current_values(self.config, setting.values).values())
        return [str(setting.number), *values, *cells, self.by(setting), self.state(setting)]

    def by(self, setting: Setting) -> str:
        """Who proposed a setting; of a list its name there."""
        return name_in_list(self.config, setting.values) or setting.by

    def sentences(self) -> Iterator[str]:
        """The result in words."""
        seeds = len(self.rungs.seeds)
        yield f"{counted(len(self.settings), 'setting')}, {counted(seeds, 'seed')} each, {self.hours:.2f} trial-hours"
        if self.config.settings and len(self.settings) < self.config.settings:
            yield f"{self.config.settings - len(self.settings)} settings are left to propose"
        if self.outside:
            yield f"{counted(self.outside, 'setting')} outside of the space, which has changed: not counted"
        if found := self.winner():
            setting, step = found
            scores = setting.score(step, self.rungs.seeds) or ()
            named = ", ".join(f"{one.name} {value:.4g}" for one, value in zip(self.config.scores, scores, strict=True))
            values = ", ".join(f"{key}={value}" for key, value in setting.values.items())
            name = f" {found_name}" if (found_name := name_in_list(self.config, setting.values)) else ""
            yield f"best: setting {setting.number}{name} ({values}), {named} at step {step}"
            if len(self.config.scores) > 1:
                front = ", ".join(str(one.number) for one in self.front(step))
                yield f"beaten by no other in both scores, at that step: {front}"
        yield from map(str, self.predictions())
        if self.config.replicas == 1 and len(self.settings) > 1:
            yield "one seed says little about small differences: tips-ray compare with six seeds claims or does not"


def seconds_per_step(summary: Summary) -> float | None:
    """Mean over trials; None before any has a score."""
    trials = [trial for one in summary.settings for trial in one.trials.values() if trial.scores]
    return fmean(trial.seconds / max(trial.scores) for trial in trials) if trials else None


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows))


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
