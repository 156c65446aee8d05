"""Compare runs: what differs in their configs, and which metrics are better, worse, or give no claim.

  tips-ray compare out/runs/a out/runs/b                      the first run's setting is the baseline
  tips-ray compare out/runs/* --baseline out/runs/plain-0 --metric loss/total --metric grad_norm:lower
  tips-ray compare out/runs/* --csv runs.csv                  a line for each run and metric

Runs that differ by their seed alone are one setting. Runs of two settings that saw the same batches are pairs: data,
vocabulary, seed, batch size and views must be equal, the number of workers need not. A claim needs six pairs.
"""

import argparse
from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tuning.compare import Metric, Setting
    from tuning.verdict import Difference

METRIC = "loss/total"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray compare`."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, local or s3://")
    parser.add_argument("--baseline", metavar="RUN", help="a run of the setting that others are compared with")
    parser.add_argument(
        "--metric", action="append", metavar="NAME[:higher|:lower]", help=f"default: {METRIC}; may be given again"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write final, best and equal-step values of each run")


def run(arguments: argparse.Namespace) -> None:
    """Read the runs and print the comparison.

    Raises:
        ValueError: there are fewer than two runs, one is no run folder, or they have no metric in common.
    """
    from tuning.compare import ComparedRun, common_step, differing, metric_of, settings_of

    metrics = [metric_of(text) for text in arguments.metric or [METRIC]]
    runs = {found.uri: found for found in map(ComparedRun, [*arguments.runs, *filter(None, [arguments.baseline])])}
    if len(runs) < 2:
        raise ValueError(f"{next(iter(runs))} is the only run: give another one to compare it with")
    compared = list(runs.values())
    keys = differing(compared)
    settings = settings_of(compared, keys)
    step = common_step(compared, metrics)
    first = compared[-1] if arguments.baseline else compared[0]
    baseline = next(setting for setting in settings if first in setting.runs)
    print("\n".join(_lines(settings, baseline, metrics, step, keys)))
    if arguments.csv:
        _write_csv(arguments.csv, settings, metrics, step)


def _lines(
    settings: "list[Setting]", baseline: "Setting", metrics: "list[Metric]", step: int, keys: Sequence[str]
) -> Iterator[str]:
    yield f"differ in: {', '.join(keys) or 'nothing but their seeds'}"
    for setting in settings:
        seeds = ", ".join(str(one.seed) for one in setting.runs)
        label = f"{setting.label} (baseline)" if setting is baseline else setting.label
        yield f"{label}: {_counted(len(setting.runs), 'run')}, seeds {seeds}"
        for metric in metrics:
            final, best, equal = map(_mean, zip(*_table(setting, metric, step), strict=True))
            yield f"  {metric.name}: final {final}, best {best}, at step {step} {equal}"
    others = [setting for setting in settings if setting is not baseline]
    yield from _claim_lines(others, baseline, metrics, step)


def _claim_lines(others: "list[Setting]", baseline: "Setting", metrics: "list[Metric]", step: int) -> Iterator[str]:
    from tuning.compare import difference_at
    from tuning.verdict import claims, fewest_pairs, holm

    places = [(setting, metric) for setting in others for metric in metrics]
    found = [difference_at(setting, baseline, metric, step) for setting, metric in places]
    adjusted = holm([difference.p for difference in found])
    for (setting, metric), difference, claim, p in zip(places, found, claims(found), adjusted, strict=True):
        yield f"{setting.label} against {baseline.label}, {metric.name} at step {step}: {claim}"
        yield f"  {_described(difference, metric)}"
        if len(found) > 1 and isfinite(difference.low):
            yield f"  p {p:.2g} as one of {len(found)} comparisons"
        if claim == "no claim" and (more := fewest_pairs(len(found)) - difference.seeds) > 0:
            yield f"  a claim needs at least {_counted(more, 'more seed')} of both"


def _described(found: "Difference", metric: "Metric") -> str:
    other = "lower" if metric.better == "higher" else "higher"
    way, low, high = (metric.better, found.low, found.high) if found.mean > 0 else (other, -found.high, -found.low)
    interval = f" ({low:.3g} to {high:.3g}), p {found.p:.2g}" if isfinite(low) else ", one seed has no interval"
    how = (
        f"{_counted(found.seeds, 'pair')} on the same batches"
        if found.is_paired
        else "no pairs: the runs saw other batches"
    )
    if found.saved is not None:
        how += f"; pairs correlate by {found.correlation:.2f} and save {found.saved:.0%} of the variance"
    return f"{abs(found.mean):.3g} {way}{interval}, {how}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _mean(values: Sequence[float]) -> str:
    """Mean and, of several, standard deviation."""
    spread = f" ± {stdev(values):.2g}" if len(values) > 1 else ""
    return f"{fmean(values):.4g}{spread}"


def _table(setting: "Setting", metric: "Metric", step: int) -> list[tuple[float, float, float]]:
    """Final, best, and last value up to `step`, of each run."""
    values = [(one.values(metric.name), one.values(metric.name, step)) for one in setting.runs]
    return [(own[-1], metric.best(own), until[-1]) for own, until in values]


def _write_csv(path: Path, settings: "list[Setting]", metrics: "list[Metric]", step: int) -> None:
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "setting", "seed", "metric", "final", "best", f"at step {step}", "batch_fingerprint"])
        for setting in settings:
            for metric in metrics:
                for one, values in zip(setting.runs, _table(setting, metric, step), strict=True):
                    writer.writerow([one.uri, setting.label, one.seed, metric.name, *values, one.batches])
    print(path)
