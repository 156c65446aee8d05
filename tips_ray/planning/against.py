"""What a finished run has reached, from its folder alone, in the names of a plan."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import isfinite
from statistics import median
from typing import Any

from tips_ray.config import RunConfig, override
from tips_ray.planning.machines import GIB
from tips_ray.runs.folder import RunFolder, read_run_config, readable_config, require_run


@dataclass(frozen=True)
class FinishedRun:
    """A run that has reached its end without a change of its workers."""

    config: RunConfig
    """With the workers that it had."""
    gpus: str
    """Such as `h100:64` or `cpu:2`."""
    measured: Mapping[str, float]
    """images_per_second, memory_bytes (of the fullest GPU), wall_seconds."""


def finished_run(uri: str) -> FinishedRun:
    """Read it.

    Raises:
        ValueError: there is no run, it has not ended, its workers have changed, or it has logged too little.
    """
    require_run(uri)
    config, folder = readable_config(read_run_config(uri)), RunFolder(uri)
    if config is None:
        raise ValueError(f"{uri}: another version wrote its config; compare a run of this version")
    events, lines = folder.read_events(), folder.read_metrics()
    start = _only_start(uri, events)
    if not any(event["kind"] == "end" and event["status"] == "FINISHED" for event in events):
        raise ValueError(f"{uri} has not reached its end: compare it when it has (tips-ray runs status)")
    speeds = [line["images_per_second"] for line in lines[1:] if isfinite(line.get("images_per_second", float("nan")))]
    if not speeds:
        raise ValueError(f"{uri} has logged one step: its speed is that of a start; compare a longer run")
    micro = config.micro_batch_images if config.micro_batch_images != "auto" else None
    values = {"resources.workers": start["workers"], "resources.min_workers": None, "micro_batch_images": micro}
    gpus = _gpus(start)
    measured = {"images_per_second": median(speeds), "wall_seconds": _seconds(events)}
    peaks = [line["health/memory_peak_gib"] for line in lines if "health/memory_peak_gib" in line]
    if peaks and not gpus.startswith("cpu"):  # on a CPU it is the whole process with its data
        measured["memory_bytes"] = max(peaks) * GIB
    return FinishedRun(override(RunConfig, config.model_dump(mode="json"), values), gpus, measured)


def _only_start(uri: str, events: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    starts = [event for event in events if event["kind"] in ("start", "resume") and "machine" in event]
    if len({event["workers"] for event in starts}) != 1:
        raise ValueError(f"{uri} had another number of workers at times: compare a run that kept its workers")
    return starts[-1]


def _gpus(start: Mapping[str, Any]) -> str:
    """Kind and number in the words of `--gpus`, from the names that torch gives the accelerators."""
    names = start["machine"]["accelerators"]
    if names == "none":
        return f"cpu:{start['workers']}"
    kind = next((kind for kind in ("a100", "h100", "h200", "l40s", "l4") if re.search(rf"\b{kind}\b", names, re.I)), "")
    if not kind:
        raise ValueError(f"accelerators ({names}): a plan does not know them")
    return f"{'a100-40' if kind == 'a100' and '40GB' in names else kind}:{start['workers']}"


def _seconds(events: Sequence[Mapping[str, Any]]) -> float:
    """From the first start of the workers to the end."""
    first = next(event["time"] for event in events if event["kind"] == "start")
    last = next(event["time"] for event in reversed(events) if event["kind"] == "end")
    return (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds()
