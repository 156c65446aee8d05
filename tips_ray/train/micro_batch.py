"""`micro_batch_images: auto`: the most images per pass with which a step fits into a worker's memory.

Each trial is a whole step on noise, in a process of its own, which leaves nothing behind. There a fake process group of
the fewest workers, whose collectives only allocate, makes weights, gradients and logits as large as on a worker; no
worker has to wait for one that ran out of memory. Losses and gradients do not depend on the result.
"""

import json
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.testing._internal.distributed import fake_pg  # noqa: F401 (registers the group)

from tips_ray import storage
from tips_ray.config import RunConfig, override
from tips_ray.data.augment import patch_masks
from tips_ray.data.collate import batch_from
from tips_ray.devices import is_out_of_memory
from tips_ray.runs.run import Run
from tips_ray.train.feed import Feed
from tips_ray.train.health import Health
from tips_ray.train.optim import fill_averages
from tips_ray.train.step import BadStepError, train_step
from tips_ray.train.worker_loop import prepared_state

RECORD = "micro_batch.json"
RESOURCES = (
    "workers",
    "min_workers",
    "replicas",
    "dtype",
    "accumulate_unsharded",
    "keep_embedding_graph",
    "reshard_after_forward",
    "compile",
    "recompute",
)
"""Keys of `resources` that the memory of a step depends on."""
HEADROOM = 0.1
"""(D) Share of a GPU's memory that a trial leaves free: for NCCL, fragmentation, checkpoints."""
BLOCK_BYTES = 120 << 20
"""Most bytes of the rows of a pass: Ray Data cuts a larger block. Also used without Ray, for equal numbers."""


@dataclass(frozen=True)
class Found:
    """The number of images that fits, and all that it depends on."""

    images: int
    conditions: dict[str, Any]
    keeps_graph: bool = False
    """Whether that many fit with `resources.keep_embedding_graph`."""


def find(run: Run, device: torch.device) -> Found:
    """The most images per pass on `device`: from the run folder, or tried now.

    Raises:
        ValueError: not even one image fits.
    """
    conditions = _conditions(run, device)
    known = [found for found in _read(run.uri) if found.conditions == conditions]
    if known:
        return known[0]
    images = largest_that_fits(run.config, lambda images: _fits_alone(run.config, images, device))
    if run.config.resources.keep_embedding_graph == "auto":
        kept = largest_with_graph(run.config, images, lambda config, images: _fits_alone(config, images, device))
        return Found(kept or images, conditions, bool(kept))
    return Found(images, conditions, run.config.keeps_embedding_graph)


def settled(run: Run, found: Sequence[Found]) -> RunConfig:
    """The config with the size that fits on all workers; the driver calls `keep` as well."""
    values = {
        "micro_batch_images": min(one.images for one in found),
        "resources.keep_embedding_graph": all(one.keeps_graph for one in found),
    }
    return override(RunConfig, run.config.model_dump(mode="json"), values)


def keep(run_uri: str, found: Sequence[Found]) -> None:
    """Save new results, so that a restart does not try again."""
    known = _read(run_uri)
    both = known + [one for number, one in enumerate(found) if one not in [*known, *found[:number]]]
    if both != known:
        storage.write_text(storage.join(run_uri, RECORD), json.dumps([asdict(one) for one in both], indent=1))


def largest_that_fits(config: RunConfig, fits: Callable[[int], bool]) -> int:
    """The largest divisor of a worker's share that fits, if all smaller ones fit too.

    Raises:
        ValueError: none does.
    """
    share = config.global_batch_images // config.resources.workers
    most = max(BLOCK_BYTES // _row_bytes(config), 1)
    sizes = [images for images in range(1, share + 1) if share % images == 0 and images <= most]
    if fits(sizes[-1]):
        return sizes[-1]
    count = bisect_left(sizes, True, hi=len(sizes) - 1, key=lambda images: not fits(images))
    if count == 0:
        raise ValueError(
            "micro_batch_images (auto): a step with one image per pass does not fit into a worker's memory; use more "
            "workers, resources.recompute=full, resources.dtype=bf16, a smaller global_batch_images or a smaller model"
        )
    return sizes[count - 1]


def largest_with_graph(config: RunConfig, images: int, fits: Callable[[RunConfig, int], bool]) -> int:
    """The most images per pass that fit while the first passes keep their graph; 0: less than half of `images`.

    (D) The graph saves a tenth of the operations; passes of half the size still fill a GPU, smaller ones may not.
    """
    share = config.global_batch_images // config.resources.workers
    if images == share:  # a single pass has no second forward
        return 0
    kept = override(RunConfig, config.model_dump(mode="json"), {"resources.keep_embedding_graph": True})
    sizes = [size for size in range(images, 0, -1) if share % size == 0 and 2 * size >= images]
    return next((size for size in sizes if fits(kept, size)), 0)


def step_fits(config: RunConfig, images: int, device: torch.device) -> bool:
    """Whether a worker's step fits with `images` per pass; makes a process group, so there must be none yet."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # FSDP gathers on the current one
        torch.cuda.set_per_process_memory_fraction(1 - HEADROOM, device)
    dist.init_process_group("fake", store=HashStore(), rank=0, world_size=config.worker_counts[0])
    try:
        _try_step(config, images, device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        dist.destroy_process_group()
    return True


def _try_step(config: RunConfig, images: int, device: torch.device) -> None:
    state, columns = prepared_state(config, device, is_drawn=False), noise(config, images)  # NaN take as much memory
    fill_averages(state.optimizer)  # in a run they exist from the second step on
    passes = config.global_batch_images // config.worker_counts[0] // images
    # The batch before is kept until the device has done the step, and that of the step after is already copied.
    feed = Feed(device)
    before, micro_batches, after = ([feed(batch_from(columns)) for _ in range(passes)] for _ in range(3))
    health = Health(config.objective)
    health.expect(True)
    try:
        train_step(
            state,
            micro_batches,
            config,
            config.resources.accumulate_unsharded,
            health,
            keep_graph=config.keeps_embedding_graph,
        )
    except BadStepError:
        pass  # values from fake collectives are not always finite


def noise(config: RunConfig, images: int) -> Mapping[str, np.ndarray]:
    """Columns of training rows, all valid, with captions of full length."""
    views, text, random = config.views, config.text, np.random.default_rng(config.seed)
    key_B = random.integers(2**62, size=images)
    patches = (views.global_px // config.image.patch_size_px) ** 2
    crops, tokens = (images, views.local_crops, 3, views.local_px, views.local_px), text.max_tokens
    return {
        "sample_key": key_B,
        "valid": np.ones(images, bool),
        "global_crops": random.integers(256, size=(images, 3, views.global_px, views.global_px), dtype=np.uint8),
        "local_crops": random.integers(256, size=crops, dtype=np.uint8),
        "patch_mask": patch_masks(key_B, patches, views.mask_ratio),
        "web_ids": random.integers(1, text.vocab_size, (images, tokens), np.int32),
        "synthetic_ids": random.integers(1, text.vocab_size, (images, config.captions.per_image, tokens), np.int32),
    }


def _fits_alone(config: RunConfig, images: int, device: torch.device) -> bool:
    """Run `step_fits` in its own process; one that the system kills has run out of memory too."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(step_fits, config, images, device).result()
        except BrokenProcessPool:
            return False


def _conditions(run: Run, device: torch.device) -> dict[str, Any]:
    kept = {name: getattr(run.config.resources, name) for name in RESOURCES}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, **kept, "config_fingerprint": run.config_fingerprint}


def _read(run_uri: str) -> list[Found]:
    try:
        return [Found(**one) for one in json.loads(storage.read_text(storage.join(run_uri, RECORD)))]
    except storage.NotFoundError:
        return []


def _row_bytes(config: RunConfig) -> int:
    return sum(column.nbytes for column in noise(config, 1).values())
