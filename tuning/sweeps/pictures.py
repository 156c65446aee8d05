"""Pictures of a sweep: curves, what depends on which key, importance, rungs against the end, the Pareto front."""

import io
import warnings
from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

import numpy as np

from tips_ray import storage
from tips_ray.config.score import ScoreConfig
from tips_ray.config.sweep import DomainConfig
from tips_ray.runs.folder import RunFolder
from tuning.sweeps.population import current_values
from tuning.sweeps.queue import trial_name
from tuning.sweeps.record import Setting
from tuning.sweeps.search import study_of
from tuning.sweeps.summary import Summary
from tuning.words import short

GOOD, OTHER = "#0b6e4f", "#9aa5b1"
FEWEST_FOR_IMPORTANCE = 6
Picture = tuple[str, bytes]
"""File name and PNG."""


def pictures(summary: Summary, runs_uri: str) -> list[Picture]:
    """All pictures for which the sweep has enough settings."""
    import matplotlib

    matplotlib.use("agg")
    drawn: dict[str, Callable[[Any], bool]] = {
        "curves.png": lambda axes: _curves(axes, summary, runs_uri),
        "importance.png": lambda axes: _importance(axes, summary),
        "parallel.png": lambda axes: _parallel(axes, summary),
        "rungs.png": lambda axes: _rungs(axes, summary),
        "front.png": lambda axes: _front(axes, summary),
    }
    keys = list(summary.config.space)
    drawn |= {f"key-{key}.png": lambda axes, key=key: _by_key(axes, summary, key) for key in keys}
    drawn |= {f"map-{a}-{b}.png": lambda axes, a=a, b=b: _map(axes, summary, a, b) for a, b in _pairs(summary)}
    found = ((name, _png(draw)) for name, draw in drawn.items())
    return [(name, png) for name, png in found if png]


def _png(draw: Callable[[Any], bool]) -> bytes:
    """The picture; empty where there is nothing to draw."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if not draw(axes):
        return b""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    return buffer.getvalue()


def _scored(summary: Summary) -> tuple[list[Setting], list[float], int]:
    """Settings at a rung, the best first, their first scores, and the rung: the highest that enough have reached."""
    ranked, step = summary.compared()
    if len(ranked) < 2:
        return [], [], 0
    return ranked, [(one.score(step, summary.rungs.seeds) or (0.0,))[0] for one in ranked], step


def _curves(axes: Any, summary: Summary, runs_uri: str) -> bool:
    """The first score's metric over steps of every trial; a task's score at the rungs."""
    score, best = summary.config.scores[0], summary.winner()
    for setting in reversed(summary.order()):
        is_best = best is not None and setting is best[0]
        for seed in summary.rungs.seeds:
            points = _points(score, setting, seed, runs_uri)
            style = {"color": GOOD, "linewidth": 2.2} if is_best else {"color": OTHER, "linewidth": 1}
            label = f"setting {setting.number}, the best" if is_best and seed == summary.rungs.seeds[0] else None
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 20 else "", label=label, **style) if (
                points
            ) else None
    axes.set(xlabel="step", ylabel=f"{score.name} ({score.better} is better)", title="All trials")
    if best is not None:
        axes.legend(frameon=False)
    return best is not None


def _points(score: ScoreConfig, setting: Setting, seed: int, runs_uri: str) -> list[tuple[int, float]]:
    if score.metric is None:
        return [(step, found[0]) for step, found in sorted(setting.trial(seed).scores.items()) if found[0] is not None]
    lines = RunFolder(storage.join(runs_uri, trial_name(setting.number, seed))).read_metrics()
    values = [(line["step"], line[score.metric]) for line in lines if score.metric in line]
    return [(step, value) for step, value in values if isfinite(value)]


def _by_key(axes: Any, summary: Summary, key: str) -> bool:
    every, all_scores, step = _scored(summary)
    own = [
        (one, score) for one, score in zip(every, all_scores, strict=True) if key in one.values
    ]  # the condition holds
    ranked, scores = [one for one, _ in own], [score for _, score in own]
    places = [_place(summary, one, key) for one in ranked]
    if len(set(places)) < 2:
        return False
    axes.scatter(places[1:], scores[1:], color=OTHER)
    axes.scatter(places[:1], scores[:1], color=GOOD, label="the best")
    _scale(axes.xaxis, axes.set_xscale, summary.config.space[key])
    axes.set(xlabel=key, ylabel=_label(summary), title=f"{key}, at step {step}")
    axes.legend(frameon=False)
    return True


def _map(axes: Any, summary: Summary, one: str, other: str) -> bool:
    """The plane of two keys, with the settings on it."""
    ranked, scores, step = _scored(summary)
    columns = [[_place(summary, setting, key) for setting in ranked] for key in (one, other)]
    if any(len({place for place in column if place == place}) < 2 for column in columns):  # NaN: outside of its choices
        return False
    found = axes.scatter(
        *columns,
        c=scores,
        s=90,
        cmap="viridis" if summary.config.scores[0].better == "higher" else "viridis_r",
    )
    axes.annotate("best", (_place(summary, ranked[0], one), _place(summary, ranked[0], other)), (8, 8),
                  textcoords="offset points")  # fmt: skip
    _scale(axes.xaxis, axes.set_xscale, summary.config.space[one])
    _scale(axes.yaxis, axes.set_yscale, summary.config.space[other])
    axes.figure.colorbar(found, label=_label(summary))
    axes.set(xlabel=one, ylabel=other, title=f"{one} and {other}, at step {step}")
    return True


def _parallel(axes: Any, summary: Summary) -> bool:
    """Every setting as a line over all keys and the score, the best in front."""
    ranked, scores, step = _scored(summary)
    keys = list(summary.config.space)
    if not ranked or len(keys) < 2:
        return False
    spread = max(scores) - min(scores) or 1.0
    goodness = [(scores[-1] - score) / (scores[-1] - scores[0] or 1.0) for score in scores]
    for setting, score, good in reversed(list(zip(ranked, scores, goodness, strict=True))):
        shares = [_share(summary, setting, key) for key in keys]
        is_best = setting is ranked[0]
        axes.plot([*shares, (score - min(scores)) / spread], color=GOOD if is_best else OTHER,
                  linewidth=2.4 if is_best else 1, alpha=0.35 + 0.65 * good)  # fmt: skip
    axes.set_xticks(range(len(keys) + 1), [*keys, summary.config.scores[0].name], rotation=15, ha="right")
    ends = [*(_ends(summary.config.space[key]) for key in keys), (f"{min(scores):.3g}", f"{max(scores):.3g}")]
    for place, (low, high) in enumerate(ends):
        axes.text(place, -0.04, low, ha="center", va="top", fontsize=8)
        axes.text(place, 1.04, high, ha="center", va="bottom", fontsize=8)
    axes.set(ylim=(-0.14, 1.14), yticks=[], title=f"Settings at step {step}; the best is green")
    return True


def _importance(axes: Any, summary: Summary) -> bool:
    """How much each key decides whether a setting is good (PED-ANOVA)."""
    import optuna

    ranked, _, step = _scored(summary)
    changes = any(domain.when for domain in summary.config.space.values()) or summary.config.scheduler == "pbt"
    if len(ranked) < FEWEST_FOR_IMPORTANCE or changes:
        return False
    sign = 1 if summary.config.scores[0].better == "lower" else -1  # the method looks at the lowest
    study = study_of(summary.config, summary.rungs, ranked)
    with warnings.catch_warnings(action="ignore"):
        found = optuna.importance.get_param_importances(
            study,
            evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
            target=lambda trial: sign * trial.values[0],
        )
    axes.barh(list(found)[::-1], list(found.values())[::-1], color=GOOD)
    axes.set(xlabel="importance (PED-ANOVA)", title=f"Which key decides, by {len(ranked)} settings at step {step}")
    return True


def _rungs(axes: Any, summary: Summary) -> bool:
    """Scores at each rung against those at the end."""
    predictions = [one for one in summary.predictions() if one.settings > 1]
    for prediction in predictions:
        pairs = summary.early_and_late(prediction.step)
        told = "" if prediction.correlation is None else f", rank correlation {prediction.correlation:.2f}"
        axes.scatter(*zip(*pairs, strict=True), label=f"step {prediction.step}{told}")
    name = summary.config.scores[0].name
    axes.set(
        xlabel=f"{name} at the rung",
        ylabel=f"{name} at step {summary.rungs.steps[-1]}",
        title="Do the rungs predict the end?",
    )
    if predictions:
        axes.legend(frameon=False)
    return bool(predictions)


def _front(axes: Any, summary: Summary) -> bool:
    """Both scores of every setting; those that no other beats in both are green."""
    ranked, _, step = _scored(summary)
    if len(summary.config.scores) < 2 or not ranked:
        return False
    front = {one.number for one in summary.front(step)}
    for setting in ranked:
        score = setting.score(step, summary.rungs.seeds) or (0.0, 0.0)
        axes.scatter(*score, color=GOOD if setting.number in front else OTHER)
        axes.annotate(str(setting.number), score, (4, 4), textcoords="offset points", fontsize=8)
    names = short(score.name for score in summary.config.scores)
    one, other = (
        f"{name} ({score.better} is better)" for name, score in zip(names, summary.config.scores, strict=True)
    )
    axes.set(xlabel=one, ylabel=other, title=f"Both scores at step {step}; green: beaten by no other in both")
    return True


def _pairs(summary: Summary) -> list[tuple[str, str]]:
    """Pairs of keys for a map: alpha and beta where both vary, else the first two."""
    keys = list(summary.config.space)
    known = [key for key in ("objective.alpha", "objective.beta") if key in keys]
    pair = known if len(known) == 2 else keys[:2]
    return [(pair[0], pair[1])] if len(pair) == 2 else []


def _place(summary: Summary, setting: Setting, key: str) -> Any:
    """The value on an axis; a choice has its place among all."""
    value, domain = current_values(summary.config, setting.values)[key], summary.config.space[key]
    if domain.choice is None:
        return value
    return domain.choice.index(value) if value in domain.choice else np.nan


def _share(summary: Summary, setting: Setting, key: str) -> float:
    domain, value = summary.config.space[key], current_values(summary.config, setting.values)[key]
    if domain.choice is not None:
        return domain.choice.index(value) / max(len(domain.choice) - 1, 1) if value in domain.choice else np.nan
    return domain.share_of(value) if domain.contains(value) else np.nan


def _ends(domain: DomainConfig) -> tuple[str, str]:
    ends: Sequence[Any] = domain.choice if domain.choice is not None else domain.ends
    low, high = ends[0], ends[-1]
    return tuple(f"{end:.3g}" if isinstance(end, int | float) else str(end) for end in (low, high))  # pyright: ignore


def _scale(axis: Any, set_scale: Callable[[str], None], domain: DomainConfig) -> None:
    """Show the whole domain, so that a best value at its end is seen as such."""
    from matplotlib.ticker import NullFormatter

    if domain.loguniform:
        set_scale("log")
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    if domain.choice is None:
        low, high = domain.beside(-0.03), domain.beside(1.03)
        axis.set_view_interval(low, high, ignore=True)
    else:
        axis.set_ticks(range(len(domain.choice)), [str(value) for value in domain.choice])
        axis.set_view_interval(-0.3, len(domain.choice) - 0.7, ignore=True)
    if domain.integer is not None:
        axis.get_major_locator().set_params(integer=True)


def _label(summary: Summary) -> str:
    score = summary.config.scores[0]
    return f"{score.name} ({score.better} is better)"
