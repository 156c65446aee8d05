"""The recorder writes beside training, and before a checkpoint counts as written."""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from toy import TOY, toy_batch
from toy_run import toy_job

from tips_ray import storage
from tips_ray.batch import Batch
from tips_ray.config import RunConfig, override
from tips_ray.runs import jsonl
from tips_ray.runs.folder import RunFolder
from tips_ray.train.loop import train
from tips_ray.train.run_recorder import RunRecorder
from tips_ray.train.state import new_state

IMAGES, BAD = 4, (1, 5)
"""Every step has `IMAGES` rows; the second row of these steps is bad."""


def _config() -> RunConfig:
    run = {"name": "toy", "data": {"sources": [{"uri": "x"}], "max_bad_fraction": 1}, "global_batch_images": IMAGES}
    keys = {
        "log_every_steps": 1,
        "checkpoint_every_steps": 4,
        "checkpoint_every_minutes": None,
        "schedule.total_steps": 6,
    }
    return override(RunConfig, {**TOY, **run}, keys)


def _columns(step: int) -> dict[str, Any]:
    keys, bad = np.array([f"image {step}-{row}" for row in range(IMAGES)]), (np.arange(IMAGES) == 1) & (step in BAD)
    names = {"sample_id": np.arange(IMAGES) + 10 * step, "step": np.full(IMAGES, step)}
    return {**names, "key": keys, "valid": ~bad, "reject": np.where(bad, "no image", "")}


def _steps(recorder: RunRecorder) -> Iterator[list[Batch]]:
    for step in range(6):
        recorder.note_rows(_columns(step))
        yield [toy_batch(IMAGES, seed=step).to("cpu", torch.float32)]
        recorder.note_step()


@pytest.mark.parametrize("folder", ["s3", "local"], indirect=True)
def test_training_writes_nothing_itself_and_lines_are_there_before_their_checkpoint(folder, monkeypatch):
    writers, before_manifest = set(), {}

    def watch(module, name: str) -> None:
        write = getattr(module, name)

        def watched(uri: str, *of):
            if uri.endswith(".jsonl"):
                writers.add(threading.current_thread().name.partition("_")[0])
            if uri.endswith("manifest.json"):
                there = RunFolder(folder)
                lines = [line["step"] for line in there.read_metrics()], [line["step"] for line in there.read_rejects()]
                before_manifest[uri.rpartition("step-")[2]] = lines
            return write(uri, *of)

        monkeypatch.setattr(module, name, watched)

    recorder = RunRecorder(toy_job(config := _config(), folder), 0, torch.device("cpu"), lambda metrics: None)
    for module, name in ((jsonl, "_append"), (storage, "write_text"), (storage, "create_text")):
        watch(module, name)
    train(new_state(config), _steps(recorder), config, recorder)
    assert writers <= {"lines", "checkpoint"} and "lines" in writers
    recorder.close()
    (first_steps, first_rejects), (all_steps, all_rejects) = before_manifest.values()
    assert (
        first_steps[:4] == [1, 2, 3, 4]
        and first_rejects[:1] == [1]
        and (all_steps, all_rejects) == ([*range(1, 7)], [1, 5])
    )
    events = [event["kind"] for event in RunFolder(folder).read_events()]
    assert events == ["start", "checkpoint", "checkpoint"]


def test_a_run_on_an_object_store_has_a_part_of_metrics_for_each_checkpoint(s3, tmp_path):
    uri = f"{s3.make_bucket('parts')}/{tmp_path.name}"
    recorder = RunRecorder(toy_job(config := _config(), uri), 0, torch.device("cpu"), lambda metrics: None)
    train(new_state(config), _steps(recorder), config, recorder)
    recorder.close()
    names = storage.list_names(f"{uri}/metrics")
    assert 1 <= len(names) <= 3 and [line["step"] for line in RunFolder(uri).read_metrics()] == [1, 2, 3, 4, 5, 6]
    assert 1 <= len(storage.list_names(f"{uri}/rejects")) <= 3


def test_what_bad_rows_are_about_is_read_once_all_of_them_are_written(s3, tmp_path):
    uri = f"{s3.make_bucket('rejects')}/{tmp_path.name}"
    recorder = RunRecorder(toy_job(_config(), uri), 0, torch.device("cpu"), lambda metrics: None)
    recorder.note_rows(_columns(1))
    assert RunFolder(uri).read_rejects() == []
    assert "no image (1, e.g. image 1-1)" in recorder.rejects()
    recorder.close()
