"""Optimizer and its parameter groups: what decays, and which part of the learning rate each layer gets."""

import re
from collections import defaultdict
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from tips_ray.config import OptimizerConfig
from tips_ray.distributed import local_part, sum_over_ranks, world_size

_TOKENS = ("cls_token", "register_tokens", "mask_token", "pos_embed")
_EMBEDDING = re.compile(rf"(image|text)\.(patch_embed|token_embedding|{'|'.join(_TOKENS)})\b")
_BLOCK = re.compile(r"(image|text)\.blocks\.(\d+)\.")


def new_optimizer(student: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Fused AdamW or our Adafactor; learning rate and decay are set by the schedule before every update."""
    groups = parameter_groups(student, config)
    return Adafactor(groups) if config.name == "adafactor" else AdamW(groups, lr=0.0, betas=config.betas, fused=True)


def parameter_groups(student: nn.Module, config: OptimizerConfig) -> list[dict]:
    """One group for every pair of `lr_factor` and `decay_factor`, in the order of the parameters.

    An update uses `lr_factor` times the schedule's learning rate, `decay_factor` times its weight decay. Matrices decay
    (1); biases, norms, tokens, positions, LayerScale and the temperature do not (0).
    """
    depth = {part: len(getattr(student, part).blocks) for part in ("image", "text")}
    members: defaultdict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            members[_lr_factor(name, depth, config), float(_decays(name, parameter))].append(parameter)
    return [
        {"params": parameters, "lr_factor": lr_factor, "decay_factor": decays, "weight_decay": 0.0}
        for (lr_factor, decays), parameters in members.items()
    ]


def set_rates(optimizer: Optimizer, lr: float, weight_decay: float) -> None:
    """Set the rates of the next update, group by group."""
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = lr * group["lr_factor"], weight_decay * group["decay_factor"]


def fill_averages(optimizer: Optimizer) -> None:
    """Create AdamW's averages of parameters without gradients so far (frozen prototypes): checkpoints get equal keys.

    torch itself leaves them out of a save, and asks for them with a step count of one in a load.
    """
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        averages = optimizer.state[parameter]
        if not averages:
            averages |= {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            averages["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)  # as fused AdamW does


def _lr_factor(name: str, depth: dict[str, int], config: OptimizerConfig) -> float:
    """Block i of d: layer_decay^(d - i); embeddings: layer_decay^(d + 1); everything after the blocks: 1."""
    layers_above = 0
    if found := _EMBEDDING.match(name):
        layers_above = depth[found[1]] + 1
    elif found := _BLOCK.match(name):
        layers_above = depth[found[1]] - int(found[2])
    own = config.patch_embed_lr_factor if name.startswith("image.patch_embed.") else 1.0
    return own * config.layer_decay**layers_above


def _decays(name: str, parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and name.rsplit(".", 1)[-1] not in _TOKENS


_DECAY_POWER, _EPSILON, _MOST_RMS = 0.8, 1e-16, 1.0


class Adafactor(Optimizer):
    """Adam with the second moment of a matrix kept as one number per row and one per column, and no first moment.

    Our own, because torch's raises on sharded parameters (2.15: "in-place operations that require placement changes")
    and reads two numbers of every parameter on the host in every update. Here two collectives serve all parameters,
    and any number of ranks updates as one process does, up to rounding. All state exists from the start, so that all
    checkpoints hold the same keys.

    (D) The schedule's rate is the size of a step, as with AdamW: neither the paper's relative rate nor its scaling by
    the parameter. Decay is decoupled.

    (D) Epsilon is 1e-16, the square of AdamW's, and not 1e-30: values that are zero up to rounding (the bias of
    attention's keys) would move at the full rate, differently on other numbers of ranks.

    Source: arXiv:1804.04235, algorithms 4 to 6: decay 1 - t^-0.8, root mean square of an update at most 1.
    """

    def __init__(self, groups: list[dict]) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = _first_state(parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient; all ranks must have gradients of the same ones.

        Nothing changes where the attribute `found_inf`, if there is one, is 1 on the device, as with fused AdamW.
        """
        members = [(parameter, group) for group in self.param_groups for parameter in group["params"]]
        parts = [_Part.of(p, self.state[p], group) for p, group in members if p.grad is not None]
        if not parts:
            return
        averages, sums = zip(*map(_averages, parts), strict=True)
        updates = _preconditioned(parts, averages, sums)
        is_halted = getattr(self, "found_inf", parts[0].gradient.new_zeros(())) > 0
        for part, average, update, scale in zip(parts, averages, updates, _scales(parts, updates), strict=True):
            weight = (part.weight * (1 - part.lr * part.weight_decay)).sub_(update * scale, alpha=part.lr)
            for old, new in [(part.weight, weight), *((part.state[name], new) for name, new in average.items())]:
                torch.where(is_halted, local_part(old), new, out=local_part(old))


class _Part(NamedTuple):
    """This rank's shard of one parameter."""

    weight: Tensor
    gradient: Tensor
    state: dict[str, Tensor]
    lr: float
    weight_decay: float
    shape: torch.Size
    """Shape of the whole parameter."""
    copies: int
    """Number of ranks that hold this same shard."""

    @classmethod
    def of(cls, parameter: nn.Parameter, state: dict[str, Tensor], group: dict[str, Any]) -> Self:
        assert parameter.grad is not None
        rates = group["lr"], group["weight_decay"]
        return cls(
            local_part(parameter), local_part(parameter.grad), state, *rates, parameter.shape, _copies(parameter)
        )


def _averages(part: _Part) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The part's state as it will be, by its names; `columns_C` still lacks this gradient.

    And what is missing for it: this rank's share of the sums over columns and over `rows_R`, for a matrix.
    """
    square, step = part.gradient.square() + _EPSILON, part.state["step"] + 1
    if not _is_factored(part.shape):
        moment = local_part(part.state["moment"]).lerp(square, _news(part, step))
        return {"step": step, "moment": moment}, []
    rows_R = local_part(part.state["rows_R"]).lerp(square.flatten(1).mean(1), _news(part, step))
    sums = [square.flatten(1).sum(0) / part.copies, rows_R.sum()[None] / part.copies]
    return {"step": step, "rows_R": rows_R, "columns_C": part.state["columns_C"]}, sums


def _preconditioned(
    parts: Sequence[_Part], averages: Sequence[dict[str, Tensor]], sums: Sequence[list[Tensor]]
) -> list[Tensor]:
    """Gradients divided by the root of their second moments; completes `averages`."""
    totals = iter(_summed([own for of_part in sums for own in of_part]))
    return [
        _factored(part, average, next(totals), next(totals)) if _is_factored(part.shape) else _plain(part, average)
        for part, average in zip(parts, averages, strict=True)
    ]


def _factored(part: _Part, average: dict[str, Tensor], column_sums_C: Tensor, row_sum_1: Tensor) -> Tensor:
    rows = part.shape[0]
    columns_C = average["columns_C"] = average["columns_C"].lerp(column_sums_C / rows, _news(part, average["step"]))
    relative_R = average["rows_R"] / (row_sum_1 / rows)
    scaled_RC = part.gradient.flatten(1) * relative_R.rsqrt()[:, None] * columns_C.rsqrt()
    return scaled_RC.view_as(part.gradient)


def _plain(part: _Part, average: dict[str, Tensor]) -> Tensor:
    return part.gradient * average["moment"].rsqrt()


def _scales(parts: Sequence[_Part], updates: Sequence[Tensor]) -> Sequence[Tensor]:
    """For every parameter, the factor that limits the root mean square of its update."""
    squares_P = torch.stack([update.square().sum() / part.copies for part, update in zip(parts, updates, strict=True)])
    # Sizes as numbers: a tensor of them would be copied to the device in every step, and the host waits for that.
    means = torch._foreach_div(  # pyright: ignore[reportPrivateImportUsage]
        list(sum_over_ranks(squares_P).unbind()), [float(part.shape.numel()) for part in parts]
    )
    rms_P = torch.stack(list(means)).sqrt()
    return (_MOST_RMS / rms_P.clamp(min=_MOST_RMS)).unbind()


def _news(part: _Part, step: Tensor) -> Tensor:
    """Weight of update `step` in the averages: t^-0.8, which is 1 for the first."""
    return step.to(part.gradient.dtype) ** -_DECAY_POWER


def _summed(sums: list[Tensor]) -> Sequence[Tensor]:
    """All sums over ranks in one collective."""
    return sum_over_ranks(torch.cat(sums)).split([len(part) for part in sums]) if sums else ()


def _first_state(parameter: nn.Parameter) -> dict[str, Tensor]:
    step = torch.zeros((), dtype=torch.float32, device=parameter.device)
    if not _is_factored(parameter.shape):
        return {"step": step, "moment": torch.zeros_like(parameter)}
    rows, columns = parameter.shape[0], prod(parameter.shape[1:])
    rows_R = local_part(parameter).new_zeros(len(local_part(parameter)))
    if isinstance(parameter, DTensor):
        mesh, placements = parameter.device_mesh, parameter.placements
        rows_R = DTensor.from_local(rows_R, mesh, placements, run_check=False, shape=torch.Size([rows]), stride=(1,))
    return {"step": step, "rows_R": rows_R, "columns_C": local_part(parameter).new_zeros(columns)}


def _is_factored(shape: torch.Size) -> bool:
    """A matrix, or a kernel seen as one; not a token or a table of positions, which have one row."""
    return len(shape) > 1 and shape[0] > 1


def _copies(parameter: nn.Parameter) -> int:
    if not isinstance(parameter, DTensor):
        return world_size()
    mesh = parameter.device_mesh
    return prod(mesh.size(axis) for axis, placement in enumerate(parameter.placements) if placement.is_replicate())
