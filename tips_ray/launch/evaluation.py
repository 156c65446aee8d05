"""Evaluate a model by a suite, in this process or on Ray, and send its scores to MLflow where the suite says so.

Ray is imported only where tasks run on it.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from tips_ray.config.evaluation import RayConfig, SuiteConfig
from tips_ray.errors import RunFailedError, described, root_cause
from tips_ray.evaluation.datasets.needed import with_folders
from tips_ray.evaluation.encoder_place import EncoderPlace
from tips_ray.evaluation.encoders import Encoder
from tips_ray.evaluation.features import encoding_here
from tips_ray.evaluation.load_encoder import load_encoder
from tips_ray.evaluation.results import RunTasks, run_suite
from tips_ray.evaluation.suite_tasks import EndedTask, Record, tasks_here
from tips_ray.launch import cluster
from tips_ray.runs.mlflow_checks import require_answer
from tips_ray.runs.tracking import track_scores


def evaluate_model(
    model: str, suite: SuiteConfig, folder: str, tell: Callable[[str, Record], None], is_alone: bool = False
) -> dict[str, Record]:
    """Run the tasks that have no result in `folder` yet.

    Args:
        model: run, checkpoint, folder, npz or timm:NAME.
        suite: tasks and data sets.
        folder: results are read from and written to it, local or s3://.
        tell: gets each task's name and record, also those of tasks that had a result.
        is_alone: evaluate in this process, whatever the suite and RAY_ADDRESS say.

    Returns:
        Every task's record by its name, as `run_suite` returns it.

    Raises:
        ValueError: the model or the data cannot be used, MLflow does not answer, or the folder holds results of other
            weights.
        RunFailedError: a process of Ray was lost; results of tasks that ended are kept.
    """
    suite = with_folders(suite)
    encoder = load_encoder(model, suite.image_size_px)
    if suite.mlflow_uri:
        require_answer(suite.mlflow_uri, "mlflow_uri", suite.experiment)
    found = run_suite(encoder, model, suite, folder, tell, _task_runner(encoder, model, suite, is_alone))
    if suite.mlflow_uri:
        scores = {f"{name}/{key}": value for name in found for key, value in found[name].get("scores", {}).items()}
        track_scores(suite.mlflow_uri, suite.experiment, model, folder, scores)
    return found


def _task_runner(encoder: Encoder, model: str, suite: SuiteConfig, is_alone: bool) -> RunTasks:
    """A runner in this process, or on Ray where the suite or RAY_ADDRESS says so."""
    config = suite.ray or (RayConfig() if cluster.address() else None)
    if config and not is_alone:
        return partial(_tasks_on_ray, encoder, model, suite, config)
    return partial(tasks_here, encoder, suite, encoding_here(encoder, suite.batch_images))


def _tasks_on_ray(
    encoder: Encoder, model: str, suite: SuiteConfig, config: RayConfig, names: Sequence[str]
) -> Iterator[EndedTask]:
    if not names:
        return
    from ray.exceptions import RayError

    from tips_ray.evaluation.suite_pipeline import tasks_on_ray

    cluster.require_room_for_actor(config, config.cpus_per_task)
    cluster.connect(config.actors * config.cpus_per_actor + config.cpus_per_task)
    cluster.quiet_data()
    try:
        yield from tasks_on_ray(encoder, EncoderPlace.of(model, encoder), suite, config, names)
    except RayError as error:
        if isinstance(cause := root_cause(error), (ValueError, OSError)):
            raise cause from None
        raise RunFailedError(
            f"evaluation stopped: {described(error)}; the same command runs the tasks that have no result"
        ) from None
