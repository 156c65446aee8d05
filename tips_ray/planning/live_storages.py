"""Counts the bytes of all tensors that live during a step, real or fake, by what they are."""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed._tools.fake_collectives import CollectiveOp
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tips_ray.distributed import local_part

GATHERED = "gathered weights, reduce buffers"
SCORES = "prototype scores"
GRADIENTS = "gradients"
KEPT = "activations of clean views and texts"
IN_PHASE = {"student": "activations", "embed": KEPT}
"""What a tensor is that a phase of the step makes, if nothing else tells; other phases make `temporaries`."""
_KINDS = {"_allgather_base_": "all-gather", "_reduce_scatter_base_": "reduce-scatter", "allreduce_": "all-reduce"}
_WHOLE = {"_allgather_base_": 0, "_reduce_scatter_base_": 1, "allreduce_": 0}
"""Argument of each collective that is as large as all ranks' parts together."""


class Message(NamedTuple):
    """One collective of a step."""

    kind: str
    phase: str
    """Of the step: student, teacher, backward, ..."""
    bytes: int
    """All ranks' parts together."""
    ranks: int
    times: float = 1
    """How often a step has it."""


class LiveStorages(TorchDispatchMode):
    """Counts storages from their first sight to their end; use it as a context around the step, above a fake mode.

    Every number that the step reads from a fake tensor is 0. Memory that a kernel takes for itself is not seen.
    """

    def __init__(self, num_prototypes: int) -> None:
        super().__init__()
        self.num_prototypes = num_prototypes
        self.phases: list[str] = []
        self.messages: list[Message] = []
        self.peak: Counter[str] = Counter()
        """Bytes by kind when most were alive."""
        self.peak_phase = ""
        self.kept_bytes = 0
        """Bytes of `KEPT` when the last first pass was over."""
        self._live: dict[int, tuple[weakref.ref, str, int]] = {}
        self._bytes: Counter[str] = Counter()

    def __enter__(self):
        self._resizes = _seen_resizes(self)
        self._resizes.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._resizes.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its parts come by later
        if func is torch.ops.aten._local_scalar_dense.default and type(args[0]) is not Tensor:
            return 0.0
        self._follow(func, args)
        out = func(*args, **(kwargs or {}))
        self._see(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        return out

    @property
    def now(self) -> int:
        """Bytes alive."""
        return sum(self._bytes.values())

    def restart(self) -> None:
        """Forget the peak and the messages so far."""
        self.peak, self.messages = Counter(), []
        self._look()

    def label(self, kind: str, tensors: Iterable[Tensor]) -> None:
        """Say what tensors are."""
        for storage in (local_part(tensor).untyped_storage() for tensor in tensors):
            if entry := self._live.get(id(storage)):
                self._bytes[entry[1]] -= entry[2]
                self._bytes[kind] += entry[2]
                self._live[id(storage)] = (entry[0], kind, entry[2])

    def resized(self, storage: torch.UntypedStorage) -> None:
        """FSDP frees and takes the memory of gathered weights by resizing their storages."""
        if entry := self._live.get(id(storage)):
            self._bytes[entry[1]] -= entry[2]
            self._live[id(storage)] = (entry[0], GATHERED, storage.nbytes())
            self._bytes[GATHERED] += storage.nbytes()
            self._look()

    def _follow(self, func: Any, args: Any) -> None:
        """Note the phase that begins or ends, and a collective."""
        if func.namespace == "profiler":
            if "enter" in func._opname:
                self.phases.append(args[0])
            elif self.phases and self.phases.pop() == "embed":
                self.kept_bytes = self._bytes[KEPT]
        elif func.namespace == "c10d" and func._opname in _KINDS:
            whole = tree_leaves(args[_WHOLE[func._opname]])
            size = sum(part.numel() * part.element_size() for part in whole)
            ranks = CollectiveOp.get_process_group(func, args).size()
            self.messages.append(Message(_KINDS[func._opname], self._phase, size, ranks))

    @property
    def _phase(self) -> str:
        ours = [phase for phase in self.phases if not phase.startswith(("FSDP", "Optimizer", "##", "autograd"))]
        return ours[-1] if ours else ""

    def _kind_of(self, tensor: Tensor) -> str:
        if self.phases and self.phases[-1].startswith("FSDP"):
            return GATHERED
        is_scores = tensor.ndim > 1 and tensor.shape[-1] == self.num_prototypes
        return SCORES if is_scores else IN_PHASE.get(self._phase, "temporaries")

    def _see(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = id(storage)
            if key not in self._live:
                kind = self._kind_of(tensor)
                self._live[key] = (weakref.ref(storage, lambda _, key=key: self._gone(key)), kind, storage.nbytes())
                self._bytes[kind] += storage.nbytes()
        self._look()

    def _look(self) -> None:
        if self.now > self.peak.total():
            self.peak, self.peak_phase = self._bytes.copy(), self._phase

    def _gone(self, key: int) -> None:
        _, kind, size = self._live.pop(key)
        self._bytes[kind] -= size


@contextmanager
def _seen_resizes(storages: LiveStorages) -> Iterator[None]:
    """No operator reports that a storage is resized."""
    resize = torch.UntypedStorage.resize_

    def told(self: torch.UntypedStorage, size: int) -> Any:
        resize(self, size)
        storages.resized(self)
        return self

    torch.UntypedStorage.resize_ = told
    try:
        yield
    finally:
        torch.UntypedStorage.resize_ = resize
