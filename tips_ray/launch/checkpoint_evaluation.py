"""Evaluation of a run's own checkpoints: in a Ray task beside training, or on rank 0 while the ranks wait.

Checkpoints are evaluated one after the other, oldest first. What follows from the scores is in `runs.evaluations`.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import partial
from math import isfinite
from typing import Literal

import torch

from tips_ray import storage
from tips_ray.config.evaluation import SuiteConfig, trained_tokens
from tips_ray.console import tell
from tips_ray.errors import RunPaused
from tips_ray.evaluation.checkpoint_pictures import checkpoint_pictures
from tips_ray.evaluation.datasets import Dataset
from tips_ray.evaluation.datasets.needed import with_folders
from tips_ray.evaluation.encoders import Encoder, TipsEncoder
from tips_ray.evaluation.features import encoding_here
from tips_ray.evaluation.load_encoder import load_encoder, move
from tips_ray.evaluation.results import Record, png, run_suite
from tips_ray.evaluation.suite_tasks import EndedTask, by_data, tasks_here
from tips_ray.runs import Run, RunFolder
from tips_ray.runs.checkpoint import CheckpointInfo, DamagedCheckpointError, mark_damaged
from tips_ray.runs.evaluations import (
    PATIENCE,
    Evaluation,
    evaluations_of,
    folder_of,
    required,
    score_name,
    standing_of,
    write,
)

LOOK_SECONDS, RETRY_SECONDS = 2.0, 30.0
log = logging.getLogger(__name__)


def evaluate_checkpoint(run: Run, checkpoint: CheckpointInfo, device: str = "cpu") -> Evaluation:
    """Run the suite on a checkpoint, and write its scores, table and pictures.

    Tasks that cannot be scored make an evaluation with a `failure`: the next checkpoint may do better.

    Args:
        run: whose config names the suite.
        checkpoint: to evaluate.
        device: of the encoder, such as `cuda`.

    Raises:
        DamagedCheckpointError: it cannot be loaded; it is marked, and no longer waits.
        StorageError: the storage does not answer.
    """
    started, bare = time.monotonic(), Evaluation(checkpoint.step, checkpoint.uri)
    try:
        found = _scored(run, bare, device)
    except DamagedCheckpointError as error:
        mark_damaged(checkpoint, str(error))
        raise
    except Exception as error:  # of a task: data that are not there, a device without memory
        if isinstance(error, storage.StorageError) and error.may_pass:
            raise
        found = replace(bare, failure=_sentence(error))
    evaluation = replace(found, time=_now(), seconds=round(time.monotonic() - started, 1))
    write(run.uri, evaluation)
    return evaluation


def with_whole_places(run: Run) -> Run:
    """The run with absolute folders of the data that its checkpoints are evaluated on."""
    config = run.config.evaluation
    if config is None:
        return run
    found = with_folders(config.suite).data
    folders = {name: getattr(data, "folder", None) for name, data in found.items()}
    whole = {
        name: data.model_copy(update={"folder": storage.resolved(folder)}) if (folder := folders[name]) else data
        for name, data in found.items()
    }
    suite = config.suite.model_copy(update={"data": whole})
    return replace(run, config=run.config.model_copy(update={"evaluation": config.model_copy(update={"suite": suite})}))


def note_lost(run: Run, checkpoint: CheckpointInfo, why: str) -> None:
    """Write an evaluation without scores, whose process was lost: it must not be tried for ever."""
    failure = f"its process was lost: {why}"
    write(run.uri, Evaluation(checkpoint.step, checkpoint.uri, time=_now(), failure=failure))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _scored(run: Run, bare: Evaluation, device: str) -> Evaluation:
    """The evaluation with scores, their standard errors, data and weights."""
    suite = with_folders(required(run.config).suite)
    folder = folder_of(run.uri, bare.step)
    storage.delete_folder(folder)  # what an evaluation that was killed has left
    encoder = load_encoder(bare.checkpoint, suite.image_size_px)
    assert isinstance(encoder, TipsEncoder)
    weights = encoder.fingerprint
    move(encoder, device)
    look = partial(_draw, run, encoder, folder)
    run_tasks = partial(_each_task, encoder, suite, look)
    records = run_suite(encoder, bare.checkpoint, suite, folder, lambda name, record: None, run_tasks)
    scores, errors = _flat(records, "scores"), _flat(records, "standard_errors")
    data = {task: (suite.tasks[task].data, one["config"]["files"]) for task, one in records.items()}
    why = _why_incomplete(run, records, scores)
    return replace(bare, scores=scores, standard_errors=errors, data=data, weights=weights, failure=why)


def _each_task(
    encoder: Encoder, suite: SuiteConfig, look: Callable[[str, Dataset], None], names: Sequence[str]
) -> Iterator[EndedTask]:
    """Run the tasks; one that fails is skipped with its reason, and the others of its data are run again without it.

    Raises:
        StorageError: the storage does not answer.
    """
    encoding = encoding_here(encoder, suite.batch_images)
    for group in by_data(suite, names, encoder).values():
        left = list(group)
        while left:
            try:
                for ended in tasks_here(encoder, suite, encoding, tuple(left), look):
                    left.remove(ended.name)
                    yield ended
                break
            except Exception as error:  # labels that are none of the classes, a device without memory
                if isinstance(error, storage.StorageError) and error.may_pass:
                    raise
                if not left:
                    raise  # of the pictures
                yield EndedTask(left.pop(0), {"skipped": _sentence(error)}, {})


def _sentence(error: Exception) -> str:
    """The text of an error, with its kind where the text alone may say nothing."""
    kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())[:500]


def _flat(records: Mapping[str, Record], kind: str) -> dict[str, float | None]:
    return {
        f"{task}/{name}": float(value) if isfinite(value) else None
        for task, record in records.items()
        for name, value in record.get(kind, {}).items()
    }


def _why_incomplete(run: Run, records: Mapping[str, Record], scores: Mapping[str, float | None]) -> str:
    """Tasks that were skipped, and the score of the config that does not exist; empty where there is neither."""
    faults = [f"{task}: {record['skipped']}" for task, record in records.items() if "skipped" in record]
    name = score_name(run.config)
    if name and name not in scores:
        near = get_close_matches(name, list(scores), 3, 0)
        faults.append(f"evaluation.score: there is no {name}; there are such as {', '.join(near)}")
    return "; ".join(faults)


def _draw(run: Run, encoder: TipsEncoder, folder: str, name: str, dataset: Dataset) -> None:
    """Write the pictures of the suite's first data set; some tasks read it at a larger size as well."""
    config = required(run.config)
    is_whole = dataset.test.images_NSS3.shape[1] == encoder.image_size_px
    if config.pictures and is_whole and name == next(iter(config.suite.data)):
        tokens = trained_tokens(run.config.objective)
        for title, pixels_HWC in checkpoint_pictures(encoder, dataset, config.pictures, tokens).items():
            storage.write_bytes(storage.join(folder, "pictures", f"{title}.png"), png(pixels_HWC))


class CheckpointEvaluator:
    """Evaluates what waits."""

    def __init__(self, run: Run, evaluate: Callable[[CheckpointInfo], object]) -> None:
        """
        Args:
            run: whose checkpoints are evaluated.
            evaluate: `evaluate_checkpoint` of the run, here or in a Ray task.
        """
        self.run, self._evaluate = run, evaluate
        self.left = threading.Event()
        """Set when nobody waits for evaluations any more."""
        self.end: int | None = None
        """The step at which patience ran out, once it has."""
        self.folder = RunFolder(run.uri)

    def advance(self) -> Literal["evaluated", "nothing", "away", "ended"]:
        """Evaluate the oldest checkpoint that waits.

        Returns:
            `nothing`: none waits. `away`: the storage does not answer, so it waits on. `ended`: patience has run out.
        """
        try:
            standing = standing_of(self.run.config, self.run.uri)
            if standing.end is not None:
                self.end = standing.end
                return "ended"
            if not standing.waits:
                return "nothing"
            self._evaluate(standing.waits[0])
            self._tell(standing.waits[0].step)
        except DamagedCheckpointError as error:
            log.warning("%s; it is not evaluated", error)
        except storage.StorageError as error:
            log.warning("checkpoints wait for their evaluation: %s", error)
            return "away"
        return "evaluated"

    def advance_all(self, is_asked: Callable[[], bool]) -> None:
        """Evaluate all that waits, until the run is asked to stop or the storage does not answer."""
        while not is_asked() and self.advance() == "evaluated":
            pass

    def _tell(self, step: int) -> None:
        evaluation = next((one for one in evaluations_of(self.run.uri) if one.step == step), None)
        if evaluation is None:
            return
        name = score_name(self.run.config)
        shown = {name: evaluation.scores[name]} if name and name in evaluation.scores else {}
        failure = {"failure": evaluation.failure} if evaluation.failure else {}
        self.folder.try_event("evaluation", step, seconds=evaluation.seconds, scores=shown, **failure)


@contextmanager
def evaluated_beside(evaluator: CheckpointEvaluator, at_end: Callable[[str], object]) -> Iterator[None]:
    """Evaluate checkpoints in a thread during the block, and what waits at its end or at a pause.

    Any other error in the block leaves that waiting for the next start.

    Args:
        evaluator: of a run; nothing happens where its config evaluates nothing.
        at_end: called with the reason once patience has run out.
    """
    if not evaluator.run.config.evaluate_every_steps:
        yield
        return
    is_done = threading.Event()
    thread = threading.Thread(target=_follow, args=(evaluator, at_end, is_done), name="evaluation", daemon=True)
    thread.start()
    try:
        try:
            yield
        except RunPaused:
            _wait_for(thread, is_done)
            raise
        _wait_for(thread, is_done)
    finally:
        evaluator.left.set()
        is_done.set()
        thread.join()


def _wait_for(thread: threading.Thread, is_done: threading.Event) -> None:
    """Let the thread evaluate what waits, and end."""
    is_done.set()
    thread.join(LOOK_SECONDS)
    if thread.is_alive():
        tell("evaluation", f"{'evaluation':10} training is done; the run ends when its checkpoints are evaluated")
    thread.join()


def _follow(evaluator: CheckpointEvaluator, at_end: Callable[[str], object], is_done: threading.Event) -> None:
    while not evaluator.left.is_set():
        is_last = is_done.is_set()  # before it looks: a checkpoint that is saved after the look is found by the next
        found = evaluator.advance()
        if found == "ended":
            at_end(patience_words(evaluator.end))
            return
        if found != "evaluated":
            if is_last:
                return
            is_done.wait(LOOK_SECONDS if found == "nothing" else RETRY_SECONDS)


def patience_words(step: int | None) -> str:
    """Why a run ends before its last step."""
    return f"{PATIENCE}, which ran out at step {step}"


def device_here(gpus: float) -> str:
    """Device of an evaluation that holds GPUs or not."""
    return "cuda" if gpus and torch.cuda.is_available() else "cpu"
