"""Captioning through real Ray Data with a tiny PaliGemma: each chunk once, in training order, beside a run."""

import asyncio
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import ray._private.state
from toy_captions import caption_inputs, captioned_run, objects, pids, until

from captioning.tiny import write_paligemma
from tips_ray.captioning.captioner import Captioner
from tips_ray.captioning.stream import CaptionActor, due_chunks, placed_captioner
from tips_ray.config import CaptionerConfig, RunConfig
from tips_ray.data.captions.coordinator import CaptionCoordinator, News
from tips_ray.data.captions.join import place_of, read_captions
from tips_ray.data.captions.store import CaptionStore
from tips_ray.data.decode import decode
from tips_ray.data.index import Index
from tips_ray.data.stream import CaptionAccess
from tips_ray.launch import pretrain
from tips_ray.launch.driver import captions_of
from tips_ray.launch.live_captions import caption_all
from tips_ray.launch.on_ranks import RankTrainer
from tips_ray.runs.folder import RunFolder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_paligemma(tmp_path_factory.mktemp("paligemma"))


def test_captioning_stays_its_lead_ahead_of_training_and_ends_with_it():
    async def story() -> list[tuple[str, bool]]:
        coordinator, seen = CaptionCoordinator(lead_windows=2), []

        async def ask(window: int) -> None:
            seen.append((f"window {window}", await coordinator.admit(window)))

        asks = [asyncio.create_task(ask(window)) for window in (2, 3, 9)]
        await asyncio.sleep(0)
        seen.append(("training reads window 1", True))
        await coordinator.want(1)
        await asyncio.sleep(0.01)
        seen.append(("the run is over", True))
        await coordinator.end()
        await asyncio.gather(*asks)
        return seen

    assert asyncio.run(story()) == [
        ("window 2", True),
        ("training reads window 1", True),
        ("window 3", True),
        ("the run is over", True),
        ("window 9", False),
    ]


def test_the_lead_of_captioning_is_told_until_all_is_made():
    async def story() -> list[int | None]:
        coordinator, leads = CaptionCoordinator(lead_windows=2), []
        leads.append(await coordinator.windows_ahead())
        for reached, wanted in ((3, 1), (3, 5)):
            await coordinator.reached(reached)
            await coordinator.want(wanted)
            leads.append(await coordinator.windows_ahead())
        await coordinator.finish()
        return [*leads, await coordinator.windows_ahead()]

    assert asyncio.run(story()) == [None, 2, -2, None]


def test_chunks_are_due_in_the_order_in_which_the_run_reads_them(tmp_path, model):
    config = captioned_run(tmp_path, model)
    index, inputs = caption_inputs(config)
    due = due_chunks(index, config, inputs.access.store)
    assert sorted(due["chunk"].to_pylist()) == list(range(10))
    assert due["window"].to_pylist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    first_steps = due_chunks(index, config, inputs.access.store, stop=8)
    assert first_steps["window"].to_pylist() == [0, 0, 0]


def test_a_captioner_whose_files_differ_on_this_machine_makes_no_captions(tmp_path, model):
    _, inputs = caption_inputs(captioned_run(tmp_path, model))
    other = CaptionAccess(CaptionStore(f"{tmp_path}/captions", "0123456789abcdef"))
    with pytest.raises(ValueError, match=r"on .* differs from that of the program .*, not 0123456789abcdef; put the"):
        CaptionActor(replace(inputs, access=other), lambda: False)


@pytest.mark.parametrize(
    ("device", "gpus", "placed"), [("auto", 0, "cpu"), ("auto", 0.5, "auto"), ("cuda", 0, "cuda"), ("cpu", 1, "cpu")]
)
def test_a_captioner_that_was_given_no_gpu_takes_none(device, gpus, placed):
    """It would see all GPUs of its node, and take the first, which is a trainer's."""
    assert placed_captioner(CaptionerConfig(model="x", device=device), gpus).device == placed


@pytest.mark.ray
@pytest.mark.slow
def test_every_chunk_is_captioned_once_with_the_captioners_own_texts(tmp_path, model, cluster):
    config = captioned_run(tmp_path, model)
    index, inputs = caption_inputs(config)
    store = inputs.access.store
    store.write(*place_of(index, 3), _kept := _captions_of_chunk_3(index))
    made = caption_all(inputs, due_chunks(index, config, store))
    assert (made.chunks, made.images, made.bad_images) == (9, 36, 1)
    assert due_chunks(index, config, store).num_rows == 0
    found = read_captions(index, range(10), store)
    assert found[3].captions == _kept.captions
    captioner = Captioner(inputs.captioner)
    for number in (0, 1, 9):
        for row, texts, error in zip(index.read(number), found[number].captions, found[number].error, strict=True):
            if row["image"] == b"no image":
                assert not texts and error.startswith("not an image")
            else:
                assert [texts] == [made.captions for made in captioner([decode(row["image"], 10**6, 10**6)])]


def _captions_of_chunk_3(index: Index):
    from tips_ray.data.captions.store import ChunkCaptions, image_sha256

    rows = index.read(3)
    return ChunkCaptions(index.chunk(3).row, image_sha256(row["image"] for row in rows), [["kept"]] * 4, [""] * 4)


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["split", "shared"])
def test_a_live_run_trains_on_captions_that_it_makes_and_the_same_run_from_the_store_is_equal(
    stream, tmp_path, model, cluster
):
    keys = {"resources__workers": 1, "schedule__total_steps": 8, "resources__stream": stream}
    live = captioned_run(tmp_path, model, name="live", **keys)
    uri = pretrain(live)
    assert due_chunks(*_needed(live)).num_rows == 0
    rejects = {line["reason"].partition(":")[0] for line in RunFolder(uri).read_rejects()}
    assert rejects <= {"not an image"}  # of row 6
    stored = captioned_run(tmp_path, model, name="stored", **keys, captions__source="store")
    runs = uri, pretrain(stored, RankTrainer())
    losses = [[line["loss/total"] for line in RunFolder(run).read_metrics()] for run in runs]
    assert len(losses[0]) == 8 and losses[0] == losses[1]


def _needed(config: RunConfig):
    index, inputs = caption_inputs(config)
    return index, config, inputs.access.store, config.schedule.total_steps * config.global_batch_images


@pytest.mark.slow
def test_training_is_told_at_once_why_captions_will_not_come(tmp_path, model, cluster):
    config = captioned_run(tmp_path, model)
    index, inputs = caption_inputs(config)
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in model.iterdir():
        broken.joinpath(path.name).write_bytes(b"" if path.suffix == ".safetensors" else path.read_bytes())
    config = captioned_run(tmp_path, broken)
    with captions_of(config, index) as access:
        assert access is not None and access.coordinator is not None
        deadline = time.monotonic() + 120
        while not (why := News(*ray.get(access.coordinator.news.remote())).failure):
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert "captioning stopped" in why and "cannot be loaded" in why


@pytest.mark.ray
@pytest.mark.variant
def test_a_captioner_that_is_killed_leaves_no_chunk_out_and_makes_none_twice(tmp_path, model, cluster):
    config = captioned_run(tmp_path, model, rows=400)
    index, inputs = caption_inputs(config)
    store = inputs.access.store
    made = threading.Thread(target=caption_all, args=(inputs, due_chunks(index, config, store)))
    made.start()
    for chunks in (5, 30):
        until(lambda wanted=chunks: len(objects(store)) >= wanted and pids("CaptionActor"))
        before = objects(store)
        os.kill(pids("CaptionActor").pop(), signal.SIGKILL)
    made.join(240)
    after = objects(store)
    assert due_chunks(index, config, store).num_rows == 0 and len(after) == 100
    assert {path: after[path] for path in before} == before


@pytest.mark.slow
def test_training_begins_with_the_first_captions_and_captioning_outlives_its_restart(tmp_path, model, cluster):
    keys = {"resources__workers": 1, "schedule__total_steps": 60, "checkpoint_every_steps": 4}
    config = captioned_run(tmp_path, model, rows=800, name="live", **keys)
    index, inputs = caption_inputs(config)
    folder, store, seen = RunFolder(f"{config.storage}/live"), inputs.access.store, {}

    def follow() -> None:
        until(folder.read_metrics)
        seen["at step 1"] = len(objects(store))
        until(lambda: folder.read_metrics()[-1]["step"] > 8)
        seen["before"] = pids("CaptionActor")
        os.kill(pids("RayTrainWorker").pop(), signal.SIGKILL)
        until(lambda: any(event["kind"] == "resume" for event in folder.read_events()))
        seen["after"], seen["chunks"] = pids("CaptionActor"), len(objects(store))

    follower = threading.Thread(target=follow)
    follower.start()
    pretrain(config)
    follower.join(240)
    assert seen["at step 1"] < 0.2 * len(index.chunks.rows)
    assert seen["before"] == seen["after"] and len(seen["after"]) == 1
    assert seen["chunks"] < len(objects(store))  # the work was not done by then
    assert folder.read_metrics()[-1]["step"] == 60 and due_chunks(*_needed(config)).num_rows == 0


@pytest.mark.slow
def test_captioning_ends_with_the_run_that_it_was_for(tmp_path, model, cluster):
    config = captioned_run(tmp_path, model, rows=400, captions__lead_windows=30)
    index, inputs = caption_inputs(config)
    with pytest.raises(KeyboardInterrupt), captions_of(config, index):
        until(lambda: len(objects(inputs.access.store)) >= 3)
        raise KeyboardInterrupt
    assert "captioning" not in [thread.name for thread in threading.enumerate()]
    assert 3 <= len(objects(inputs.access.store)) < 60
