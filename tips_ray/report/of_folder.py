"""Report made from a run folder alone: config, curves, events, bad rows."""

import io
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tips_ray import storage
from tips_ray.report.content import Report
from tips_ray.report.html import number
from tips_ray.runs.evaluations import evaluations_of, pictures_of
from tips_ray.runs.folder import CONFIG, RunFolder, parsed_config
from tips_ray.runs.loss_health import findings_of, trivial_values_of

Line = Mapping[str, Any]


def report_of(folder: str) -> Report:
    """The report that `tips-ray report` writes; a job with more information replaces fields of it.

    Raises:
        StorageError: `folder` holds no config of a run.
    """
    run = RunFolder(storage.resolved(folder))
    text = storage.read_text(uri := storage.join(run.uri, CONFIG))
    config, metrics, events = parsed_config(text, uri), run.read_metrics(), run.read_events()
    times = sorted(line["time"] for line in (*metrics, *events))
    total_steps = _value(config, "schedule", "total_steps")
    started, evaluations = _last_of(events, "start"), evaluations_of(run.uri)
    return Report(
        name=str(config.get("name", Path(folder).name)),
        headline=_headline(metrics, total_steps),
        key_scores=_key_scores(metrics),
        created=times[-1][:16].replace("T", " ") + " UTC" if times else "",
        run={**_summary(config), **_course(times, events)},
        machine=started.get("machine", {}),
        versions=started.get("versions", {}),
        images_per_second=_speeds(metrics),
        metrics=metrics,
        evaluations=evaluations,
        task_pictures=_pictures(run.uri, evaluations[-1].step) if evaluations else {},
        findings=findings_of(config, metrics),
        trivial=trivial_values_of(config),
        events=events,
        rejects=run.read_rejects(),
        config=text,
        next_commands=_next_commands(folder, metrics, total_steps),
    )


def _pictures(run_uri: str, step: int) -> dict[str, np.ndarray]:
    """Pictures of the checkpoint of a step, by title."""
    titles = {"attention": "attention (image, CLS-web, CLS-synthetic)", "features": "features (image, patches)"}
    found = {}
    for title, uri in pictures_of(run_uri, step).items():
        words = titles.get(title, title.replace("-", ", "))
        found[f"step {step}: {words}"] = np.asarray(Image.open(io.BytesIO(storage.read_bytes(uri))))
    return found


def _headline(metrics: Sequence[Line], total_steps: Any) -> str:
    if not metrics:
        return "No step has been logged yet."
    step = metrics[-1]["step"]
    progress = f"All {number(step)} steps are done" if step == total_steps else f"Step {step} of {total_steps} is done"
    losses = [line["loss/total"] for line in metrics if isfinite(line.get("loss/total", float("nan")))]
    return f"{progress}; the loss went from {number(losses[0])} to {number(losses[-1])}." if losses else f"{progress}."


def _key_scores(metrics: Sequence[Line]) -> dict[str, float]:
    """Last values of the losses, the total first."""
    last = metrics[-1] if metrics else {}
    losses = sorted((name for name in last if name.startswith("loss/")), key=lambda name: (name != "loss/total", name))
    return {name: last[name] for name in losses[:5]}


def _speeds(metrics: Sequence[Line]) -> dict[str, float]:
    """Median speed of training, because the first steps and those after a restart are slow."""
    speeds = sorted(line["images_per_second"] for line in metrics if "images_per_second" in line)
    return {"training": speeds[len(speeds) // 2]} if speeds else {}


def _summary(config: Line) -> dict[str, Any]:
    sources = [str(source.get("uri")) for source in _value(config, "data", "sources") or ()]
    facts = {
        "size": config.get("variant"),
        "image encoder": _sizes(config.get("image") or {}),
        "text encoder": _sizes(config.get("text") or {}),
        "data": ", ".join(sources),
        "images per step": config.get("global_batch_images"),
        "workers": _value(config, "resources", "workers"),
        "steps": _value(config, "schedule", "total_steps"),
        "peak learning rate": _value(config, "schedule", "peak_lr"),
    }
    return {name: value for name, value in facts.items() if value not in (None, "")}


def _sizes(encoder: Line) -> str:
    return f"{encoder['depth']} layers of width {encoder['width']}" if {"depth", "width"} <= encoder.keys() else ""


def _course(times: Sequence[str], events: Sequence[Line]) -> dict[str, Any]:
    if not times:
        return {}
    seconds = (datetime.fromisoformat(times[-1]) - datetime.fromisoformat(times[0])).total_seconds()
    resumes = sum(event["kind"] == "resume" for event in events)
    return {"from start to end": str(timedelta(seconds=round(seconds))), "resumed": f"{resumes} times"}


def _next_commands(folder: str, metrics: Sequence[Line], total_steps: Any) -> dict[str, str]:
    if metrics and metrics[-1]["step"] == total_steps:
        return {
            f"tips-ray evaluate {folder}": "Evaluate it",
            f"tips-ray export {folder} --to transformers OUT": "Export the model",
        }
    config = storage.join(folder, "config.yaml") if storage.is_local(folder) else "RUN.yaml"
    return {f"tips-ray pretrain {config}": "Go on with the run"}


def _last_of(events: Sequence[Line], kind: str) -> Line:
    return next((event for event in reversed(events) if event["kind"] == kind), {})


def _value(tree: Line, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) or {}
    return tree or None
