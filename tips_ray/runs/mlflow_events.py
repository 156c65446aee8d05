"""Events of a run folder in MLflow: a metric that counts each kind, and a table of all of them."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tips_ray.runs.mlflow_access import without_credentials
from tips_ray.runs.mlflow_catch_up import MOST_METRICS

if TYPE_CHECKING:
    from mlflow import MlflowClient

TABLE = "events.json"
TABLES_TAG = "mlflow.loggedArtifacts"
"""MLflow's tag of the artefacts that its pages show as tables."""
COLUMNS = ("time", "kind", "step")
MOST_CHARACTERS = 500
"""Of an event's text in the table; the run folder has all of it."""
Events = Sequence[Mapping[str, Any]]


def send_events(client: "MlflowClient", run_id: str, events: Events) -> None:
    """Send the events that MLflow lacks, and write the table anew if there are any.

    Args:
        client: of MLflow.
        run_id: of the run.
        events: all of the run folder, oldest first.
    """
    from mlflow.entities import Metric

    run = client.get_run(run_id)
    points = [Metric(*point) for point in _counts(events) if point[1] > run.data.metrics.get(point[0], 0)]
    for start in range(0, len(points), MOST_METRICS):
        client.log_batch(run_id, metrics=points[start : start + MOST_METRICS])
    if points:
        client.log_text(run_id, json.dumps(event_table(events)), TABLE)
        _mark_as_table(client, run_id, run.data.tags.get(TABLES_TAG, "[]"))


def _counts(events: Events) -> list[tuple[str, float, int, int]]:
    """Name, count, time in milliseconds and step of each event; one without a step has that of the event before."""
    counts: dict[str, int] = {}
    points, step = [], 0
    for event in events:
        name = f"event/{event['kind']}"
        counts[name] = counts.get(name, 0) + 1
        step = event["step"] if event.get("step") is not None else step
        points.append((name, float(counts[name]), int(datetime.fromisoformat(event["time"]).timestamp() * 1000), step))
    return points


def event_table(events: Events) -> dict[str, list]:
    """Columns and rows as MLflow's `log_table` writes them."""
    rows = [[event["time"][:19], event["kind"], event.get("step"), _details(event)] for event in events]
    return {"columns": [*COLUMNS, "details"], "data": rows}


def _details(event: Mapping[str, Any]) -> str:
    parts = [f"{key}: {value}" for key, value in event.items() if key not in COLUMNS]
    return without_credentials(", ".join(parts))[:MOST_CHARACTERS]


def _mark_as_table(client: "MlflowClient", run_id: str, marked: str) -> None:
    tables, own = json.loads(marked), {"path": TABLE, "type": "table"}
    if own not in tables:
        client.set_tag(run_id, TABLES_TAG, json.dumps([*tables, own]))
