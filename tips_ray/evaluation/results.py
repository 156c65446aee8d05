"""Results of a suite in a folder, local or s3://: `results.json`, a table and pictures. Finished tasks do not rerun."""

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from PIL import Image

from tips_ray import storage
from tips_ray.config.evaluation import SuiteConfig
from tips_ray.evaluation.datasets import fingerprint_of_data
from tips_ray.evaluation.encoders import Encoder
from tips_ray.evaluation.probe import without_rates
from tips_ray.evaluation.suite_tasks import EndedTask, Record, not_given

RESULTS, TABLE = "results.json", "table.md"
RunTasks = Callable[[Sequence[str]], Iterable[EndedTask]]


def run_suite(
    encoder: Encoder,
    model: str,
    suite: SuiteConfig,
    folder: str,
    tell: Callable[[str, Record], None],
    run_tasks: RunTasks,
) -> dict[str, Record]:
    """Run all tasks of the suite that are not done; write each result when its task ends.

    A task is done if the folder has scores for the same config, data and image size. A skipped task is tried again; it
    keeps scores that an earlier run found when its folder was given.

    Args:
        encoder: encoder to evaluate.
        model: name of the encoder.
        suite: tasks and data sets.
        folder: where results are read and written.
        tell: called with each task's name and record.
        run_tasks: runs the tasks with the given names.

    Returns:
        Record of each task: `scores` and their `standard_errors` over the test images, or `skipped` (the reason);
        `seconds`, `left_out` (number of images, or of pixels, by reason).

    Raises:
        ValueError: the folder holds results of other weights, or a task cannot be scored.
    """
    results = _Results(folder, model, encoder.fingerprint)
    keys = {name: _key(suite, name, encoder) for name in suite.tasks}
    done = [name for name, key in keys.items() if results.done(name, key)]
    for name in done:
        tell(name, results.tasks[name])
    due = [name for name in suite.tasks if name not in done]
    skipped = {name: task for name in due if (task := not_given(suite, name))}
    for task in chain(skipped.values(), run_tasks([name for name in due if name not in skipped])):
        results.add(task, keys[task.name])
        tell(task.name, task.record)
    found = {name: results.tasks[name] for name in suite.tasks}
    storage.write_text(storage.join(folder, TABLE), score_table(model, suite, found))
    return found


class _Results:
    """`results.json`, read once and written after each task."""

    def __init__(self, folder: str, model: str, weights: str) -> None:
        self.folder, self.model, self.weights = folder, model, weights
        uri = storage.join(folder, RESULTS)
        content = json.loads(storage.read_text(uri)) if storage.exists(uri) else {"weights": weights, "tasks": {}}
        if content["weights"] != weights:
            raise ValueError(
                f"{folder} holds results of other weights ({content['model']}, sha256 {content['weights'][:12]}); "
                "choose another --output"
            )
        self.tasks: dict[str, Record] = content["tasks"]

    def done(self, name: str, key: Record) -> Record | None:
        """The record of the task, if it has scores for the same config."""
        record = self.tasks.get(name)
        return record if record and record["config"] == key and "scores" in record else None

    def add(self, task: EndedTask, key: Record) -> None:
        if "skipped" in task.record and "scores" in self.tasks.get(task.name, {}):
            return
        if task.pictures:
            storage.mark_output(storage.join(self.folder, "pictures"))
        for title, pixels_HWC in task.pictures.items():
            storage.write_bytes(storage.join(self.folder, "pictures", f"{task.name}-{title}.png"), png(pixels_HWC))
        self.tasks[task.name] = {**task.record, "config": key}
        content = {"model": self.model, "weights": self.weights, "tasks": self.tasks}
        storage.write_text(storage.join(self.folder, RESULTS), json.dumps(content, indent=1) + "\n")


def _key(suite: SuiteConfig, name: str, encoder: Encoder) -> Record:
    """Everything that a result depends on, except the weights."""
    task = suite.tasks[name]
    return {
        "task": task.model_dump(mode="json", exclude={"published"}),
        "data": suite.data[task.data].model_dump(mode="json"),
        "files": fingerprint_of_data(suite.data[task.data]),
        "image_size_px": encoder.image_size_px,
        "patch_dtype": suite.patch_dtype,
        "seed": suite.seed,
    }


def png(pixels_HWC: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, "PNG")
    return buffer.getvalue()


def score_table(model: str, suite: SuiteConfig, tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown table: one line per score, per published score that is missing here, and per task with neither.

    Each published model has a column. Own scores have their standard errors over the test images, and
    a task its protocol, with `changed` if it set some keys itself.
    """
    models = list(dict.fromkeys(name for task in suite.tasks.values() for of in task.published.values() for name in of))
    lines = [_line(["task", "score", model, *models]), _line(["---"] * 2 + ["---:"] * (1 + len(models)))]
    for name, task in suite.tasks.items():
        record = tasks[name]
        scores, errors = without_rates(record.get("scores", {})), record.get("standard_errors", {})
        for score in dict.fromkeys([*scores, *task.published]) or [""]:
            own = number(scores[score], errors.get(score)) if score in scores else record.get("skipped", "")
            known = task.published.get(score, {})
            title = f"{name} ({task.protocol_words})" if task.protocol else name
            lines.append(_line([title, score, own, *(number(known[one]) if one in known else "" for one in models)]))
    return "\n".join(lines) + "\n"


def number(value: float, error: float | None = None) -> str:
    """A score, with its standard error over the test images if it has one."""
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
