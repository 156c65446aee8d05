"""The driver of a run: checks, captions, vocabulary, run folder and tracking around a trainer."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Protocol

from tips_ray import storage
from tips_ray.config import RunConfig
from tips_ray.console import tell
from tips_ray.data.index import Index
from tips_ray.data.stream import CaptionAccess
from tips_ray.errors import RunPaused, RunStopped
from tips_ray.launch.captions import store_of
from tips_ray.launch.checks import preflight
from tips_ray.launch.surroundings import drop_empty_ranks, spare_loopback
from tips_ray.launch.vocabulary import claim
from tips_ray.runs import Run, RunFolder, checkpoints_of, leased, newest_checkpoint, start_tracking
from tips_ray.runs.mlflow_access import TrackingError
from tips_ray.runs.mlflow_catch_up import catch_up_later, complete
from tips_ray.runs.run import last_step_of
from tips_ray.runs.tracking import Tracking, stored_run_id, tracking_uri

SHOWN = ("data", "run", "resources")
"""Checks whose results every start shows; a dry run shows all."""


class Trainer(Protocol):
    """Trains a run to its end: on Ray (`RayTrainer`), or on the ranks of this machine (`RankTrainer`)."""

    def adapted(self, config: RunConfig) -> RunConfig:
        """The config as this trainer runs it.

        Raises:
            ValueError: it cannot run it.
        """
        ...

    def checks(self, config: RunConfig) -> Mapping[str, Callable[[], str]]:
        """Checks, by name, that replace those of a run on Ray, see `preflight`."""
        ...

    def follow(self, config: RunConfig) -> bool:
        """False: this process is the driver. True: it followed the driver, and the run is over."""
        ...

    def train(self, run: Run, captions: CaptionAccess | None) -> None:
        """Train to the end.

        Args:
            run: config and places.
            captions: access to captions outside the data; None: the data hold them.

        Raises:
            RunFailedError: training stopped.
        """
        ...

    def skip(self, config: RunConfig) -> None:
        """Tell the followers that the run is complete."""
        ...


def pretrain(
    config: RunConfig,
    trainer: Trainer | None = None,
    until_step: int | None = None,
    tags: Mapping[str, str] | None = None,
) -> str:
    """Run or resume `config`.

    Args:
        config: of the run; the same name again resumes.
        trainer: None: on Ray, on the cluster at RAY_ADDRESS or on this machine.
        until_step: optimizer steps after which the run is saved and paused; None: none. The same call without it, or
            with a later step, goes on with the same curve.
        tags: of the MLflow run, beside its own.

    Returns:
        URI of the run folder.

    Raises:
        ValueError: config, data, storage or resources are wrong, or another start trains the run.
        RunFailedError: training stopped.
        RunStopped: it was asked to save and leave, and has.
    """
    spare_loopback()
    drop_empty_ranks()
    if trainer is None:
        from tips_ray.launch.on_ray import RayTrainer  # imports Ray, which other trainers do not need

        trainer = RayTrainer()
    config = trainer.adapted(config)
    folder = RunFolder(storage.resolved(storage.join(config.storage, config.name)))
    if trainer.follow(config):
        return folder.uri
    checked = preflight(config, trainer.checks(config))
    index = checked.require()
    for check, level, text in checked.results:
        if check in SHOWN or level == "warn":
            tell("check", f"{check:10} {text}", check=check, level=level)
    if (step := _done_step(folder)) >= last_step_of(config, until_step):
        if step >= config.schedule.total_steps:
            _complete_tracking(config, folder)
        trainer.skip(config)
        return folder.uri
    with suppress(RunPaused), leased(folder.uri) as generation:
        _train(trainer, config, folder, index, generation, until_step, tags or {})
    return folder.uri


def _train(
    trainer: Trainer,
    config: RunConfig,
    folder: RunFolder,
    index: Index,
    generation: int,
    until_step: int | None,
    tags: Mapping[str, str],
) -> None:
    step = _done_step(folder)  # again: the start that was waited for may have saved
    with captions_of(config, index) as captions:
        tokenizer = claim(config, index, folder, captions, max(step, 0))
        captioner = captions.store.fingerprint if captions else ""
        data = index.uri, tokenizer, index.fingerprint, index.earlier
        run = Run(config, folder.uri, *data, captioner, generation=generation, until_step=until_step)
        with _tracked(run, folder, step if step >= 0 else None, tags) as tracked_run:
            trainer.train(tracked_run, captions)


def _done_step(folder: RunFolder) -> int:
    """Step of the newest complete checkpoint, -1 where there is none."""
    found = newest_checkpoint(checkpoints_of(folder.uri))
    return found.step if found else -1


@contextmanager
def captions_of(config: RunConfig, index: Index) -> Iterator[CaptionAccess | None]:
    """Caption access of the training stream, None if the data hold captions; `live` captions run inside the block."""
    if config.captions.source == "column":
        yield None
    elif config.captions.source == "store":
        yield CaptionAccess(store_of(config))
    else:
        from tips_ray.launch.live_captions import captions_beside_training  # imports Ray

        with captions_beside_training(config, index) as access:
            yield access


@contextmanager
def _tracked(run: Run, folder: RunFolder, resumed_from_step: int | None, tags: Mapping[str, str]) -> Iterator[Run]:
    """The run with its MLflow run; how the block ended is written to MLflow and to the run folder."""
    tracking = _tracking(run, resumed_from_step, tags)
    status, asked = "FAILED", {}
    try:
        yield replace(run, tracking_uri=tracking.uri, mlflow_run_id=tracking.run_id)
        status = "FINISHED"
    except RunPaused:
        status = "SCHEDULED"  # MLflow's word for a run that goes on later
        raise
    except (KeyboardInterrupt, RunStopped) as stop:
        status, asked = "KILLED", {"cause": str(stop)} if isinstance(stop, RunStopped) else {}
        raise
    finally:
        folder.try_event("end", None, status=status, **asked)
        tracking.finish(status)


def _tracking(run: Run, resumed_from_step: int | None, tags: Mapping[str, str]) -> Tracking:
    """Tracking of the run; a run that MLflow knows goes on while MLflow is away, and catches up at its end.

    Raises:
        TrackingError: MLflow cannot take a new run.
    """
    try:
        own = {"batch_fingerprint": run.batch_fingerprint(), **tags}
        return start_tracking(run.config, run.uri, resumed_from_step, run.data_fingerprint, own)
    except TrackingError:
        uri, run_id = tracking_uri(run.config), stored_run_id(run.uri)
        if not uri or not run_id:
            raise
    steps = run.config.schedule.total_steps, run.config.log_every_steps
    return Tracking(uri, run_id, send_missing=partial(catch_up_later, uri, run_id, run.uri, *steps))


def _complete_tracking(config: RunConfig, folder: RunFolder) -> None:
    """Best effort: a run whose end MLflow did not take is sent to it; a failure is only told."""
    uri, run_id = tracking_uri(config), stored_run_id(folder.uri)
    if uri and run_id:
        try:
            complete(uri, run_id, folder.uri, config.schedule.total_steps, config.log_every_steps)
        except TrackingError as error:
            tell("tracking", f"tracking   MLflow may lack the end of this run: {error}")
