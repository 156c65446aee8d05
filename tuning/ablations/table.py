"""Writes results of an ablation's runs as results.json and a Markdown table, with a verdict on every direction."""

import json
from collections.abc import Iterable, Sequence
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from tips_ray import storage
from tips_ray.config import RunConfig
from tips_ray.config.ablation import AblationConfig, DirectionConfig, MetricConfig
from tips_ray.config.evaluation import trained_tokens
from tips_ray.runs.folder import RunFolder
from tips_ray.storage import without_credentials
from tuning.ablations.significance import Gain, Measured, Verdict, gain, verdict

Table = dict[str, dict[str, Measured | None]]
"""Row -> metric -> score; None where the row does not log the metric."""


class RowRun(NamedTuple):
    """One row with one seed: a run and its evaluation."""

    row: str
    seed: int
    config: RunConfig
    results: Path
    """Folder of the evaluation."""


def written_table(config: AblationConfig, runs: Sequence[RowRun], out: Path) -> str:
    """Write `results.json` and `table.md` below `out`; return the table.

    Args:
        config: config of the ablation.
        runs: all rows with all seeds, evaluated.
        out: folder to write to.

    Raises:
        ValueError: the results lack a score that a metric names.
    """
    table = measured(config, runs)
    judged = [(direction, *_judged(config, table, direction)) for direction in config.directions]
    text = f"{_described(config, runs[0].config)}\n\n{markdown(config, table, judged)}"
    (out / "table.md").write_text(text, encoding="utf-8")
    content = {
        "rows": {row: {name: _record(found) for name, found in scores.items()} for row, scores in table.items()},
        "directions": [_direction_record(*one) for one in judged],
        "config": config.model_dump(mode="json"),
    }
    (out / "results.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return text


def measured(config: AblationConfig, runs: Sequence[RowRun]) -> Table:
    """Scores of every row by every metric."""
    table: Table = {}
    for row in config.rows:
        of_row = [one for one in runs if one.row == row]
        table[row] = {
            name: _logged(metric, of_row) if metric.metric else _of_task(metric, of_row)
            for name, metric in config.metrics.items()
        }
    return table


def _logged(metric: MetricConfig, of_seeds: Sequence[RowRun]) -> Measured | None:
    """The last values that the runs have logged; a restart shortly before the end may have left out some lines."""
    logged = [_last_logged(metric, one.config) for one in of_seeds]
    values = [value for value in logged if value is not None]
    if not values:
        return None
    if len(values) < len(logged) or not all(map(isfinite, values)):
        seeds = ", ".join(
            str(one.seed) for one, value in zip(of_seeds, logged, strict=True) if value is None or not isfinite(value)
        )
        raise ValueError(f"row {of_seeds[0].row}: {metric.metric} is missing or not finite for seed {seeds}")
    return Measured(tuple(values), None)


def _last_logged(metric: MetricConfig, run: RunConfig) -> float | None:
    """Mean over the last `over_steps` steps of those up to the last line that has the metric."""
    folder = RunFolder(storage.join(run.storage, run.name))
    found = [(line["step"], line[metric.metric]) for line in folder.read_metrics() if metric.metric in line]
    return fmean(value for step, value in found if step > found[-1][0] - metric.over_steps) if found else None


def _of_task(metric: MetricConfig, of_seeds: Sequence[RowRun]) -> Measured:
    score = (metric.score or "").format(**trained_tokens(of_seeds[0].config.objective))
    records = [json.loads((one.results / "results.json").read_text())["tasks"][metric.task] for one in of_seeds]
    missing = [record for record in records if score not in record.get("scores", {})]
    if missing:
        known = ", ".join(missing[0].get("scores", {})) or missing[0].get("skipped")
        raise ValueError(f"task {metric.task} has no score {score}; it has {known}")
    if any(record["scores"][score] is None for record in records):
        raise ValueError(f"task {metric.task}: {score} is not a finite number")
    return Measured(tuple(record["scores"][score] for record in records), records[0]["standard_errors"][score])


def _judged(config: AblationConfig, table: Table, direction: DirectionConfig) -> tuple[Gain, Verdict]:
    row, over = (table[name][direction.metric] for name in (direction.row, direction.over))
    found = gain(row, over, config.metrics[direction.metric].better)
    return found, verdict(found, direction)


def markdown(config: AblationConfig, table: Table, judged: Sequence[tuple[DirectionConfig, Gain, Verdict]]) -> str:
    """Tables of the scores by row, of the directions, and of the verdicts' counts."""
    heads = [f"{metric.title} {'↑' if metric.better == 'higher' else '↓'}" for metric in config.metrics.values()]
    rows = [
        [config.rows[row].title, *(_cell(found, config.rows[row].paper.get(name)) for name, found in scores.items())]
        for row, scores in table.items()
    ]
    directions = [_direction_line(config, *one) for one in judged]
    counts = _lines(["Verdict", "Directions"], [[name, str(count)] for name, count in _counted(judged).items()])
    parts = [_lines(["Row", *heads], rows)]
    if judged:
        titles = ["Metric", "Row", "over", "Paper", "Better by", "Margin", "Verdict"]
        parts += [_lines(titles, directions), counts]
    return "\n\n".join(parts) + "\n"


def _described(config: AblationConfig, run: RunConfig) -> str:
    steps, images = run.schedule.total_steps, run.global_batch_images
    spread = "one seed, so that no spread over seeds is known: ± is the standard error over the test images"
    if config.replicas > 1:
        seeds = ", ".join(str(run.seed + number) for number in range(config.replicas))
        spread = f"seeds {seeds}: ± is the standard deviation over them"
    return (
        f"{steps:,} steps of {images} images in every row, {_data(config, run)}; {spread}. "
        "In brackets the paper's figure, on its own data. A difference counts above its margin, two standard errors; "
        "where (same) is expected, it has to stay within a bound."
    )


def _data(config: AblationConfig, run: RunConfig) -> str:
    if config.scenes:
        return f"{config.scenes:,} rendered scenes"
    return ", ".join(without_credentials(source.uri) for source in run.data.sources)


def _cell(found: Measured | None, paper: float | None) -> str:
    published = "" if paper is None else f" ({paper:g})"
    if found is None:
        return f"-{published}"
    error = found.error if found.spread is None else found.spread
    spread = "" if error is None else f" ± {error:.3f}"
    return f"{found.mean:.3f}{spread}{published}"


def _direction_line(config: AblationConfig, direction: DirectionConfig, found: Gain, judged: Verdict) -> list[str]:
    metric, row, over = config.metrics[direction.metric], config.rows[direction.row], config.rows[direction.over]
    meant = " (same)" if direction.expect == "same" else ""
    figures = [_figure(found.mean, "+.3f"), _figure(found.margin, ".3f")]
    return [f"{metric.title}{meant}", row.title, over.title, direction.paper, *figures, judged]


def _figure(value: float, form: str) -> str:
    return format(value, form) if isfinite(value) else "-"


def _counted(judged: Iterable[tuple[DirectionConfig, Gain, Verdict]]) -> dict[Verdict, int]:
    counts: dict[Verdict, int] = dict.fromkeys(("shows", "does not show", "cannot tell"), 0)
    for _, _, name in judged:
        counts[name] += 1
    return counts


def _lines(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows))


def _record(found: Measured | None) -> dict[str, Any] | None:
    return found and {**found._asdict(), "mean": found.mean, "spread": found.spread}


def _direction_record(direction: DirectionConfig, found: Gain, judged: Verdict) -> dict[str, Any]:
    mean, margin = (value if isfinite(value) else None for value in found)
    return {**direction.model_dump(), "gain": mean, "margin": margin, "verdict": judged}
