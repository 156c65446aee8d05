"""Evaluated checkpoints in MLflow: each is a LoggedModel with its scores by data set, and pictures with steps.

So `search_logged_models(order_by=[{"field_name": "metrics.retrieval/...", "dataset_name": "flickr"}])` finds the best
checkpoint of all runs on a data set.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from PIL import Image

from tips_ray import storage
from tips_ray.config import RunConfig
from tips_ray.runs.checkpoint import CheckpointInfo
from tips_ray.runs.evaluations import Evaluation, Standing, evaluations_of, pictures_of, score_name
from tips_ray.runs.mlflow_access import without_credentials
from tips_ray.runs.mlflow_catch_up import MOST_METRICS
from tips_ray.runs.mlflow_note import stored_note

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Metric

PREFIX = "evaluation"
"""Section of MLflow's pages that holds the scores."""
MODEL_TYPE = "tips"
MOST_DIGEST = 36
"""Characters of a data set's digest, by MLflow's limit."""


def send_evaluations(client: "MlflowClient", run_id: str, config: RunConfig, run_uri: str) -> None:
    """Send the evaluations that MLflow lacks.

    Args:
        client: of MLflow.
        run_id: of the run there.
        config: of the run.
        run_uri: its folder, which holds the evaluations.
    """
    if config.evaluation is None or not (known := evaluations_of(run_uri)):
        return
    models = list(_models_of(client, run_id))
    there = {(model.tags.get("step"), model.tags.get("weights")): model for model in models}
    for evaluation in known:
        model = there.get((str(evaluation.step), evaluation.weights))
        if evaluation.scores and (model is None or model.status != "READY"):
            checkpoint = CheckpointInfo(evaluation.checkpoint, evaluation.step, {})
            model = model or _created(client, run_id, config.name, checkpoint, weights=evaluation.weights)
            _send(client, run_id, model, run_uri, evaluation)
    _tag_best(client, run_id, config, known)


def model_of(client: "MlflowClient", run_id: str, name: str, checkpoint: CheckpointInfo) -> "LoggedModel":
    """The LoggedModel of a checkpoint, made where it is missing: one that was evaluated has its scores.

    Args:
        client: of MLflow.
        run_id: of the run that trained it, there.
        name: of that run.
        checkpoint: to find.
    """
    for model in _models_of(client, run_id):
        if model.tags.get("step") == str(checkpoint.step) and model.status == "READY":
            return model
    made = _created(client, run_id, name, checkpoint)
    return client.finalize_logged_model(made.model_id, "READY")


def log_lineage(client: "MlflowClient", run_id: str, events: Sequence[Mapping[str, Any]]) -> None:
    """Link the checkpoints that a run starts or learns from as its input models, where MLflow knows their runs.

    Args:
        client: of MLflow.
        run_id: of the run there.
        events: of the run folder; its `start` says where the weights came from.
    """
    from mlflow.entities import LoggedModelInput
    from mlflow.exceptions import MlflowException

    sources = next((event.get("from") or {} for event in events if event["kind"] == "start"), {})
    there = client.get_run(run_id).data.tags
    for role, source in sources.items():
        place, tag = source.get("checkpoint"), f"lineage.{role}"
        if not place or there.get(tag) == without_credentials(place):
            continue
        run_uri, _, step = place.partition("/checkpoints/step-")
        note = stored_note(run_uri)
        if note and note.run_id:
            try:
                name = str(client.get_run(note.run_id).info.run_name)
                model = model_of(client, note.run_id, name, CheckpointInfo(place, int(step), {}))
                client.log_inputs(run_id, models=[LoggedModelInput(model.model_id)])
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise  # else: the run is tracked elsewhere
        client.set_tag(run_id, tag, without_credentials(place))


def _models_of(client: "MlflowClient", run_id: str) -> Iterator["LoggedModel"]:
    """All LoggedModels of a run; MLflow finds none by a filter of their status."""
    experiment_id, token = client.get_run(run_id).info.experiment_id, None
    while True:
        page = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'", page_token=token)
        yield from page
        if not (token := page.token):
            return


def _created(client: "MlflowClient", run_id: str, name: str, checkpoint: CheckpointInfo, **tags: str) -> "LoggedModel":
    """A new LoggedModel of a checkpoint, which is PENDING; `tags` beside those that say where it is from."""
    place, title = without_credentials(checkpoint.uri), f"{name}-step-{checkpoint.step}"
    facts = {"step": str(checkpoint.step), "checkpoint": place, "run_name": name, **tags}
    experiment_id = client.get_run(run_id).info.experiment_id
    return client.create_logged_model(experiment_id, title, run_id, tags=facts, model_type=MODEL_TYPE)


def _send(client: "MlflowClient", run_id: str, model: "LoggedModel", run_uri: str, evaluation: Evaluation) -> None:
    """The model is READY last, so that one whose sending was cut off is sent again."""
    from mlflow.entities import LoggedModelOutput

    points = list(_points(evaluation, model.model_id, run_id)) if not model.metrics else []
    for start in range(0, len(points), MOST_METRICS):
        client.log_batch(run_id, metrics=points[start : start + MOST_METRICS])
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, evaluation.step)])
    for title, uri in pictures_of(run_uri, evaluation.step).items():
        client.log_image(run_id, Image.open(io.BytesIO(storage.read_bytes(uri))), key=title, step=evaluation.step)
    client.finalize_logged_model(model.model_id, "READY")


def _points(evaluation: Evaluation, model_id: str, run_id: str) -> Iterator["Metric"]:
    from mlflow.entities import Metric

    ended_ms = int(datetime.fromisoformat(evaluation.time).timestamp() * 1000)
    for name, value in evaluation.scores.items():
        data, digest = evaluation.data[name.partition("/")[0]]
        known = {"dataset_name": data, "dataset_digest": digest[:MOST_DIGEST] or data, "run_id": run_id}
        if value is not None:
            yield Metric(f"{PREFIX}/{name}", value, ended_ms, evaluation.step, model_id, **known)


def _tag_best(client: "MlflowClient", run_id: str, config: RunConfig, known: Sequence[Evaluation]) -> None:
    """Tags with the best step and its score, which MLflow's list of runs can show."""
    if (name := score_name(config)) and (best := Standing(config, known, ()).best_steps()):
        value = next(one.scores[name] for one in known if one.step == best[0])
        client.set_tag(run_id, "best_step", str(best[0]))
        client.set_tag(run_id, f"best.{name}", f"{value:.6g}")
