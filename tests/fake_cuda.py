"""A step on fake CUDA tensors, on a machine without a GPU: where is each tensor, and where does the host wait?

Fake tensors have a device and no numbers, so an operator with tensors of two devices raises. `HostWaits` raises where
the host would wait for the device. torch's own autograd engine and FSDP ask a driver for streams: a small engine and
streams that do nothing stand in for both. The process group is fake: its collectives only allocate.
"""

import itertools
import sys
import traceback
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.autograd import Variable
from torch.distributed import device_mesh
from torch.distributed.fsdp._fully_shard import _fsdp_collectives, _fsdp_init, _fsdp_param_group, _fsdp_state
from torch.utils._python_dispatch import TorchDispatchMode

from tips_ray.config import RunConfig, override
from tips_ray.data.collate import batch_from
from tips_ray.planning.step_trace import empty_batch, fake_group
from tips_ray.train import parallelize
from tips_ray.train.health import Health
from tips_ray.train.initial_weights import unloaded_teacher
from tips_ray.train.micro_batch import noise
from tips_ray.train.parallelize import prepare_networks, worker_mesh
from tips_ray.train.state import TrainState, new_state, with_storage
from tips_ray.train.step import launch_step, new_halt

DEVICE = torch.device("cuda", 0)
_ATEN = torch.ops.aten
_COPIES = {_ATEN._to_copy.default: 0, _ATEN.copy_.default: 1}
"""Operators that copy between devices, and the place of their source."""


class HostWaitError(AssertionError):
    """The host would wait for the device; the message names the operator and the line."""


class HostWaits(TorchDispatchMode):
    """Raises where a value is read from the device or a tensor goes between devices.

    A copy of ordinary host memory to the device waits for it too. Batches come before the step, from pinned memory. A
    copy to pinned memory waits for nothing: whoever reads it waits.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is _ATEN._local_scalar_dense.default and args[0].device == DEVICE:
            raise HostWaitError(f"{_here()}: {func} reads a value from the device: the host waits")
        source = args[_COPIES[func]].device if func in _COPIES else None
        result = func(*args, **(kwargs or {}))
        is_late = source == DEVICE and (kwargs or {}).get("non_blocking")  # torch takes pinned memory for it
        if source is not None and source != result.device and not is_late:
            raise HostWaitError(f"{_here()}: {func} copies from {source} to {result.device}: the host waits")
        return result


def _here() -> str:
    return own_line(traceback.extract_stack())


def own_line(frames: Sequence[traceback.FrameSummary]) -> str:
    """The innermost line of the package: file, number and text."""
    own = [frame for frame in frames if "/tips_ray/" in frame.filename]
    return f"tips_ray/{own[-1].filename.rpartition('/tips_ray/')[2]}:{own[-1].lineno}: {own[-1].line}"


def launch_on_fake_cuda(config: RunConfig, steps: int = 2, keep_graph: bool = False) -> TrainState:
    """Launch steps of rank 0 on the fake device; returns the state, all of which lies there. Nobody judges them.

    Args:
        config: of a run; `micro_batch_images` must be a number or None.
        steps: the second one meets gradients, averages and gathered weights of the first.
        keep_graph: see `launch_step`.

    Raises:
        AssertionError: a device is wrong, the host would wait, or a shape depends on values; the line is named.
    """
    # A mode that sees every operator keeps torch.compile from making graphs, without which a block is an error.
    config = override(RunConfig, config.model_dump(mode="json"), {"resources.compile": False})
    passes = config.global_batch_images // config.resources.workers // config.images_per_pass
    with fake_group(config.resources.workers), fake_driver():
        teacher = unloaded_teacher(config)
        sample = replace(batch_from(noise(config, 1)), short_texts_S=torch.zeros(1, dtype=torch.int64))  # one an image
        with FakeTensorMode(allow_non_fake_inputs=True):
            networks = new_state(config, teacher, "meta", partial(prepare_networks, config.resources, DEVICE))
            state = with_storage(networks, config, DEVICE)
            batches = [empty_batch(sample, config.images_per_pass, DEVICE) for _ in range(passes)]
            health = Health(config.objective)
            health.expect(True)
            metrics: dict[str, Tensor] = {}
            halted, unsharded = new_halt(batches), config.resources.accumulate_unsharded
            for _ in range(steps):
                with _lines_named(), HostWaits():
                    step = launch_step(state, batches, config, halted, unsharded, health, keep_graph=keep_graph)
                metrics = step.metrics
            _require_on_device(state, {**metrics, **health.sums})
    return state


def _require_on_device(state: TrainState, named: dict[str, Tensor]) -> None:
    for network in (state.student, state.teacher, state.centers):
        named |= dict(itertools.chain(network.named_parameters(), network.named_buffers()))
    for values in state.optimizer.state.values():
        named |= values
    elsewhere = {name: tensor.device for name, tensor in named.items() if tensor.device != DEVICE}
    assert not elsewhere, elsewhere


@contextmanager
def _lines_named() -> Iterator[None]:
    """Errors of the step name its line."""
    try:
        yield
    except HostWaitError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(sys.exc_info()[2])
        raise AssertionError(f"{own_line(frames)}: {type(error).__name__}: {error}") from error


@contextmanager
def fake_driver() -> Iterator[None]:
    """Inside, backward passes and FSDP need no CUDA driver."""
    engine, handle = _Engine(), _handle()
    # A compiler takes no part: it would need a driver, and refuses tensors that other modes watch.
    with torch.compiler.set_stance("force_eager"), pytest.MonkeyPatch.context() as patch:
        for module in (_fsdp_collectives, _fsdp_init, _fsdp_param_group, _fsdp_state, device_mesh):
            patch.setattr(module, "_get_device_handle", lambda *_: handle)
        patch.setattr(parallelize, "worker_mesh", unset_fake_temporarily()(worker_mesh))  # a mesh reads its numbers
        patch.setattr(torch.cuda, "Event", _Stream)
        patch.setattr(Tensor, "record_stream", lambda *_: None)
        patch.setattr(Tensor, "register_hook", lambda tensor, hook: engine.register_hook(tensor, hook))
        patch.setattr(Tensor, "backward", lambda tensor, *given, **named: engine.backward(tensor, *given, **named))
        patch.setattr(torch.autograd, "backward", engine.backward)
        patch.setattr(torch.autograd, "grad", engine.grad)
        patch.setattr(torch._C, "_current_graph_task_id", lambda: engine.task)
        patch.setattr(Variable, "_execution_engine", engine)
        yield


class _Stream:
    """A stream, and an event in it. The device may wait for it; the host may not."""

    device, stream_id, device_index, device_type = DEVICE, 0, DEVICE.index, 1

    def wait_stream(self, *_: Any) -> None: ...

    def wait_event(self, *_: Any) -> None: ...

    def wait(self, *_: Any) -> None: ...

    def record(self, *_: Any) -> "_Stream":
        return self

    def record_event(self, *_: Any) -> "_Stream":
        return self

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        raise HostWaitError(f"{_here()}: the host waits for a stream or an event")


def _handle() -> SimpleNamespace:
    """What FSDP asks of `torch.cuda`."""
    return SimpleNamespace(
        Stream=lambda *_, **__: _Stream(),
        Event=lambda *_, **__: _Stream(),
        stream=lambda _: nullcontext(),
        current_stream=lambda *_: _Stream(),
        current_device=lambda: DEVICE.index,
        device_count=lambda: 1,
        is_initialized=lambda: True,
    )


class _Engine:
    """Backward passes in Python, with the hooks and callbacks that FSDP and recomputation use."""

    def __init__(self) -> None:
        self.task = -1
        """Number of the pass that runs, -1 between passes; recomputation asks for it."""
        self._numbers = itertools.count(1)
        self._hooks: defaultdict[Any, list[tuple[int, Any]]] = defaultdict(list)
        self._callbacks: list[Any] = []

    def register_hook(self, tensor: Tensor, hook: Any) -> Any:
        self._hooks[tensor.grad_fn].append((tensor.output_nr, hook))
        return SimpleNamespace(remove=lambda: None)

    def queue_callback(self, callback: Any) -> None:
        self._callbacks.append(callback)

    def backward(self, tensors: Any, gradients: Any = None, **_: Any) -> None:
        self._run(tensors, gradients, None)

    def grad(
        self, outputs: Any, inputs: Any, grad_outputs: Any = None, materialize_grads: bool = False, **_: Any
    ) -> tuple[Tensor | None, ...]:
        wanted = _listed(inputs)
        found = self._run(outputs, grad_outputs, {_place(tensor): None for tensor in wanted})
        gradients = [found.get(_place(tensor)) for tensor in wanted]
        pairs = zip(wanted, gradients, strict=True)
        return tuple(torch.zeros_like(t) if g is None and materialize_grads else g for t, g in pairs)

    def _run(self, outputs: Any, gradients: Any, wanted: dict[Any, Any] | None) -> dict[Any, Tensor]:
        """Gradients at the places that are wanted; without any, leaves get theirs."""
        roots, inbox = _listed(outputs), defaultdict(dict)
        given = _listed(gradients) if gradients is not None else [None] * len(roots)
        self.task = next(self._numbers)
        found: dict[Any, Tensor] = {}
        with torch.no_grad():
            for root, gradient in zip(roots, given, strict=True):
                _add(inbox[root.grad_fn], root.output_nr, torch.ones_like(root) if gradient is None else gradient)
            for node in _in_order(list(inbox), wanted):
                self._visit(node, inbox, found, wanted)
            while self._callbacks:
                self._callbacks.pop(0)()
        self.task = -1
        return found

    def _visit(self, node: Any, inbox: Any, found: dict[Any, Tensor], wanted: dict[Any, Any] | None) -> None:
        given: dict[int, Tensor] = inbox.pop(node, {})
        for place, hook in self._hooks.pop(node, ()):
            if place in given and (changed := hook(given[place])) is not None:
                given[place] = changed
        found.update({(node, place): value for place, value in given.items() if wanted and (node, place) in wanted})
        if not given or (hasattr(node, "variable") and wanted is not None):
            return
        if hasattr(node, "variable"):
            _accumulate(node.variable, given[0])
            return
        for (below, place), gradient in zip(node.next_functions, _applied(node, given), strict=False):
            if below is not None and gradient is not None:
                _add(inbox[below], place, gradient)


def _listed(tensors: Any) -> list[Any]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def _place(tensor: Tensor) -> tuple[Any, int]:
    """Node and output at which the gradient of a tensor arrives; of a leaf, the node that accumulates it."""
    edge = torch.autograd.graph.get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def _add(inbox: dict[int, Tensor], place: int, gradient: Tensor) -> None:
    inbox[place] = inbox[place] + gradient if place in inbox else gradient


def _in_order(roots: Iterable[Any], wanted: dict[Any, Any] | None) -> list[Any]:
    """Nodes from the roots downwards, each after all that give to it; with `wanted`, only those above a wanted one."""
    order, seen, stack = [], set(), [(root, False) for root in roots]
    while stack:
        node, is_done = stack.pop()
        if is_done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(below, False) for below, _ in node.next_functions if below is not None]
    if wanted is not None:
        needed = {node for node, _ in wanted}
        for node in order:  # from the leaves up
            if any(below in needed for below, _ in node.next_functions):
                needed.add(node)
        order = [node for node in order if node in needed]
    return order[::-1]


def _applied(node: Any, given: dict[int, Tensor]) -> Sequence[Tensor | None]:
    """Gradients that a node hands on; one that it did not get is zero."""
    gradients = []
    for place, about in enumerate(node._input_metadata):
        gradient = given.get(place)
        if gradient is None:
            gradient = torch.zeros(tuple(about.shape), dtype=about.dtype, device=about.device)
        assert gradient.device == about.device, (
            f"{node.name()}: gradient on {gradient.device}, output on {about.device}"
        )
        gradients.append(_fitted(gradient, about.shape, about.dtype))
    is_python = isinstance(node, torch.autograd.function.BackwardCFunction)
    result = node.apply(*gradients) if is_python else node(*gradients)
    return result if isinstance(result, tuple | list) else (result,)


def _accumulate(leaf: Tensor, gradient: Tensor) -> None:
    assert gradient.device == leaf.device, f"a gradient on {gradient.device}, its leaf on {leaf.device}"
    gradient = _fitted(gradient, leaf.shape, getattr(leaf, "grad_dtype", None) or leaf.dtype)
    leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient


def _fitted(gradient: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The gradient summed over axes that were broadcast, in its node's type."""
    summed = gradient if tuple(gradient.shape) == tuple(shape) else gradient.sum_to_size(tuple(shape))
    return summed if summed.dtype == dtype else summed.to(dtype)
