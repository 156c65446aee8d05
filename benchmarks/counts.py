"""Counts what each part of a training step pays: operations, bytes and kernels, on fake tensors, without a device."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.measure import PARTS
from tips_ray.batch import Batch
from tips_ray.config import TrainConfig
from tips_ray.train.state import new_state, with_storage
from tips_ray.train.step import train_step

_MADE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_local_scalar_dense"}
"""Operators that launch nothing, beside those that return a view."""


@dataclass
class Cost:
    """What a part of a step pays if no kernel is fused."""

    flops: int = 0
    """Two per multiply-add of products and attention."""
    bytes: int = 0
    """All inputs and outputs of all kernels."""
    kernels: int = 0
    """Operators that are no views; one of `foreach` counts once."""


def step_costs(config: TrainConfig, batches: list[Batch]) -> dict[str, Cost]:
    """Costs of one step over these micro-batches by part; `rest` is in no part.

    The networks are not sharded, and the optimizer has its averages.
    """
    networks = new_state(config, device="meta")
    with FakeTensorMode(allow_non_fake_inputs=True):
        state = with_storage(networks, config, torch.device("cpu"))
        fakes = [{name: torch.empty_like(tensor) for name, tensor in batch.tensors().items()} for batch in batches]
        with Counted() as counted:
            train_step(state, [Batch(**fake) for fake in fakes], config)
    return dict(counted.costs)


class Counted(TorchDispatchMode):
    """Counts every operator for the innermost part that is open; a number that is read from a fake tensor is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.costs: defaultdict[str, Cost] = defaultdict(Cost)
        self._open: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0.0
        out = func(*args, **(kwargs or {}))
        if func.namespace == "profiler":
            self._follow(func, args)
        elif func.namespace == "aten" and not func.is_view and func.overloadpacket.__name__ not in _MADE:
            self._count(func, args, kwargs or {}, out)
        return out

    def _follow(self, func: Any, args: Any) -> None:
        if "enter" in func._opname:
            self._open.append(args[0])
        elif self._open:
            self._open.pop()

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        part = next((name for name in reversed(self._open) if name in PARTS), "rest")
        cost = self.costs[part]
        count_flops: Callable[..., int] | None = flop_registry.get(func.overloadpacket)
        cost.flops += count_flops(*args, **kwargs, out_val=out) if count_flops else 0
        written = out if func._schema.returns else _written(func, args)
        tensors = [leaf for leaf in tree_leaves((args, kwargs, written)) if isinstance(leaf, torch.Tensor)]
        cost.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        cost.kernels += 1


def _written(func: Any, args: Any) -> list[Any]:
    """What an operator without result changes in place."""
    named = zip(func._schema.arguments, args, strict=False)
    return [value for argument, value in named if argument.alias_info and argument.alias_info.is_write]
