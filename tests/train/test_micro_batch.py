"""micro_batch_images: auto, with a memory limit that the test sets, and with memory that really runs out."""

import json
import resource
from dataclasses import replace
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from toy_run import tiny_run, toy_job

from tips_ray.config import RunConfig
from tips_ray.devices import allocator_settings
from tips_ray.runs.run import Run
from tips_ray.train import micro_batch, worker
from tips_ray.train.micro_batch import RECORD, find, keep, largest_that_fits, noise, settled, step_fits

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path) -> Run:
    """24 images on each of two workers."""
    config = tiny_run(tmp_path, "unused", global_batch_images=48, micro_batch_images="auto")
    return toy_job(config, str(tmp_path / "tiny"))


@pytest.mark.parametrize(("limit", "found"), [(100, 24), (24, 24), (23, 12), (11, 8), (5, 4), (1, 1)])
def test_the_largest_divisor_below_the_limit_is_found(run, limit, found):
    tried = []
    assert largest_that_fits(run.config, lambda images: tried.append(images) or images <= limit) == found
    assert tried[0] == 24 and len(tried) <= 4 and len(set(tried)) == len(tried)


def test_a_worker_without_room_for_one_image_is_told_what_to_do(run):
    with pytest.raises(ValueError, match=r"micro_batch_images \(auto\): .* one image .* resources.recompute=full"):
        largest_that_fits(run.config, lambda images: False)


def test_rows_of_a_pass_stay_below_the_largest_block_of_ray_data(run, monkeypatch):
    monkeypatch.setattr(micro_batch, "BLOCK_BYTES", 9 * micro_batch._row_bytes(run.config))
    assert largest_that_fits(run.config, lambda images: True) == 8


@pytest.mark.heavy
def test_a_step_fits_unless_memory_runs_out_in_it(run, monkeypatch):
    seen = []

    def step(state, micro_batches, *others, own=micro_batch.train_step, **options):
        seen.append([len(batch) for batch in micro_batches])
        if len(micro_batches[0]) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(state, micro_batches, *others, **options)

    monkeypatch.setattr(micro_batch, "train_step", step)
    assert largest_that_fits(run.config, lambda images: step_fits(run.config, images, CPU)) == 6
    assert seen[0] == [24] and [6] * 4 in seen and [8] * 3 in seen
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "Triton Error [CUDA]: out of memory",
        "NCCL error in: NCCLUtils.cpp:77, ncclUnhandledCudaError\nLast error:\nCuda failure 2 'out of memory'",
        "CUDA error: out of memory",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
    ],
)
def test_lack_of_memory_is_noticed_by_the_words_of_each_library(run, monkeypatch, text):
    def step(*arguments, **options):
        raise RuntimeError(text)

    monkeypatch.setattr(micro_batch, "train_step", step)
    monkeypatch.setattr(micro_batch, "prepared_state", lambda *_, **__: SimpleNamespace(optimizer=None))
    monkeypatch.setattr(micro_batch, "fill_averages", lambda optimizer: None)
    assert not step_fits(run.config, 24, CPU)


def test_a_fault_that_is_no_lack_of_memory_is_raised(run, monkeypatch):
    def step(*arguments, **options):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(micro_batch, "train_step", step)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        step_fits(run.config, 24, CPU)
    assert not dist.is_initialized()


def test_a_trial_has_the_shards_and_averages_of_one_rank(run, monkeypatch):
    seen = {}

    def step(state, *others, **options):
        averages = state.optimizer.state[next(state.student.parameters())]
        seen["averages"] = {name for name, value in averages.items() if value.ndim}
        weight = state.student.image.blocks[0].mlp.fc1.weight
        seen["share"] = weight.to_local().numel() / weight.numel()
        seen["ranks"] = dist.get_world_size()

    monkeypatch.setattr(micro_batch, "train_step", step)
    assert step_fits(run.config, 24, CPU)
    assert seen == {"share": 0.5, "ranks": 2, "averages": {"exp_avg", "exp_avg_sq"}}


def test_what_was_found_is_kept_and_not_tried_again(run, monkeypatch):
    tried = []
    monkeypatch.setattr(micro_batch, "_fits_alone", lambda config, images, device: tried.append(images) or images <= 8)
    found = [find(run, CPU), find(run, CPU)]  # of two workers
    keep(run.uri, found)
    assert settled(run, found).images_per_pass == 8 and len(json.loads(open(f"{run.uri}/{RECORD}").read())) == 1
    tried.clear()
    assert find(run, CPU) == found[0] and not tried


@pytest.mark.parametrize(
    ("plain", "with_graph", "found", "keeps"),
    [(24, 24, 24, False), (12, 12, 12, True), (12, 7, 6, True), (12, 5, 12, False)],
)
def test_a_graph_is_kept_where_at_least_half_as_many_images_fit_with_it(
    run, monkeypatch, plain, with_graph, found, keeps
):
    """A single pass has no second forward, whose graph could be kept."""

    def fits(config, images, device):
        return images <= (with_graph if config.keeps_embedding_graph else plain)

    monkeypatch.setattr(micro_batch, "_fits_alone", fits)
    config = settled(run, [find(run, CPU)])
    assert (config.images_per_pass, config.keeps_embedding_graph) == (found, keeps)


@pytest.mark.parametrize("given", [True, False])
def test_a_given_choice_is_tried_as_it_is(run, monkeypatch, given):
    resources = run.config.resources.model_copy(update={"keep_embedding_graph": given})
    chosen = replace(run, config=run.config.model_copy(update={"resources": resources}))
    seen = []
    monkeypatch.setattr(
        micro_batch, "_fits_alone", lambda config, *_: seen.append(config.resources.keep_embedding_graph) or True
    )
    assert settled(chosen, [find(chosen, CPU)]).keeps_embedding_graph is given and seen == [given]


def test_another_device_or_another_number_of_workers_is_tried_anew(run, monkeypatch):
    limits = {"A": 24, "B": 6}
    monkeypatch.setattr(micro_batch, "_conditions", lambda run, device: {"device": device, "of": run.fingerprints})
    monkeypatch.setattr(micro_batch, "_fits_alone", lambda config, images, device: images <= limits[device])
    found = [find(run, device) for device in ("A", "B")]  # pyright: ignore[reportArgumentType]
    keep(run.uri, found)
    assert [one.images for one in found] == [24, 6] and settled(run, found).images_per_pass == 6
    limits["A"] = 12
    assert find(run, "A").images == 24  # pyright: ignore[reportArgumentType]
    other = replace(run, config=run.config.model_copy(update={"seed": 7}))
    assert find(other, "A").images == 12  # pyright: ignore[reportArgumentType]


def test_noise_is_as_large_as_the_rows_of_the_stream(run):
    from tips_ray.launch.sizes import row_bytes

    numbers = 3 * 8  # position, step and sample id have no part in a step
    assert sum(column.nbytes for column in noise(run.config, 5).values()) == 5 * (row_bytes(run.config) - numbers)


def test_a_share_that_cannot_be_equal_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"global_batch_images \(9\) must be divisible by resources.workers \(2\)"):
        tiny_run(tmp_path, "unused", global_batch_images=9, micro_batch_images="auto")


def test_it_is_tried_with_the_places_of_the_workers_and_on_nodes_of_their_role(run, monkeypatch):
    asked: list[dict[str, Any]] = []

    def remote(**options: Any) -> Any:
        asked.append(options)
        return lambda task: SimpleNamespace(remote=lambda run: "found")

    monkeypatch.setattr(worker.ray, "remote", remote)
    monkeypatch.setattr(worker.ray, "get", list)
    resources = run.config.resources.model_copy(update={"roles": True, "gpus_per_worker": 1.0})
    inputs = replace(run, config=run.config.model_copy(update={"resources": resources}))
    assert worker.found_on_workers(inputs) == ["found", "found"]
    assert [one.pop("runtime_env") for one in asked] == [{"env_vars": allocator_settings(resources, {})}]
    assert asked == [{"num_cpus": 1.0, "num_gpus": 1.0, "max_calls": 1, "resources": {"train": 1.0}}]


def test_a_task_tries_its_first_gpu_by_number(run, monkeypatch):
    """torch limits the memory of a device only if its number is told."""
    monkeypatch.setattr(worker, "find", lambda run, device: device)
    assert str(worker._found_here(run)) == "cpu"
    resources = run.config.resources.model_copy(update={"gpus_per_worker": 1.0})
    on_gpu = replace(run, config=run.config.model_copy(update={"resources": resources}))
    assert str(worker._found_here(on_gpu)) == "cuda:0"


def test_a_trial_makes_its_gpu_the_current_one(run, monkeypatch):
    """FSDP gathers on the current device, whatever device its weights lie on."""
    called = []
    for name in ("set_device", "set_per_process_memory_fraction"):
        monkeypatch.setattr(torch.cuda, name, lambda *of, name=name: called.append((name, *map(str, of))))
    monkeypatch.setattr(micro_batch, "_try_step", lambda config, images, device: called.append(("step", str(device))))
    assert step_fits(run.config, 1, torch.device("cuda:1"))
    assert called[0] == ("set_device", "cuda:1") and called[-1] == ("step", "cuda:1")


@pytest.mark.heavy
def test_a_trial_holds_the_batches_of_three_steps(run, monkeypatch):
    fed = []
    monkeypatch.setattr(micro_batch, "Feed", lambda device: lambda batch: fed.append(len(batch)) or batch.to(device))
    assert step_fits(run.config, 12, CPU)
    assert fed == [12] * 2 * 3


@pytest.mark.slow
def test_memory_that_really_ends_is_noticed_on_a_cpu(tmp_path):
    with get_context("spawn").Pool(1) as pool:
        config = tiny_run(tmp_path, "unused", global_batch_images=400_000, resources__workers=1)
        assert pool.apply(_fits_into_little, (config, 100_000)) is False
        assert pool.apply(_fits_into_little, (tiny_run(tmp_path, "unused", resources__workers=1), 8)) is True


def _fits_into_little(config: RunConfig, images: int) -> bool:
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 30), resource.RLIM_INFINITY))
    return step_fits(config, images, CPU)
