"""How large a run is, by arithmetic: parameters, bytes per worker, bytes in flight, passes over the data.

G global batch, W workers, A synthetic captions per image.
"""

import os
from math import ceil

from tips_ray.config import RunConfig
from tips_ray.data.collate import batch_from
from tips_ray.errors import CheckWarning
from tips_ray.launch import cluster
from tips_ray.train.flops import step_flops
from tips_ray.train.initial_weights import unloaded_teacher
from tips_ray.train.micro_batch import BLOCK_BYTES, noise
from tips_ray.train.state import new_state
from tips_ray.words import bytes_text

STUDENT_BYTES = {"adamw": 16, "adafactor": 8}
"""Bytes per parameter, all fp32: weight, gradient and AdamW's two averages. The teacher has its weight only."""
TEACHER_BYTES = GRADIENT_BYTES = 4
CAPTIONS_PER_GPU = 50.0
"""Captions/s of a captioner on a GPU: an estimate, nobody has measured it."""
TRAINING_FLOPS_PER_GPU = 4e14
"""(D) Of an H100 at 40 % of its peak: other GPUs wait for captions less often."""


def parameters(config: RunConfig) -> tuple[int, int]:
    """Parameters of student and teacher, heads included; nothing is allocated.

    Raises:
        ValueError: `objective.frozen_teacher` names no teacher for this config.
    """
    state = new_state(config, unloaded_teacher(config), "meta")
    counts = [sum(weight.numel() for weight in network.parameters()) for network in (state.student, state.teacher)]
    return counts[0], counts[1]


def model_sizes(config: RunConfig) -> str:
    """Parameters, and bytes per worker under FSDP, without activations and the one gathered block."""
    student, teacher = parameters(config)
    workers = config.worker_counts[0]  # the fewest workers hold the most each
    shards = workers // config.resources.replicas
    per_worker = (STUDENT_BYTES[config.optimizer.name] * student + TEACHER_BYTES * teacher) / shards
    if config.resources.accumulate_unsharded:
        per_worker += GRADIENT_BYTES * student
    return (
        f"student {_millions(student)}, teacher {_millions(teacher)} parameters; {bytes_text(per_worker)} of weights, "
        f"gradients and optimizer on each of {workers} workers"
    )


def column_bytes(config: RunConfig) -> dict[str, int]:
    """Bytes of one training row in each column of numbers."""
    views, tokens = config.views, config.text.max_tokens
    return {
        **dict.fromkeys(("position", "step", "sample_id", "sample_key"), 8),
        "valid": 1,
        "global_crops": 3 * views.global_px**2,
        "local_crops": 3 * views.local_crops * views.local_px**2,
        "patch_mask": (views.global_px // config.image.patch_size_px) ** 2,
        "web_ids": 4 * tokens,
        "synthetic_ids": 4 * tokens * config.captions.per_image,
    }


def row_bytes(config: RunConfig) -> int:
    """Bytes of one training row: crops, mask, token ids, numbers."""
    return sum(column_bytes(config).values())


def shared_bytes(config: RunConfig) -> int:
    """Bytes of one micro-batch in shared memory, where each column has whole pages of its own."""
    page = os.sysconf("SC_PAGE_SIZE")
    return sum(-(-config.images_per_pass * size // page) * page for size in column_bytes(config).values())


def ready_bytes(config: RunConfig) -> int:
    """Bytes of the micro-batches in the object store, those that are ready and the one in use; with `auto` the most.

    With a shared stream those in the making count too.
    """
    workers = config.resources.workers
    if config.micro_batch_images == "auto":
        pass_bytes = min(BLOCK_BYTES, config.global_batch_images // workers * row_bytes(config))
    else:
        pass_bytes = config.images_per_pass * row_bytes(config)
    made = -(-config.resources.data_cpus // workers) if config.resources.stream_readers else 0  # as SharedStream.bounds
    return (1 + config.data_prefetch_batches + made) * workers * pass_bytes


def stream_sizes(config: RunConfig) -> str:
    """Bytes of the micro-batches in the object store: those that are ready and the one in use."""
    if config.micro_batch_images == "auto":
        return f"{bytes_text(row_bytes(config))} a row; micro_batch_images (auto) is found before the first step"
    ready, workers = ready_bytes(config), config.resources.workers
    have = cluster.store_bytes(ready) if cluster.address() is None else None
    if have is not None and ready > have:
        making = f" or resources.data_cpus ({config.resources.data_cpus})" if config.resources.stream_readers else ""
        raise ValueError(
            f"data_prefetch_batches ({config.data_prefetch_batches}) keeps {bytes_text(ready)} of crops ready or in "
            f"the making, Ray's object store here has {bytes_text(have)}: lower it{making}, set micro_batch_images, or "
            "give the container more (docker run --shm-size)"
        )
    return f"{bytes_text(row_bytes(config))} a row, {bytes_text(ready)} ready in the object store for {workers} workers"


def captions_keep_up(config: RunConfig) -> str:
    """Rates of captioning and training where both are on GPUs; nothing is known of CPUs.

    Raises:
        ValueError: not even one chunk is captioned within `captions.wait_seconds`.
        CheckWarning: training would wait for captions.
    """
    resources, captioner = config.resources, config.captions.captioner
    if captioner is None or not (resources.gpus_per_captioner and resources.gpus_per_worker):
        return "at a rate that nobody has measured"
    written = len(captioner.prompts) * captioner.captions_per_prompt
    of_one = CAPTIONS_PER_GPU * min(resources.gpus_per_captioner, 1) / written
    seconds = config.data.chunk_rows / of_one
    if seconds > config.captions.wait_seconds:
        raise ValueError(
            f"captions.wait_seconds ({config.captions.wait_seconds:g}) is shorter than the {seconds:.3g} s that a "
            f"captioner takes for a chunk of {config.data.chunk_rows} images, by estimate: raise it, lower "
            "data.chunk_rows, or caption ahead (tips-ray caption, captions.source=store)"
        )
    captioning = resources.captioners * of_one
    batch = batch_from(noise(config, 2))
    flops = step_flops(config, batch, unloaded_teacher(config)) / len(batch)
    training = resources.workers * TRAINING_FLOPS_PER_GPU / flops
    if captioning < training:
        raise CheckWarning(
            f"captioning cannot keep up, by estimate: {captioning:,.0f} images/s from {resources.captioners} "
            f"captioners ({CAPTIONS_PER_GPU:g} captions/s a GPU), {resources.workers} GPUs train up to "
            f"{training:,.0f}; until every image has its caption, training waits {1 - captioning / training:.0%} of "
            "the time: caption ahead (tips-ray caption, captions.source=store), or set "
            f"resources.captioners={ceil(training / of_one)}"
        )
    return f"{captioning:,.0f} images/s by estimate, training takes up to {training:,.0f}"


def schedule_sizes(config: RunConfig, rows: int) -> str:
    """Steps and epochs; further sources count by their weight relative to the first, as in the order."""
    weights = [source.weight / config.data.sources[0].weight for source in config.data.sources]
    steps = rows * sum(weights) / config.global_batch_images
    total, images = config.schedule.total_steps, config.global_batch_images
    return f"{total:,} steps of {images:,} images; {steps:,.1f} steps an epoch, {total / steps:,.2f} epochs"


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f}M"
