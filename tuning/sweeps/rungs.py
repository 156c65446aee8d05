"""Which settings may train on: ranks at the rungs of a sweep, and the schedulers that grant steps by them.

All are functions of the record. A setting counts at a rung once all its seeds have scores there; one that has collapsed
or diverged counts as the worst.

Source: asynchronous successive halving, arXiv:1810.05934, Algorithm 2 (promotion); its stopping form is Ray Tune's.
"""

from collections.abc import Sequence
from typing import NamedTuple

from tips_ray.config.run import RunConfig
from tips_ray.config.score import ScoreConfig
from tips_ray.config.sweep import SweepConfig
from tuning.sweeps.record import Setting

BEATEN = "is not among the best at step {step}"


class Grant(NamedTuple):
    """Steps that a setting gets, or `None`: it gets no further ones."""

    setting: Setting
    step: int | None
    why: str = ""


class Rungs:
    """The rungs of a sweep and the settings that are compared at them."""

    def __init__(self, config: SweepConfig, base: RunConfig) -> None:
        """
        Args:
            config: of the sweep.
            base: the run that all settings start from.
        """
        self.config, self.steps = config, config.all_rungs(base)
        self.seeds = tuple(range(base.seed, base.seed + config.replicas))

    def next_grant(self, settings: Sequence[Setting], is_last_call: bool) -> Grant | None:
        """The next decision about settings that were compared; None: there is none to make now.

        Args:
            settings: those of the space, in the order in which they were proposed.
            is_last_call: no other setting will come and nothing trains: the best of a rung goes on in any case, so that
                a sweep ends with a setting that was trained to the end.
        """
        if self.config.scheduler == "pbt":
            return None  # see `population`
        if self.config.scheduler == "none":
            waiting = (one for one in settings if one.granted < self.steps[-1] and not one.ended)
            return next((Grant(one, self.steps[-1]) for one in waiting), None)
        if self.config.scheduler == "asha":
            return self._stop_or_go(settings)
        return self._promotion(settings, is_last_call)

    def first_step(self) -> int:
        """Steps that a new setting gets."""
        return self.steps[-1] if self.config.scheduler == "none" else self.steps[0]

    def next_step(self, setting: Setting, seed: int) -> int | None:
        """The next rung of a trial that is granted and not scored; None: it has done all that is granted."""
        scored = setting.trial(seed).scores
        return next((step for step in self.steps if step not in scored and step <= setting.granted), None)

    def ranked(self, settings: Sequence[Setting], step: int) -> list[Setting]:
        """Settings with a score at a rung, the best first; of equals the earlier."""
        scored = [(setting, setting.score(step, self.seeds)) for setting in settings]
        counted = [(setting, score) for setting, score in scored if score is not None]
        order = rank_order([score for _, score in counted], self.config.scores)
        return [counted[place][0] for place in order]

    def _promotion(self, settings: Sequence[Setting], is_last_call: bool) -> Grant | None:
        """The best setting of the highest rung from which one may go on."""
        for step, following in reversed(list(zip(self.steps, self.steps[1:], strict=False))):
            ranked = self.ranked(settings, step)
            quota = (len(ranked) + self._violated(settings, step)) // self.config.keep
            if is_last_call and not any(one.granted > step for one in settings):
                quota = max(quota, 1)
            for setting in ranked[:quota]:
                if setting.granted <= step and not setting.ended:
                    return Grant(setting, following)
        return None

    def _violated(self, settings: Sequence[Setting], step: int) -> int:
        """Settings that were to reach a rung and never can."""
        fallen = [one for one in settings if one.granted >= step and one.score(step, self.seeds) is None]
        return sum(bool(one.violation(self.seeds)) for one in fallen)

    def _stop_or_go(self, settings: Sequence[Setting]) -> Grant | None:
        """The decision about a setting that has reached the end of its grant: compared with those that were there."""
        for step, following in zip(self.steps, self.steps[1:], strict=False):
            ranked = self.ranked(settings, step)
            quota = max((len(ranked) + self._violated(settings, step)) // self.config.keep, 1)
            for place, setting in enumerate(ranked):
                if setting.granted == step and not setting.ended:
                    is_good = place < quota
                    return Grant(setting, following) if is_good else Grant(setting, None, BEATEN.format(step=step))
        return None


def rank_order(scores: Sequence[Sequence[float]], configs: Sequence[ScoreConfig]) -> list[int]:
    """Places of the scores, the best first; of equals the earlier.

    With several scores: by the front that a setting lies on (non-dominated sorting), then by the first score.

    Source: fronts as in NSGA-II, Deb et al. 2002.
    """
    losses = losses_of(scores, configs)
    fronts = front_numbers(losses)
    return sorted(range(len(losses)), key=lambda place: (fronts[place], losses[place][0], place))


def losses_of(scores: Sequence[Sequence[float]], configs: Sequence[ScoreConfig]) -> list[tuple[float, ...]]:
    """The scores with the sign by which lower is better."""
    signs = [1 if config.better == "lower" else -1 for config in configs]
    return [tuple(sign * value for sign, value in zip(signs, score, strict=True)) for score in scores]


def front_numbers(losses: Sequence[Sequence[float]]) -> list[int]:
    """The front that each point lies on: 0 where no other point dominates it, 1 without those of front 0, ..."""
    left, fronts, number = set(range(len(losses))), [0] * len(losses), 0
    while left:
        front = {one for one in left if not any(dominates(losses[other], losses[one]) for other in left)}
        for one in front:
            fronts[one] = number
        left, number = left - front, number + 1
    return fronts


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether `one` is at least as low in all, and lower in one."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)
