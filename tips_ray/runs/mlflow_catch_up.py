"""Metrics that MLflow lacks, sent from the run folder: it was away, or lost the run."""

import logging
from datetime import datetime
from typing import TYPE_CHECKING

from tips_ray.runs.folder import RunFolder

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

MOST_METRICS = 1000
"""MLflow's limit per request."""
IN_EVERY_LINE = "loss/total"


def catch_up(client: "MlflowClient", run_id: str, folder: str, last_step: int, log_every_steps: int) -> None:
    """Send the lines of the run folder up to `last_step` that MLflow does not have.

    The folder is read only where a logged step is missing. A line counts as there if its `loss/total` is.
    """
    from mlflow.entities import Metric

    there = {point.step for point in client.get_metric_history(run_id, IN_EVERY_LINE)}
    if there.issuperset(range(log_every_steps, last_step + 1, log_every_steps)):
        return
    lines = [line for line in RunFolder(folder).read_metrics() if line["step"] <= last_step]
    missing = [line for line in lines if line["step"] not in there and IN_EVERY_LINE in line]
    points = [
        Metric(name, value, int(datetime.fromisoformat(line["time"]).timestamp() * 1000), line["step"])
        for line in missing
        for name, value in line.items()
        if name not in ("step", "time")
    ]
    for start in range(0, len(points), MOST_METRICS):
        client.log_batch(run_id, metrics=points[start : start + MOST_METRICS])
    if missing:
        logger.warning("MLflow lacked %d logged steps, which are sent from %s", len(missing), folder)
