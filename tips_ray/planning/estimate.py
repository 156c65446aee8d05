"""The plan of a run: rates, time, storage, cost and the weakest part, by arithmetic on a trace of its step."""

from collections.abc import Mapping
from math import ceil

from tips_ray.config import RunConfig
from tips_ray.launch.sizes import (
    CAPTIONS_PER_GPU,
    GRADIENT_BYTES,
    STUDENT_BYTES,
    TEACHER_BYTES,
    parameters,
    row_bytes,
)
from tips_ray.planning.content import Given, MemoryPlan, Plan, StepPlan, StoragePlan
from tips_ray.planning.flops import ImageFlops
from tips_ray.planning.machines import CPU_USE, GIB, Machine, published_use
from tips_ray.planning.network import Network, exposed_seconds, network_seconds
from tips_ray.planning.step_trace import StepTrace
from tips_ray.train.micro_batch import HEADROOM

CAPTION_BYTES, IMAGE_BYTES = 100, 150_000
"""(D) Of a caption in the store, and of a photo in the object store."""
VIEWS_PER_CORE = 358.0
"""Images/s of a core, from decoding to the object store, of small photos at 224 px (benchmarks.stream: 2.79 ms)."""
CORES, ROWS = "cores for views", "of rows in Ray's object store"
NETWORK_SHARE = 0.1
"""Of a step that waits longer for its network, the network is the weakest part."""
RESTART_SECONDS = 180.0
"""(D) From a lost node to the first step of those that are left."""


def plan(config: RunConfig, given: Given, trace: StepTrace, flops: ImageFlops) -> Plan:
    """Put all together.

    Args:
        config: of the run, for the machine's number of workers.
        given: what is known.
        trace: of the step.
        flops: of an image.

    Raises:
        ValueError: `given.images` are fewer than a step takes, or nothing tells how fast the machine computes.
    """
    require_known(config, given)
    step, memory = _step(config, given, trace, flops), _memory(config, given, trace)
    raw_rate = config.global_batch_images / step.seconds
    training = raw_rate * given.ratios.get("images_per_second", 1.0)
    rates = {"training": training, **_rates_beside(config, given)}
    lost = _lost_share(given, config, config.global_batch_images / min(rates.values()))
    wall = _active_seconds(config, given, rates) / (1 - lost)
    weakest, advice = _weakest(config, given, rates, memory, step)
    price, seen = given.price_per_gpu_hour, config.schedule.total_steps * config.global_batch_images
    return Plan(
        machine=f"{given.machine.kind}:{given.machine.workers}",
        workers=config.resources.workers,
        images_seen=seen,
        epochs=seen / given.images,
        memory=memory,
        step=step,
        rates=rates,
        needed=_needed(config, given, training),
        caption_hours=_caption_hours(config, given),
        storage=_storage(config, given, min(rates.values())),
        wall_seconds=wall,
        lost_share=lost,
        cost=None if price is None else price * given.machine.workers * wall / 3600,
        weakest=weakest,
        advice=advice,
        raw={"images_per_second": raw_rate, "memory_bytes": trace.peak_bytes, "wall_seconds": seen / raw_rate},
    )


def memory_limit(machine: Machine) -> float:
    """Bytes that a step of one worker may take: as `micro_batch_images: auto` leaves, a tenth stays free."""
    shared = machine.workers if machine.kind == "cpu" else 1
    return machine.gpu.memory_gib * GIB * (1 - HEADROOM) / shared


def _memory(config: RunConfig, given: Given, trace: StepTrace) -> MemoryPlan:
    peak = trace.peak_bytes * given.ratios.get("memory_bytes", 1.0)
    return MemoryPlan(trace.parts, trace.phase, peak, memory_limit(given.machine), config.images_per_pass)


def _step(config: RunConfig, given: Given, trace: StepTrace, flops: ImageFlops) -> StepPlan:
    share = config.global_batch_images // config.resources.workers
    rate, source = compute_rate(given, config, flops.total)
    passes = share // config.images_per_pass
    done = flops.done(passes, config.resources.recompute, config.keeps_embedding_graph)
    computing = {phase: share * amount / rate for phase, amount in done.items()}
    waiting = network_seconds(trace.messages, network_of(given), config.resources.replicas)
    return StepPlan(
        flops.total / 1e12,
        source,
        sum(computing.values()),
        sum(waiting.values()),
        exposed_seconds(waiting, computing),
        sum(message.bytes * message.times for message in trace.messages),
    )


def _active_seconds(config: RunConfig, given: Given, rates: Mapping[str, float]) -> float:
    """Time without losses; captioning holds up the first epoch alone. Earlier runs tell what starts and saves add."""
    seen = config.schedule.total_steps * config.global_batch_images
    first = min(given.images, seen)
    later = min(rate for name, rate in rates.items() if name != "captioning")
    added = given.ratios.get("wall_seconds", 1.0) * given.ratios.get("images_per_second", 1.0)
    return added * (first / min(rates.values()) + (seen - first) / later)


def _storage(config: RunConfig, given: Given, rate: float) -> StoragePlan:
    student, teacher = parameters(config)
    of_student = STUDENT_BYTES[config.optimizer.name] - GRADIENT_BYTES
    for_ever = config.schedule.total_steps // config.keep_every_steps if config.keep_every_steps else 0
    requests = 3 if _has_store(config) else 1  # of a chunk: its rows, and a listing and an object of captions
    return StoragePlan(
        rate / config.data.chunk_rows * requests,
        rate * IMAGE_BYTES,
        given.images * _captions_per_image(config) * CAPTION_BYTES,
        of_student * student + TEACHER_BYTES * teacher,
        config.keep_last + for_ever,
    )


def compute_rate(given: Given, config: RunConfig, flops_per_image: float) -> tuple[float, str]:
    """Operations/s of one worker, and where the figure is from.

    Raises:
        ValueError: nothing is entered, and no run on such a GPU is public.
    """
    gpu, kind = given.machine.gpu, given.machine.kind
    if given.images_per_second_per_gpu:
        return given.images_per_second_per_gpu * flops_per_image, "images/s per GPU as entered"
    if given.mfu:
        return given.mfu * gpu.bf16_tflops * 1e12, f"MFU {given.mfu:.1%} as entered"
    if kind == "cpu":
        rate = CPU_USE * gpu.bf16_tflops * 1e12
        return rate, f"{CPU_USE:.0%} of a product's {gpu.bf16_tflops:.3f} TFLOP/s, measured here on one thread"
    if config.resources.dtype != "bf16":
        raise ValueError(
            f"resources.dtype ({config.resources.dtype}): public runs are in bf16; set it to bf16, or give --mfu"
        )
    public = published_use(kind, config.image.width)
    if public is None:
        raise ValueError(f"gpus ({kind}): no public run tells its MFU; give --mfu, or --images-per-second of one GPU")
    return public.mfu * gpu.bf16_tflops * 1e12, f"MFU {public.mfu:.1%} of {public.run}"


def network_of(given: Given) -> Network:
    """Links of the machine; a network that was entered replaces the table's."""
    machine = given.machine
    gbit = given.node_gbit_per_second or machine.gpu.node_gbit_per_second * machine.per_node / 8
    return Network(machine.per_node, machine.gpu.link_gb_per_second * 1e9, gbit * 1e9 / 8)


def require_known(config: RunConfig, given: Given) -> None:
    """What can be told before the step is traced; raises as `plan`."""
    compute_rate(given, config, 1.0)
    if given.images < config.global_batch_images:
        raise ValueError(
            f"images ({given.images:,}) are fewer than one step takes (global_batch_images "
            f"{config.global_batch_images:,}): give more, or a smaller batch"
        )


def _has_store(config: RunConfig) -> bool:
    return config.captions.source != "column"


def _captions_per_image(config: RunConfig) -> int:
    """Captions that have to be written for each image."""
    captioner = config.captions.captioner
    return len(captioner.prompts) * captioner.captions_per_prompt if _has_store(config) and captioner else 0


def _caption_rate(given: Given) -> float:
    return (given.captions_per_second or CAPTIONS_PER_GPU) * given.ratios.get("captions_per_second", 1.0)


def _rates_beside(config: RunConfig, given: Given) -> dict[str, float]:
    """Images/s of views, where the cores are known, and of captioners beside training."""
    rates = {}
    if given.cores_per_node:
        cores = given.cores_per_node * given.machine.nodes - config.resources.workers * config.resources.cpus_per_worker
        rates["views"] = max(cores, 1) * (given.views_per_core or VIEWS_PER_CORE)
    if config.captions.source == "live":
        rates["captioning"] = config.resources.captioners * _caption_rate(given) / _captions_per_image(config)
    return rates


def _needed(config: RunConfig, given: Given, training: float) -> dict[str, float]:
    needed = {CORES: training / (given.views_per_core or VIEWS_PER_CORE)}
    if written := _captions_per_image(config):
        needed["captioners"] = ceil(training * written / _caption_rate(given))
    needed[ROWS] = training * row_bytes(config)
    return needed


def _caption_hours(config: RunConfig, given: Given) -> float:
    written = given.images * _captions_per_image(config)
    return written / (_caption_rate(given) * given.machine.workers) / 3600


def _lost_share(given: Given, config: RunConfig, step_seconds: float) -> float:
    """Share of the time that goes into restarts and steps done twice: half a checkpoint's interval each."""
    interval = step_seconds * config.checkpoint_every_steps
    if config.checkpoint_every_minutes:
        interval = min(interval, 60 * config.checkpoint_every_minutes)
    per_second = given.losses_per_node_hour * given.machine.nodes / 3600
    share = per_second * (interval / 2 + RESTART_SECONDS)
    if share >= 1:
        raise ValueError(
            f"spot ({given.losses_per_node_hour:g} losses per node and hour, {given.machine.nodes} nodes): the run "
            "would lose all of its time; save more often (checkpoint_every_minutes) or take fewer nodes"
        )
    return share


def _weakest(
    config: RunConfig, given: Given, rates: Mapping[str, float], memory: MemoryPlan, step: StepPlan
) -> tuple[str, str]:
    """The part that gives way first, and what to change."""
    if not memory.fits:
        return "memory", "take the largest micro-batch that fits, resources.recompute=selective or full, or more GPUs"
    least = min(rates, key=lambda name: rates[name])
    if least == "captioning":
        needed = ceil(rates["training"] / rates["captioning"] * config.resources.captioners)
        return least, f"caption ahead (captions.source=store), or resources.captioners={needed}"
    if least == "views":
        return least, "add data nodes (resources.roles=true) or cores; larger photos need more than this figure"
    if step.exposed_seconds > NETWORK_SHARE * step.seconds:
        return (
            "network",
            f"resources.replicas={given.machine.nodes} gathers inside a node alone; or larger micro-batches",
        )
    return "training", "it computes all the time: a higher MFU (resources.compile=true) or more GPUs make it faster"
