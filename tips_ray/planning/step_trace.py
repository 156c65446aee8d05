"""Memory and messages of a worker's step, from the very step on fake tensors: no GPU, no weights, no other process.

Fake tensors have sizes and no numbers. The process group is fake too: its collectives only allocate. The tensors say
that they are on a CPU, because torch's autograd asks a driver for those of a GPU; sizes do not depend on it, and
attention is fused on both. Not seen: workspaces of kernels, NCCL's buffers, the context of a GPU, fragmentation.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed import fake_pg  # noqa: F401 (registers the group)

from tips_ray.batch import Batch
from tips_ray.config import RunConfig, override
from tips_ray.data.collate import batch_from
from tips_ray.models.networks import Embeddings, Student, Teacher
from tips_ray.objective import contrastive_terms, weighted_total
from tips_ray.planning.live_storages import GRADIENTS, KEPT, LiveStorages, Message
from tips_ray.train.initial_weights import unloaded_teacher
from tips_ray.train.micro_batch import noise
from tips_ray.train.parallelize import apply_recomputation, prepare_networks
from tips_ray.train.state import TrainState, new_state, with_storage
from tips_ray.train.step import train_step

CPU = torch.device("cpu")
PASSES = 2
"""Passes of a step that are traced; each further one takes what the second takes, and holds its batch and, with
`resources.keep_embedding_graph`, the graph of its first part."""
_OF_A_PASS = {"embed", "student", "teacher", "backward"}
"""Phases that every pass has."""


@dataclass(frozen=True)
class StepTrace:
    """What one worker needs for a step, once the optimizer has its averages."""

    parts: Mapping[str, int]
    """Bytes by kind at the moment when most are alive."""
    phase: str
    """What the step does at that moment."""
    messages: Sequence[Message]
    """Collectives of the whole step, in order."""

    @property
    def peak_bytes(self) -> int:
        return sum(self.parts.values())


def traced(config: RunConfig, is_sharded: bool = True) -> StepTrace:
    """Trace the step of one of `resources.workers` workers; there must be no process group.

    Args:
        config: of the run; `micro_batch_images` must be a number or None.
        is_sharded: with FSDP, as in every run; without it for a step that one process does by itself.

    Raises:
        ValueError: `objective.frozen_teacher` names no teacher for this config.
    """
    config = override(RunConfig, config.model_dump(mode="json"), {"resources.compile": False})
    images = config.images_per_pass
    passes = config.global_batch_images // config.resources.workers // images
    with fake_group(config.resources.workers), torch.no_grad():
        prepare = partial(prepare_networks, config.resources, CPU) if is_sharded else partial(_recomputed, config)
        networks = new_state(config, unloaded_teacher(config), "meta", prepare)
        sample = batch_from(noise(config, 1))
        with FakeTensorMode(allow_non_fake_inputs=True), LiveStorages(config.head.num_prototypes) as live:
            state = with_storage(networks, config, CPU)
            _label(state, live)
            batches = [empty_batch(sample, images) for _ in range(min(passes, PASSES))]
            live.label("batches", [tensor for batch in batches for tensor in batch.tensors().values()])
            with torch.enable_grad():
                live.restart()
                unsharded, keep_graph = config.resources.accumulate_unsharded, config.keeps_embedding_graph
                train_step(state, batches, config, unsharded, keep_graph=keep_graph)
            trace = _trace_of(live, batches, config, passes, state.student.stays_gathered)
            contrastive = _contrastive_peak(state, images * passes, config, live) if passes > 1 else trace
        worst = max(trace, contrastive, key=lambda one: one.peak_bytes)
        return StepTrace(worst.parts, worst.phase, trace.messages)


def traced_in_run(config: RunConfig) -> StepTrace:
    """`traced` beside the batches of two other steps.

    A run keeps those of the step before until the GPU has done the step, and has copied those of the step after.
    """
    trace = traced(config)
    return replace(trace, parts={**trace.parts, "batches of the steps before and after": 2 * trace.parts["batches"]})


@contextmanager
def fake_group(workers: int) -> Iterator[None]:
    """Inside, this process is rank 0 of `workers` that do not exist."""
    dist.init_process_group("fake", store=HashStore(), rank=0, world_size=workers)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _recomputed(config: RunConfig, student: Student, teacher: Teacher) -> None:
    apply_recomputation(student, config.resources.recompute)


def _label(state: TrainState, live: LiveStorages) -> None:
    student, teacher = state.student, state.teacher
    live.label("student", student.parameters())
    live.label("teacher", [*teacher.parameters(), *teacher.buffers(), *state.centers.buffers()])
    live.label("optimizer", [value for values in state.optimizer.state.values() for value in values.values()])
    for weight in student.parameters():
        weight.register_post_accumulate_grad_hook(lambda weight: live.label(GRADIENTS, [weight.grad]))


def empty_batch(sample: Batch, images: int, device: torch.device = CPU) -> Batch:
    """A micro-batch on `device` with the sizes of `images` times the sample."""

    def repeated(name: str, tensor: Tensor) -> Tensor:
        shape = list(tensor.shape)
        shape[name == "local_crops_VBCHW"] *= images
        return torch.empty(shape, dtype=tensor.dtype, device=device)

    return Batch(**{name: repeated(name, tensor) for name, tensor in sample.tensors().items()}).to(device)


def _trace_of(
    live: LiveStorages, batches: Sequence[Batch], config: RunConfig, passes: int, stays_gathered: bool
) -> StepTrace:
    """The trace with the batches, and the messages, of the passes that were left out."""
    batch_bytes = sum(tensor.nbytes for tensor in batches[0].tensors().values())
    parts = Counter(live.peak)
    parts["batches"] += (passes - len(batches)) * batch_bytes
    if config.keeps_embedding_graph:
        parts[KEPT] += (passes - len(batches)) * live.kept_bytes // len(batches)
    more = passes / len(batches)
    messages = [
        message._replace(times=more) if _is_of_each_pass(message, config, stays_gathered) else message
        for message in live.messages
    ]
    return StepTrace({kind: size for kind, size in parts.most_common() if size}, live.peak_phase, tuple(messages))


def _is_of_each_pass(message: Message, config: RunConfig, stays_gathered: bool) -> bool:
    if message.phase not in _OF_A_PASS:
        return False
    if message.kind == "all-gather":
        return message.phase == "teacher" or not stays_gathered
    return not config.resources.accumulate_unsharded


def _contrastive_peak(state: TrainState, images: int, config: RunConfig, live: LiveStorages) -> StepTrace:
    """The contrastive terms over a worker's whole share; with few large passes this is not the moment of the peak."""
    live.restart()
    rows = [torch.empty(images, config.image.width, requires_grad=True) for _ in Embeddings._fields]
    log_temperature = torch.empty(1, requires_grad=True)
    with torch.enable_grad():
        terms = contrastive_terms(
            Embeddings(*rows), log_temperature, torch.ones(images, dtype=torch.bool), config.objective
        )
        total = weighted_total(terms, config.objective)
        torch.autograd.grad(total, [*rows, log_temperature], materialize_grads=True)
    return StepTrace(dict(live.peak.most_common()), "contrastive terms", ())
