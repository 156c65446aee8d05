"""The driver of a run: checks, captions, vocabulary, run folder and tracking around a trainer."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

from tips_ray import storage
from tips_ray.config import RunConfig
from tips_ray.console import tell, tell_error
from tips_ray.data.index import Index
from tips_ray.data.stream import CaptionAccess
from tips_ray.errors import RunPaused, RunStopped
from tips_ray.launch.captions import store_of
from tips_ray.launch.checkpoint_evaluation import patience_words
from tips_ray.launch.checks import preflight
from tips_ray.launch.cluster import nodes_of_ray
from tips_ray.launch.surroundings import drop_empty_ranks, spare_loopback
from tips_ray.launch.vocabulary import claim
from tips_ray.runs import Run, RunFolder, checkpoints_of, leased, newest_checkpoint, start_tracking
from tips_ray.runs.checkpoint import drop_later_checkpoints, newest_step
from tips_ray.runs.evaluations import (
    PATIENCE,
    drop_unneeded,
    evaluations_of,
    forget_after,
    forget_failed,
    standing_of,
)
from tips_ray.runs.mlflow_ends import tell_ends
from tips_ray.runs.run import last_step_of
from tips_ray.runs.status import status_of

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

    def evaluate(self, run: Run) -> None:
        """Evaluate checkpoints that wait, of a run of which no step is left."""
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
    rest = rest_of(config, folder.uri, until_step)
    if rest == "nothing":
        if until_step is None or until_step >= config.schedule.total_steps:
            for line in tell_ends([status_of(folder.uri)], config.tracking.mlflow_uri):
                tell("tracking", line)
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
            _finish(trainer, tracked_run, captions)


def _finish(trainer: Trainer, run: Run, captions: CaptionAccess | None) -> None:
    """Train and evaluate what is left; where `evaluation.patience` runs out, drop the checkpoints after that one."""
    rest = rest_of(run.config, run.uri, run.until_step)
    if run.config.evaluation and rest != "nothing" and standing_of(run.config, run.uri).end is None:
        forget_failed(run.uri)
    try:
        if rest == "steps":
            trainer.train(run, captions)
        elif rest == "evaluations":
            trainer.evaluate(run)
        else:
            trainer.skip(run.config)  # another start has finished the run while this one waited for the lease
    except RunStopped as stop:
        if isinstance(stop, RunPaused) or PATIENCE not in str(stop):
            raise
    if run.config.evaluation:
        storage.keep_trying(partial(_drop, run), run.config.checkpoint_patience_seconds)


def _drop(run: Run) -> None:
    """Delete checkpoints that no evaluation needs any more, and all after the one at which patience ran out."""
    if (end := standing_of(run.config, run.uri).end) is not None:
        drop_later_checkpoints(run.checkpoints_uri, end)
        forget_after(run.uri, end)
        text = f"{'evaluation':10} the run ends with the checkpoint of step {end}: patience ran out there"
        tell("evaluation", text, step=end)
    if faulty := [one for one in evaluations_of(run.uri) if not one.scores]:
        words = f"{len(faulty)} checkpoints have no scores, the last that of step {faulty[-1].step}: "
        cure = "the same command tries again those that are still there"
        tell_error(f"{words}{faulty[-1].failure}; {cure}", "evaluation", "warning: ")
    if (newest := newest_step(run.checkpoints_uri)) > 0:
        drop_unneeded(run.config, run.uri, newest)


def rest_of(config: RunConfig, uri: str, until_step: int | None = None) -> Literal["steps", "evaluations", "nothing"]:
    """What is left of a run: steps, evaluations of its checkpoints, or nothing.

    After `evaluation.patience` has run out no steps are left, but later checkpoints may have to be dropped: a run that
    was killed before that still has `evaluations` left.
    """
    found, standing = newest_checkpoint(checkpoints_of(uri)), standing_of(config, uri)
    newest, end = found.step if found else -1, standing.end
    if end is None and newest < last_step_of(config, until_step):
        return "steps"
    over = newest == end if end is not None else not standing.tried_again.waits
    return "nothing" if over else "evaluations"


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
    tracking = start_tracking(
        run.config,
        run.uri,
        resumed_from_step,
        run.data_fingerprint,
        tags={"batch_fingerprint": run.batch_fingerprint(), **tags},
        generation=run.generation,
        cluster=nodes_of_ray,
        write_report=partial(_write_report, run.uri),
    )
    status, asked = "FAILED", {}
    try:
        yield replace(run, tracking_uri=tracking.uri, mlflow_run_id=tracking.run_id)
        status = "FINISHED"
        if run.config.evaluation and (end := standing_of(run.config, run.uri).end) is not None:
            asked = {"cause": patience_words(end)}
    except RunPaused:
        status = "SCHEDULED"  # MLflow's word for a run that goes on later
        raise
    except (KeyboardInterrupt, RunStopped) as stop:
        status, asked = "KILLED", {"cause": str(stop)} if isinstance(stop, RunStopped) else {}
        raise
    finally:
        folder.try_event("end", None, status=status, **asked)
        tracking.finish(status)


def _write_report(run_uri: str, path: Path) -> None:
    from tips_ray.report import write_report
    from tips_ray.report.of_folder import report_of

    write_report(path, report_of(run_uri))
