"""Metrics that MLflow lacks, sent from the run folder: it was away, or lost the run."""

import logging
from datetime import datetime
from typing import TYPE_CHECKING

from tips_ray.runs.folder import RunFolder
from tips_ray.runs.mlflow_access import mlflow_client, mlflow_failures

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


def catch_up_later(uri: str, run_id: str, folder: str, last_step: int, log_every_steps: int) -> None:
    """`catch_up` with a client that is made now, for a run that was resumed while MLflow was away."""
    catch_up(mlflow_client(uri), run_id, folder, last_step, log_every_steps)


def complete(uri: str, run_id: str, folder: str, last_step: int, log_every_steps: int) -> None:
    """Send what MLflow lacks of a run that is complete, and mark it as finished.

    Raises:
        TrackingError: MLflow is away still, or does not have the run.
    """
    with mlflow_failures(uri, "tracking.mlflow_uri"):
        client = mlflow_client(uri)
        status = client.get_run(run_id).info.status
        catch_up(client, run_id, folder, last_step, log_every_steps)
        if status != "FINISHED":
            client.set_terminated(run_id, "FINISHED")
            logger.warning("MLflow had this run as %s; it is marked as finished", status)
