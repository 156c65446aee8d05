"""Scores of a suite as a Markdown table, beside those that have been published of other models."""

from collections.abc import Iterable, Mapping
from typing import Any

from tips_ray.config.evaluation import SuiteConfig
from tips_ray.evaluation.probe import without_rates


def score_table(model: str, suite: SuiteConfig, tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each score, each published one that is missing here, and each task that has neither.

    A column for each published model.
    """
    models = list(dict.fromkeys(name for task in suite.tasks.values() for of in task.published.values() for name in of))
    lines = [_line(["task", "score", model, *models]), _line(["---"] * 2 + ["---:"] * (1 + len(models)))]
    for name, task in suite.tasks.items():
        record = tasks[name]
        scores = without_rates(record.get("scores", {}))
        for score in dict.fromkeys([*scores, *task.published]) or [""]:
            own = _number(scores[score]) if score in scores else record.get("skipped", "")
            known = task.published.get(score, {})
            lines.append(_line([name, score, own, *(_number(known[one]) if one in known else "" for one in models)]))
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
