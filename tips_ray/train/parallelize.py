"""Prepare networks for large machines, in this order: recomputation, compile, sharding. P packed tokens, D width."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import Shard
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from tips_ray.config import ResourcesConfig
from tips_ray.distributed import world_size
from tips_ray.models.heads import PrototypeHead
from tips_ray.models.layers import Block, Group
from tips_ray.models.networks import Student, Teacher
from tips_ray.objective import compile_losses

_ATEN = torch.ops.aten
_KEPT = [
    _ATEN.mm.default,
    _ATEN.addmm.default,
    _ATEN.bmm.default,
    _ATEN.baddbmm.default,
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_cudnn_attention.default,
]
# Drop-path is keyed by sample and there is no other randomness, so no generator has to be put back.
_FULL: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
_OPTIONS = {
    "full": _FULL,
    "selective": {**_FULL, "context_fn": partial(create_selective_checkpoint_contexts, _KEPT)},
}


KEPT_GATHERED_BYTES = 1 << 30
"""(D) Most bytes of gathered blocks that `resources.reshard_after_forward: auto` keeps until a step's last backward."""


def prepare_networks(resources: ResourcesConfig, device: torch.device, student: Student, teacher: Teacher) -> None:
    """Recompute, compile and shard both networks over the process group as `resources` says; for `new_state`."""
    apply_recomputation(student, resources.recompute)
    is_compiled = resources.compile is True
    if is_compiled:
        compile_blocks(student)
        compile_blocks(teacher)
    compile_losses(is_compiled)
    mesh = worker_mesh(device.type, resources.replicas)
    shard(student, teacher, mesh, compute_dtype(resources), reshards_after_forward(resources, student))


def apply_recomputation(network: nn.Module, mode: Literal["none", "selective", "full"]) -> None:
    """Make blocks drop values after their forward and recompute them for their backward; numbers and names stay.

    Args:
        network: the student; a teacher has no backward and needs none of this.
        mode: `full` keeps a block's input alone; `selective` also the outputs of matrix products and attention, so
            that only norms, activations, LayerScale and sums are computed twice.

    Raises:
        ValueError: another mode.
    """
    if mode != "none" and mode not in _OPTIONS:
        raise ValueError(f"mode ({mode!r}) must be none, selective or full")
    if mode == "none":
        return
    forward = _recomputed(_OPTIONS[mode])
    for block in _blocks(network):
        # On the instance: a wrapping module would rename the parameters, by which the teacher finds its student.
        block.forward = MethodType(forward, block)


def compile_blocks(network: nn.Module, backend: str = "inductor") -> None:
    """Compile block by block, and the MLPs of heads: blocks of one shape share one graph, and FSDP can gather each by
    itself. What cannot be one graph is an error."""
    # All blocks share one code object: images and texts, student and teacher, with and without gradient count against
    # both limits, beyond which a block that must be one graph is an error. Texts have few lengths and few counts of
    # short ones, so a run comes nowhere near.
    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(torch._dynamo.config, limit, max(getattr(torch._dynamo.config, limit), 1024))
    for module in (*_blocks(network), *(head.mlp for head in _heads(network))):
        module.compile(backend=backend, dynamic=False, fullgraph=True)


def compute_dtype(resources: ResourcesConfig) -> torch.dtype:
    """Type in which networks compute; weights are kept and gradients reduced in fp32."""
    return torch.bfloat16 if resources.dtype == "bf16" else torch.float32


def reshards_after_forward(resources: ResourcesConfig, student: nn.Module) -> bool:
    """Whether the student's blocks are gathered for each pass and each backward; `auto`: where they are too large."""
    if resources.reshard_after_forward != "auto":
        return resources.reshard_after_forward
    weights = sum(weight.numel() for block in _blocks(student) for weight in block.parameters())
    return weights * compute_dtype(resources).itemsize > KEPT_GATHERED_BYTES


def worker_mesh(device_type: str, replicas: int = 1) -> DeviceMesh:
    """Mesh of all workers: the last axis shards one copy of the weights, the axis before it holds the copies.

    Neighbouring ranks share a copy, so that a copy that spans one machine is gathered inside it.

    Raises:
        ValueError: the copies cannot be of equal size.
    """
    if world_size() % replicas:
        raise ValueError(f"resources.replicas ({replicas}) must divide the number of workers ({world_size()})")
    sizes, names = (replicas, world_size() // replicas), ("replica", "shard")
    used = slice(None) if replicas > 1 else slice(1, None)
    return init_device_mesh(device_type, sizes[used], mesh_dim_names=names[used])


def shard(
    student: Student,
    teacher: Teacher,
    mesh: DeviceMesh,
    dtype: torch.dtype = torch.float32,
    reshard_after_forward: bool = True,
) -> None:
    """FSDP2: parameters, gradients and optimizer state cut over `mesh`, block by block, heads, then the roots.

    Args:
        student: gathered for computing in `dtype`, but for the temperature; gradients are averaged over ranks in fp32
            or better.
        teacher: the same without gradients.
        mesh: all ranks; of two axes (HSDP), the first holds copies and the second cuts.
        dtype: compute type; the shards stay fp32.
        reshard_after_forward: whether the student's blocks are gathered again for their backward and in every pass, or
            stay gathered until the last backward of a step, as then do its other weights.
    """
    reduce_dtype = torch.promote_types(dtype, torch.float32)
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(dtype, reduce_dtype),
        "shard_placement_fn": partial(_placement, shards=mesh.size(mesh.ndim - 1)),
    }
    for network in (student, teacher):
        for block in _blocks(network):
            # The teacher has no backward, after which alone weights that stay gathered would be shards again.
            fully_shard(block, **options, reshard_after_forward=reshard_after_forward or network is teacher)
        _prefetch_next_blocks(network)
        for head in _heads(network):
            # The student's heads come last and their backward first: they stay gathered in between.
            fully_shard(head, **options, reshard_after_forward=network is teacher)
    # Its own unit, in the type of the weights: with the others of the root it would be cast to `dtype`.
    fully_shard(student.temperature, mesh=mesh, mp_policy=MixedPrecisionPolicy(), reshard_after_forward=False)
    fully_shard(student, **options)
    # A root stays gathered until its backward. The teacher has none, and its EMA needs shards.
    fully_shard(teacher, **options, reshard_after_forward=True)
    student.stays_gathered = not reshard_after_forward
    for method in ("embed", "complete"):
        register_fsdp_forward_method(student, method)


def _placement(parameter: nn.Parameter, shards: int) -> Shard | None:
    """The axis that is cut: the first (None), or of tokens and positions, which have one row, another that divides.

    One row cut into many is held by one rank, and every rank pads its part to the whole for each gather.
    """
    if parameter.ndim == 1 or parameter.shape[0] > 1:
        return None
    return next((Shard(axis) for axis, size in enumerate(parameter.shape) if size > 1 and size % shards == 0), None)


def forget_forwards(network: nn.Module) -> None:
    """Drop FSDP's notes on the forwards of a network without a backward, where alone they end: they grow for ever."""
    if not isinstance(network, FSDPModule):
        return
    if hasattr(network, "reset_iter_state"):
        network.reset_iter_state()
        return
    root: Any = network._get_fsdp_state()  # torch before 2.15 has no public way
    root._comm_ctx.post_forward_order.clear()
    for part in root._state_ctx.all_states:
        for group in filter(None, getattr(part, "_fsdp_param_groups", [part._fsdp_param_group])):
            group._post_forward_indices.clear()


def _prefetch_next_blocks(network: nn.Module) -> None:
    """Let each block of an encoder start the gather of the next, before the host has launched its own operators."""
    for blocks in (module for module in network.modules() if isinstance(module, nn.ModuleList)):
        for block, following in pairwise(blocks):
            if isinstance(block, FSDPModule) and isinstance(following, FSDPModule):
                block.set_modules_to_forward_prefetch([following])


def _recomputed(options: dict[str, Any]):
    def forward(
        self: Block, tokens_PD: Tensor, groups: Sequence[Group], kept: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        return checkpoint(lambda tokens_PD: Block.forward(self, tokens_PD, groups, kept), tokens_PD, **options)

    return forward


def _blocks(network: nn.Module) -> Iterator[Block]:
    return (module for module in network.modules() if isinstance(module, Block))


def _heads(network: nn.Module) -> Iterator[PrototypeHead]:
    return (module for module in network.modules() if isinstance(module, PrototypeHead))
