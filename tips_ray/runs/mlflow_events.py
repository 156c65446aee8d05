"""Events of a run folder in MLflow: a metric that counts each kind, and a table of all of them."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import accumulate
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


def send_events(client: "MlflowClient", run_id: str, folder: str, events: Events) -> None:
    """Send the events that MLflow lacks, and write the table anew if there are any.

    Args:
        client: of MLflow.
        run_id: of the run.
        folder: URI of the run folder; places below it are shown without it.
        events: all of the run folder, oldest first.
    """
    from mlflow.entities import Metric

    run, events = client.get_run(run_id), _with_steps(events)
    points = [Metric(*point) for point in _counts(events) if point[1] > run.data.metrics.get(point[0], 0)]
    for start in range(0, len(points), MOST_METRICS):
        client.log_batch(run_id, metrics=points[start : start + MOST_METRICS])
    if points:
        client.log_text(run_id, json.dumps(_table(events, folder)), TABLE)
        _mark_as_table(client, run_id, run.data.tags.get(TABLES_TAG, "[]"))


def _with_steps(events: Events) -> list[Mapping[str, Any]]:
    """Events of the driver and of Ray have no step: they get that of the event before."""
    steps = accumulate((event.get("step") for event in events), lambda before, own: before if own is None else own)
    return [{**event, "step": step or 0} for event, step in zip(events, steps, strict=True)]


def _counts(events: Events) -> list[tuple[str, float, int, int]]:
    """Name, count, time in milliseconds and step of each event."""
    counts: Counter[str] = Counter()
    points = []
    for event in events:
        counts[event["kind"]] += 1
        moment = int(datetime.fromisoformat(event["time"]).timestamp() * 1000)
        points.append((f"event/{event['kind']}", float(counts[event["kind"]]), moment, event["step"]))
    return points


def _table(events: Events, folder: str) -> dict[str, list]:
    """Columns and rows as MLflow's `log_table` writes them."""
    rows = [[event["time"][:19], event["kind"], event["step"], _details(event, folder)] for event in events]
    return {"columns": [*COLUMNS, "details"], "data": rows}


def _details(event: Mapping[str, Any], folder: str) -> str:
    parts = [f"{key}: {value}" for key, value in event.items() if key not in COLUMNS]
    return without_credentials(", ".join(parts).replace(f"{folder}/", ""))[:MOST_CHARACTERS]


def _mark_as_table(client: "MlflowClient", run_id: str, marked: str) -> None:
    tables, own = json.loads(marked), {"path": TABLE, "type": "table"}
    if own not in tables:
        client.set_tag(run_id, TABLES_TAG, json.dumps([*tables, own]))
