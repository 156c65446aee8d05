"""A comparison as CSV, a line for each run and metric, and as JSON with all that the terminal shows."""

import csv
import json
from math import isfinite
from pathlib import Path
from typing import Any

from tuning.comparison.compare import Comparison
from tuning.comparison.run import ComparedRun
from tuning.comparison.setting import Setting
from tuning.comparison.text import COLUMNS, headline, mean, mean_at, reasons, troubles
from tuning.comparison.verdicts import Verdict


def write_csv(path: Path, found: Comparison) -> None:
    """Final, best and equal-amount values; `nan` after a divergence."""
    places = [f"at {found.place}", *(f"at {equal.place}" for equal in found.also)]
    head = ["run", "setting", "seed", "metric", "final", "best", *places, "batch_fingerprint"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*head, "diverged_at_step"])
        for setting in found.settings:
            for metric in found.metrics:
                for run in setting.runs:
                    *own, point = found.values(run, metric)
                    values = [*own, *(equal.value(run, metric) for equal in found.also)]
                    step = point.step if point else ""
                    writer.writerow([run.uri, setting.label, run.seed, metric.name, *values, run.batches, step])


def write_json(path: Path, found: Comparison) -> None:
    """Values that are not finite are null."""
    text = json.dumps(_finite(_tree(found)), indent=2, allow_nan=False, ensure_ascii=False)
    path.write_text(f"{text}\n", encoding="utf-8")


def _tree(found: Comparison) -> dict[str, Any]:
    return {
        "compared_at": {"by": found.measure.by, "unit": found.measure.unit, "value": found.amount},
        "also_at": [{"by": one.measure.by, "unit": one.measure.unit, "value": one.amount} for one in found.also],
        "metrics": [metric._asdict() for metric in found.metrics],
        "differ_in": found.keys,
        "baseline": found.baseline.label,
        "left_out": found.left_out,
        "settings": [_setting(found, setting) for setting in found.settings],
        "verdicts": [_verdict(found, verdict) for verdict in found.verdicts],
    }


def _setting(found: Comparison, setting: Setting) -> dict[str, Any]:
    means = {
        metric.name: {column: mean(found, setting, metric, column) for column in COLUMNS}
        | {f"equal_{one.measure.by}": mean_at(setting, metric, one) for one in found.also}
        for metric in found.metrics
    }
    return {
        "setting": setting.label,
        "params": setting.params,
        "runs": [_run(found, run) for run in setting.runs],
        "means": means,
        "troubles": list(troubles(found, setting)),
    }


def _run(found: Comparison, run: ComparedRun) -> dict[str, Any]:
    metrics = {}
    for metric in found.metrics:
        final, best, equal, point = found.values(run, metric)
        values = {"final": final, "best": best, "equal": equal, "diverged_at_step": point.step if point else None}
        also = {f"equal_{one.measure.by}": one.value(run, metric) for one in found.also}
        metrics[metric.name] = {**values, **also}
    known = {"run": run.uri, "name": run.name, "seed": run.seed, "status": run.status or None}
    return {**known, "batch_fingerprint": run.batches or None, "metrics": metrics}


def _verdict(found: Comparison, verdict: Verdict) -> dict[str, Any]:
    pairs = [{"run": one.run.uri, "baseline": one.baseline.uri, "gain": one.gain} for one in verdict.pairs]
    return {
        "setting": verdict.setting.label,
        "metric": verdict.metric.name,
        "claim": verdict.claim,
        "difference": verdict.difference._asdict() if verdict.difference else None,
        "p_adjusted": verdict.p,
        "more_seeds": verdict.more_seeds,
        "is_withheld": verdict.is_withheld,
        "pairs": pairs,
        "words": [headline(found, verdict), *reasons(found, verdict)],
    }


def _finite(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not isfinite(tree) else tree
