"""Measures a training step: time of its parts, memory, and the machine's matmul rate for comparison."""

import time
from collections.abc import Callable, Iterable
from itertools import accumulate, chain

import torch
from torch.profiler import ProfilerActivity, profile

from tips_ray.train.state import TrainState

PARTS: tuple[str, ...] = ("embed", "student", "teacher", "losses", "backward", "optimizer", "ema")


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one large square matrix product, the best of ten."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: left @ right, device) for _ in range(10))


def seconds(step: Callable[[], object], device: torch.device) -> float:
    """Wall time of `step`, until the device has finished."""
    _wait(device)
    start = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def part_shares(step: Callable[[], object], device: torch.device, steps: int = 3) -> dict[str, float]:
    """Share of each of PARTS in a step's time (host time on a CPU, kernel time on a GPU); `rest` is in no part."""
    on_device = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_device) as profiler:
        spent = sum(seconds(step, device) for _ in range(steps))
    events = [event for event in profiler.events() or () if event.device_type.name == "CPU"]
    parts = kernel_seconds(events) if on_device else host_seconds(events)
    if not on_device:
        parts["rest"] = max(spent - sum(parts.values()), 0.0)
    total = sum(parts.values()) or 1.0
    return {name: value / total for name, value in parts.items() if value}


def host_seconds(events: Iterable) -> dict[str, float]:
    """Wall time of each part's range."""
    parts = dict.fromkeys((*PARTS, "rest"), 0.0)
    for event in events:
        if event.name in PARTS:
            parts[event.name] += event.time_range.elapsed_us() / 1e6
    return parts


def kernel_seconds(events: Iterable) -> dict[str, float]:
    """Time of the kernels launched during each part by any thread, because autograd launches from a separate one."""
    events = list(events)
    ranges = [(event.time_range, event.name) for event in events if event.name in PARTS]
    parts = dict.fromkeys((*PARTS, "rest"), 0.0)
    for event in events:
        # The profiler also lists the device's copy of a part's range as a kernel.
        spent = sum(kernel.duration for kernel in event.kernels if kernel.name not in PARTS)
        moment = event.time_range.start
        name = next((name for span, name in ranges if span.start <= moment <= span.end), "rest")
        parts[name] += spent / 1e6
    return parts


def peak_bytes(state: TrainState, step: Callable[[], object], device: torch.device) -> int:
    """Memory needed by these networks and this step, without anything else that the process holds."""
    networks = chain(state.student.parameters(), state.teacher.parameters(), state.centers.buffers())
    averages = (value for values in state.optimizer.state.values() for value in values.values())
    held = sum(tensor.numel() * tensor.element_size() for tensor in chain(networks, averages))
    return held + (_cuda_bytes(step, device) if device.type == "cuda" else _cpu_bytes(step))


def _cuda_bytes(step: Callable[[], object], device: torch.device) -> int:
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return torch.cuda.max_memory_allocated(device) - before


def _cpu_bytes(step: Callable[[], object]) -> int:
    """Peak of the memory allocated by torch; resident memory would include memory that was freed before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events), default=0)  # pyright: ignore[reportAttributeAccessIssue]
