"""Signs that a run has collapsed or that a prototype head learns nothing, and the judge that stops it."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from tips_ray.config import ObjectiveConfig, RunConfig
from tips_ray.runs.metric_names import HEADS
from tips_ray.runs.target_health import steadier

Metrics = Mapping[str, float]


class CollapseError(ValueError):
    """The run has stopped learning; the message says by which sign, and what to change."""


class Sign(NamedTuple):
    """One sign of collapse; `is_there` is False where a metric is missing."""

    metric: str
    limit: str
    is_there: Callable[[Metrics], bool]
    meaning: str
    cure: str
    key: Literal["stop_on_collapse", "stop_without_information"] = "stop_on_collapse"
    """Which field of `health` says whether it stops a run."""
    what: str = "training has collapsed at step"


def signs(config: RunConfig) -> list[Sign]:
    """All signs, in the order of the checks; a CLS token that nothing trains has none."""
    objective, num_prototypes = config.objective, config.head.num_prototypes
    trained = {"web": objective.web_weight or objective.alpha, "synthetic": objective.synthetic_weight}
    found = [sign for name, weight in trained.items() if weight for sign in _signs_of_cls(f"health/cls_{name}")]
    found += [_sign_of_head(f"health/{head}", num_prototypes) for head in HEADS]
    return found + [_sign_of_information(head, objective) for head in HEADS]


def _signs_of_cls(name: str) -> list[Sign]:
    cosine, rank = f"{name}/cosine", f"{name}/effective_rank"
    cure = "lower schedule.peak_lr, lengthen schedule.warmup, or look at samples and captions: they may be all alike"
    return [
        Sign(cosine, "above 0.9999", lambda m: m.get(cosine, 0) > 0.9999, "all images have the same embedding", cure),
        Sign(rank, "below 1.1", lambda m: m.get(rank, 2) < 1.1, "all embeddings lie on one line", cure),
    ]


def _sign_of_head(head: str, num_prototypes: int) -> Sign:
    usage, share = f"{head}/prototype_usage", f"{head}/target_entropy_share"

    def one_takes_all(metrics: Metrics) -> bool:
        # Near-uniform targets have a winner too, by a hair.
        return metrics.get(usage, 1) * num_prototypes < 1.5 and metrics.get(share, 1) < 0.5

    return Sign(
        usage,
        f"one of {num_prototypes}, with targets far from uniform",
        one_takes_all,
        "one prototype takes every image",
        "lower objective.center_momentum, raise objective.teacher_temperature_start, or lower schedule.peak_lr",
    )


def _sign_of_information(head: str, objective: ObjectiveConfig) -> Sign:
    metric = f"health/{head}/information"
    return Sign(
        metric,
        "below 0 nats",
        lambda metrics: metrics.get(metric, 0) < 0,
        "the student predicts its targets worse than their mean does",
        f"{steadier(objective)}, or lower schedule.peak_lr",
        "stop_without_information",
        f"{head} teaches nothing at step",
    )


class CollapseJudge:
    """Counts the logged steps in a row that show each sign, after the warm-up of the learning rate.

    Lines without a sign's metric do not count for it where they have others: only some have effective ranks.
    """

    def __init__(self, config: RunConfig) -> None:
        self.health, self.warmup_steps = config.health, config.schedule.warmup_steps
        self.signs = [sign for sign in signs(config) if getattr(self.health, sign.key)]
        self.in_a_row = dict.fromkeys((sign.metric for sign in self.signs), 0)

    def judge(self, step: int, metrics: Metrics) -> None:
        """
        Raises:
            CollapseError: a sign was there for `health.collapse_patience` logged steps in a row. Metrics are those of
                all ranks, so that all raise.
        """
        is_skipped = not any(sign.metric in metrics for sign in self.signs)
        for sign in self.signs if step > self.warmup_steps else ():
            if sign.metric not in metrics and not is_skipped:
                continue
            self.in_a_row[sign.metric] = self.in_a_row[sign.metric] + 1 if sign.is_there(metrics) else 0
            if self.in_a_row[sign.metric] >= self.health.collapse_patience:
                raise CollapseError(self._sentence(step, sign, metrics[sign.metric]))

    def _sentence(self, step: int, sign: Sign, value: float) -> str:
        return (
            f"{sign.what} {step}: {sign.metric} is {value:.5g}, {sign.limit}, for "
            f"{self.health.collapse_patience} logged steps in a row (health.collapse_patience), which means that "
            f"{sign.meaning}; {sign.cure}; health.{sign.key}=false goes on all the same"
        )
