"""Evaluated checkpoints in MLflow: each is a LoggedModel with its scores by data set, and pictures with steps.

So `search_logged_models(order_by=[{"field_name": "metrics.retrieval/...", "dataset_name": "flickr"}])` finds the best
checkpoint of all runs on a data set.
"""

import io
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from PIL import Image

from tips_ray import storage
from tips_ray.config import RunConfig
from tips_ray.runs.evaluations import Evaluation, best_steps, evaluations_of, folder_of, score_name
from tips_ray.runs.mlflow_access import without_credentials
from tips_ray.runs.mlflow_catch_up import MOST_METRICS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

PREFIX = "evaluation"
"""Section of MLflow's pages that holds the scores."""
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
    experiment_id = client.get_run(run_id).info.experiment_id
    there = _weights_there(client, run_id, experiment_id)
    for evaluation in known:
        if evaluation.scores and there.get(evaluation.step) != evaluation.weights:
            _send(client, run_id, experiment_id, config.name, run_uri, evaluation)
    _tag_best(client, run_id, config, known)


def _weights_there(client: "MlflowClient", run_id: str, experiment_id: str) -> dict[int, str]:
    """Step -> weights of the evaluations that MLflow has whole."""
    found: dict[int, str] = {}
    token = None
    while True:
        page = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'", page_token=token)
        whole = [one for one in page if one.status == "READY" and "weights" in one.tags]  # a filter finds no status
        found |= {int(model.tags["step"]): model.tags["weights"] for model in whole}
        if not (token := page.token):
            return found


def _send(
    client: "MlflowClient", run_id: str, experiment_id: str, name: str, run_uri: str, evaluation: Evaluation
) -> None:
    """The model is READY last, so that one whose sending was cut off is sent again."""
    from mlflow.entities import LoggedModelOutput

    place = without_credentials(evaluation.checkpoint)
    facts = {"step": str(evaluation.step), "checkpoint": place, "weights": evaluation.weights, "run_name": name}
    model = client.create_logged_model(
        experiment_id, f"{name}-step-{evaluation.step}", run_id, tags=facts, model_type="tips"
    )
    points = list(_points(evaluation, model.model_id, run_id))
    for start in range(0, len(points), MOST_METRICS):
        client.log_batch(run_id, metrics=points[start : start + MOST_METRICS])
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, evaluation.step)])
    for file in storage.list_files(storage.join(folder_of(run_uri, evaluation.step), "pictures")):
        title = file.uri.rpartition("/")[2].removesuffix(".png")
        picture = Image.open(io.BytesIO(storage.read_bytes(file.uri)))
        client.log_image(run_id, picture, key=title, step=evaluation.step)
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
    if (name := score_name(config)) and (best := best_steps(config, known)):
        value = next(one.scores[name] for one in known if one.step == best[0])
        client.set_tag(run_id, "best_step", str(best[0]))
        client.set_tag(run_id, f"best.{name}", f"{value:.6g}")
