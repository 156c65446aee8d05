"""One start of a worker: from a checkpoint to the end, one rank's view, without Ray."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from tips_ray.config import RunConfig
from tips_ray.devices import use_fast_products
from tips_ray.distributed import NCCL_SECONDS, gather_objects, limit_waits, meeting, rank, world_size
from tips_ray.runs.checkpoint import (
    CheckpointInfo,
    DamagedCheckpointError,
    checkpoint_at,
    mark_damaged,
    newest_checkpoint,
)
from tips_ray.runs.folder import RunFolder
from tips_ray.runs.mlflow_facts import versions
from tips_ray.runs.restart import Restart
from tips_ray.runs.run import Run
from tips_ray.runs.stop import stop_watched
from tips_ray.train.checkpointing import load_checkpoint
from tips_ray.train.feed import Feed, Timed, collected_together, fed_steps
from tips_ray.train.graceful_stop import GracefulStop, Paused
from tips_ray.train.initial_weights import load_initial_weights, unloaded_teacher
from tips_ray.train.loop import train
from tips_ray.train.parallelize import prepare_networks
from tips_ray.train.run_recorder import Report, RunRecorder, Show, note_failure, show_nothing
from tips_ray.train.state import TrainState, draw_values, new_state
from tips_ray.train.worker_log import follow_step

OpenStream = Callable[[], tuple[int, Iterator[dict[str, Any]]]]
"""Gives the step at which this rank's stream begins, 0 or that of a checkpoint, and its micro-batches as columns."""
log = logging.getLogger(__name__)


def train_worker(
    run: Run,
    device: torch.device,
    open_stream: OpenStream,
    report: Report,
    asked: Callable[[], str] = lambda: "",
    show: Show = show_nothing,
) -> None:
    """Train from where the stream begins to the end, or to the pause; every rank calls this.

    Args:
        run: config and places.
        device: of this rank.
        open_stream: called once the networks are built.
        report: called for every checkpoint.
        asked: why this rank should leave, empty while it should not.
        show: rank 0 calls it for every logged step; it must not wait.

    Raises:
        GracefulStop: a rank was asked to leave; all that was done is saved, and all ranks raise.
        Paused: the step is reached at which the run pauses; likewise.
        DamagedCheckpointError: the checkpoint of the first step is now marked as damaged; a restart takes an older one.
    """
    config, restart = run.config, Restart()
    torch.set_num_threads(max(int(config.resources.cpus_per_worker), 1))
    use_fast_products(device)
    log.info("%s starts as one of %d ranks on %s; %s", run.uri, world_size(), device, versions())
    with restart.part("load"):
        state = prepared_state(config, device, is_drawn=False)
    follow_step(lambda: state.step)
    with restart.part("data"):
        first_step, stream = open_stream()
    log.info("data begin at step %d, sample %d", first_step, first_step * config.global_batch_images)
    with restart.part("load"):
        weights_from = _filled(state, run, first_step)
        recorder = RunRecorder(run, state.step, device, report, weights_from, restart, show)
    with stop_watched(run, watches=rank() == 0) as asked_in_folder:
        why = partial(_first, asked, asked_in_folder)
        try:
            _train(state, config, Feed(device), Timed(stream), recorder, why, run.until_step)
        except Exception as error:
            log.error("training stops: %s", error)
            recorder.note_failure(state.step, error)
            raise
    recorder.close()
    if state.step < config.schedule.total_steps:
        reason = next(filter(None, gather_objects(why())), "")
        if not reason or state.step == run.last_step:
            raise Paused(f"paused at step {state.step}")
        log.info("all ranks leave: %s", reason)
        raise GracefulStop(reason)
    log.info("all %d steps are done", state.step)


def _train(
    state: TrainState,
    config: RunConfig,
    feed: Feed,
    stream: Timed,
    recorder: RunRecorder,
    why: Callable[[], str],
    until_step: int | None,
) -> None:
    """`train` on the worker's stream."""
    with collected_together() as collect:

        def note_step() -> None:
            recorder.note_step()
            collect(state.step)
            if is_on_gpu:
                # During the first step ranks compile, some with a cache and some without.
                limit_waits("cuda", NCCL_SECONDS)

        is_on_gpu = feed.device.type == "cuda"
        steps = fed_steps(lambda: state.step, config, stream, feed, recorder.note_rows, note_step)
        met = meeting(steps, note_wait=stream.add) if is_on_gpu else steps
        train(state, met, config, recorder, why, until_step, lambda: stream.seconds)


def _first(*asked: Callable[[], str]) -> str:
    """The first reason to leave; empty where there is none."""
    return next(filter(None, (ask() for ask in asked)), "")


def _filled(state: TrainState, run: Run, first_step: int) -> dict[str, dict[str, Any]] | None:
    """Load the checkpoint of the first step, or draw and load initial weights; returns the sources of the latter."""
    if first_step:
        _load(state, run, checkpoint_at(run.checkpoints_uri, first_step))
        return None
    draw_values(state, run.config.seed)
    try:
        weights_from = load_initial_weights(state, run.config)
    except ValueError as error:  # equal on all ranks, such as weights that do not fit: a restart would not help
        note_failure(RunFolder(run.uri, rank()), 0, error)
        raise
    log.info("initial weights: %s", weights_from or f"random, seed {run.config.seed}")
    return weights_from


def _load(state: TrainState, run: Run, checkpoint: CheckpointInfo) -> None:
    """Load the checkpoint; a damaged one is marked, so that the next start takes an older one."""
    try:
        load_checkpoint(state, checkpoint)
    except DamagedCheckpointError as error:
        log.warning("%s", error)
        if rank() == 0:
            mark_damaged(checkpoint, str(error))
            before = newest_checkpoint(run.checkpoints_uri)
            facts = {"uri": checkpoint.uri, "error": str(error), "next": before.step if before else 0}
            RunFolder(run.uri).try_event("damaged", checkpoint.step, **facts)
        gather_objects(None)  # no rank leaves, and ends the group, before the mark is written
        raise
    log.info("checkpoint loaded: %s", checkpoint.uri)


def prepared_state(config: RunConfig, device: torch.device, is_drawn: bool = True) -> TrainState:
    """The state of step 0, sharded over the process group, before initial weights are loaded.

    Args:
        config: of the run.
        device: of this rank.
        is_drawn: see `new_state`.
    """
    prepare = partial(prepare_networks, config.resources, device)
    return new_state(config, unloaded_teacher(config), device, prepare, is_drawn)
