"""Does a sweep of a small run choose for a large one? A part of its settings is trained at a second size and compared.

The larger run is a sweep of its own beside the small one: it can be stopped, killed and looked at like any other.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import atanh, sqrt, tanh
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from tips_ray import storage
from tips_ray.config.load import override
from tips_ray.config.run import RunConfig
from tips_ray.config.sweep import SweepConfig
from tips_ray.runs.run import claim_data, known_data
from tuning.sweeps.folder import kept_lease, sweep_uri
from tuning.sweeps.record import Record, Setting
from tuning.sweeps.run import Execute, require_unchanged, run_sweep
from tuning.sweeps.space import run_of, value_at
from tuning.sweeps.summary import FEWEST, Summary

WIDTHS = ("image.width", "image.num_heads", "image.ffn_hidden", "text.width", "text.num_heads", "text.ffn_hidden",
          "head.hidden", "head.bottleneck")  # fmt: skip
"""Sizes that grow with the width; heads keep their own width, the number of prototypes stays."""
STEPS = ("schedule.total_steps", "start.warmup_heads_steps")
GOOD = 0.5
"""(D) Rank correlation above which the small run's order may be trusted."""
RESAMPLES = 2_000
FACTORS = ("width", "steps")
MOST = 8
"""(D) Settings that are trained at the second size."""


def check_transfer(
    config: SweepConfig, factors: Mapping[str, int], execute: Execute, tell: Callable[[str], None]
) -> Iterator[str]:
    """Train up to `MOST` settings of a sweep at a second size, then compare; yields the result in words.

    Args:
        config: of the small sweep, which has run.
        factors: `width`, `steps` or both, see `factors_of`.
        execute: as for `run_sweep`.
        tell: as for `run_sweep`.

    Raises:
        ValueError: the sweep has too few scores, or its space varies a size that the check scales.
    """
    require_unchanged(config, sweep_uri(config))
    settings, step = chosen(Summary(config, Record(sweep_uri(config))), MOST)
    large = larger(config, factors, len(settings), step)
    add_settings(large, settings, step * factors.get("steps", 1))
    claim_data(sweep_uri(large), known_data(sweep_uri(config)))
    run_sweep(large, execute, tell)
    yield from told(compared(config, large, factors, step), large)


def factors_of(words: Sequence[str]) -> dict[str, int]:
    """`width=2x steps=4x` as whole numbers by name.

    Raises:
        ValueError: a word is none of these.
    """
    found: dict[str, int] = {}
    for word in words:
        name, _, value = word.partition("=")
        number = value.removesuffix("x")
        if name not in FACTORS or not number.isdigit() or int(number) < 1:
            raise ValueError(f"--check-transfer {word}: give width=2x, steps=4x or both, with whole numbers")
        found[name] = int(number)
    if all(number == 1 for number in found.values()):
        raise ValueError("--check-transfer needs another size: width=2x, steps=4x or both")
    return found


def larger(config: SweepConfig, factors: Mapping[str, int], settings: int, step: int) -> SweepConfig:
    """The sweep's config at the second size: run and rungs scaled, no further settings proposed.

    Raises:
        ValueError: the space varies a size that the check scales.
    """
    base, width, steps = run_of(config, {}), factors.get("width", 1), factors.get("steps", 1)
    scaled = {**dict.fromkeys(WIDTHS, width), **dict.fromkeys(STEPS, steps)}
    if clash := [key for key in config.space if scaled.get(key, 1) > 1]:
        raise ValueError(f"space.{clash[0]}: --check-transfer scales this key, so that it cannot vary; leave it out")
    values: dict[str, Any] = {
        key: value_at(base, key) * factor for key, factor in scaled.items() if value_at(base, key) is not None
    }
    if changes := base.schedule.changes:
        moved = [{**one.model_dump(exclude_none=True), "from_step": one.from_step * steps} for one in changes]
        values["schedule.changes"] = moved
    run = override(RunConfig, {**config.run, **_data(base), "name": "large"}, values)
    tree = config.model_dump(mode="json", exclude_none=True) | {
        "name": "-".join([config.name, *(f"{name}{factor}x" for name, factor in factors.items())]),
        "run": run.model_dump(mode="json", exclude_none=True, exclude={"name"}),
        "rungs": [step * steps for step in config.rungs],
        "scheduler": "none",
        "settings": settings,
        "until": step * steps if step in config.rungs else None,
    }
    return override(SweepConfig, {key: value for key, value in tree.items() if key != "scenes"}, {})


def _data(base: RunConfig) -> dict[str, Any]:
    return {"data": base.data.model_dump(mode="json", exclude_none=True)}


def chosen(summary: Summary, most: int) -> tuple[list[Setting], int]:
    """Settings of the small sweep to repeat, evenly over its ranking, and the rung at which they are compared.

    Raises:
        ValueError: no rung was reached by enough settings.
    """
    ranked, step = summary.compared()
    if len(ranked) < FEWEST:
        raise ValueError(
            f"{summary.config.name}: a check needs {FEWEST} settings with scores at one rung, and {len(ranked)} have "
            f"them: run the sweep, or give it more settings"
        )
    places = sorted({round(place) for place in np.linspace(0, len(ranked) - 1, min(most, len(ranked)))})
    return [ranked[place] for place in places], step


def add_settings(large: SweepConfig, settings: Sequence[Setting], step: int) -> None:
    """Give the larger sweep the settings, which may train up to the step; those that it has stay as they are."""
    uri = sweep_uri(large)
    storage.mark_output(uri)
    with kept_lease(uri):
        record = Record(uri)
        known = [one.values for one in record.settings.values()]
        for setting in settings:
            if setting.values not in known:
                record.add_setting(setting.values, f"setting {setting.number}", step)


class Transfer(NamedTuple):
    """Scores of the same settings at two sizes."""

    keys: tuple[str, ...]
    shares_NK: np.ndarray
    """Where each setting's value of each key lies in its domain, 0 to 1; NaN for a choice."""
    small_N: np.ndarray
    """First scores, the lower the better."""
    large_N: np.ndarray


def compared(config: SweepConfig, large: SweepConfig, factors: Mapping[str, int], step: int) -> Transfer:
    """The settings that have scores at both sizes, at the same share of the training."""
    small_sweep, large_sweep = (Summary(one, Record(sweep_uri(one))) for one in (config, large))
    sign = 1 if config.scores[0].better == "lower" else -1
    rows = []
    for setting in large_sweep.settings:
        twin = next((one for one in small_sweep.settings if one.values == setting.values), None)
        early = twin and twin.score(step, small_sweep.rungs.seeds)
        late = setting.score(step * factors.get("steps", 1), large_sweep.rungs.seeds)
        if early and late:
            rows.append((_shares(config, setting), sign * early[0], sign * late[0]))
    shares, small, large_scores = zip(*rows, strict=True) if rows else ([], [], [])
    return Transfer(tuple(config.space), np.array(shares), np.array(small), np.array(large_scores))


def _shares(config: SweepConfig, setting: Setting) -> list[float]:
    base = run_of(config, {})
    found = []
    for key, domain in config.space.items():
        value = setting.values.get(key, value_at(base, key))
        found.append(domain.share_of(value) if domain.choice is None and domain.contains(value) else np.nan)
    return found


def correlation(transfer: Transfer) -> tuple[float, float, float]:
    """Spearman's rank correlation between both sizes, and its 95 % interval (Fisher's z, error 1.06 / (n - 3))."""
    count = len(transfer.small_N)
    found: Any = stats.spearmanr(transfer.small_N, transfer.large_N)
    r = float(found.statistic)
    middle, reach = atanh(min(max(r, -0.999999), 0.999999)), 1.96 * sqrt(1.06 / (count - 3))
    return r, tanh(middle - reach), tanh(middle + reach)


def movements(transfer: Transfer) -> dict[str, tuple[float, float, float]]:
    """By how much of its domain each key's best value moved from small to large, and a 95 % interval (bootstrap)."""
    count = len(transfer.small_N)
    samples = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    found = {}
    for place, key in enumerate(transfer.keys):
        shares_N = transfer.shares_NK[:, place]
        if np.isnan(shares_N).any():
            continue
        own = shares_N[transfer.large_N.argmin()] - shares_N[transfer.small_N.argmin()]
        best = [
            shares_N[rows[transfer.large_N[rows].argmin()]] - shares_N[rows[transfer.small_N[rows].argmin()]]
            for rows in samples
        ]
        low, high = np.quantile(best, (0.025, 0.975))
        found[key] = (float(own), float(low), float(high))
    return found


def told(transfer: Transfer, large: SweepConfig) -> Iterator[str]:
    """The comparison in words; the last line says whether the small sweep may choose for the large run."""
    count = len(transfer.small_N)
    if count < FEWEST:
        yield f"only {count} settings have scores at both sizes, {FEWEST} are needed to say anything"
        return
    r, low, high = correlation(transfer)
    yield f"{count} settings at both sizes ({large.name}): rank correlation {r:.2f} ({low:.2f} to {high:.2f})"
    for key, (moved, least, most) in movements(transfer).items():
        word = "moved" if least > 0 or most < 0 else "did not move for certain"
        yield f"  {key}: the best value {word}, by {moved:+.0%} of its range ({least:+.0%} to {most:+.0%})"
    if low > GOOD:
        yield "the small sweep may choose for the large run"
    elif high < GOOD:
        yield "the small sweep must not choose for the large run: the order of the settings changes with the size"
    else:
        yield f"whether the small sweep may choose for the large run cannot be told from {count} settings"
