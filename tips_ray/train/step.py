"""One optimizer step over K micro-batches, with the gradients of one big batch. B images per micro-batch."""

from collections.abc import Sequence
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.profiler import record_function

from tips_ray.batch import Batch
from tips_ray.config import ObjectiveConfig, TrainConfig
from tips_ray.distributed import HostCopy, mean_over_ranks, means_over_ranks, sum_over_ranks
from tips_ray.models.networks import Embedded, Embeddings, StudentOutputs
from tips_ray.objective import center_sums, contrastive_terms, self_supervised_terms, weighted_total
from tips_ray.train.graceful_stop import Agreement
from tips_ray.train.health import Health
from tips_ray.train.optim import set_rates
from tips_ray.train.parallelize import forget_forwards
from tips_ray.train.schedules import (
    center_momentum,
    config_at,
    ema_momentum,
    encoders_frozen,
    learning_rate,
    prototype_temperatures,
    prototypes_frozen,
)
from tips_ray.train.state import TrainState, update_teacher

JUDGED = ("loss/total", "grad_norm")
"""Metrics by which a step is judged."""


class BadStepError(FloatingPointError):
    """Loss or gradient norm of the global batch is not finite. All ranks raise; the state is as before the step."""

    def __init__(self, metrics: dict[str, Tensor], means: dict[str, float]) -> None:
        super().__init__(", ".join(name for name, mean in means.items() if not isfinite(mean)) + " not finite")
        self.metrics = metrics
        """This rank's metrics, as `train_step` would have returned them."""
        self.means = means
        """Means of the metrics over ranks."""


def train_step(
    state: TrainState,
    micro_batches: Sequence[Batch],
    config: TrainConfig,
    accumulate_unsharded: bool = False,
    health: Health | None = None,
    keep_graph: bool = False,
) -> dict[str, Tensor]:
    """`launch_step`, and a wait for its judgement; returns device scalars, see `LaunchedStep.metrics`.

    Raises:
        BadStepError: loss or gradient norm is not finite.
    """
    halted = new_halt(micro_batches)
    launched = launch_step(state, micro_batches, config, halted, accumulate_unsharded, health, keep_graph=keep_graph)
    try:
        launched.judge()
    except BadStepError:
        state.step = launched.step
        raise
    return launched.metrics


def new_halt(micro_batches: Sequence[Batch]) -> Tensor:
    """The flag of `launch_step`, down: 0 on the device of `micro_batches`, fp32 as the fused optimizer wants it."""
    return micro_batches[0].valid_B.new_zeros((), dtype=torch.float32)


def launch_step(
    state: TrainState,
    micro_batches: Sequence[Batch],
    config: TrainConfig,
    halted: Tensor,
    accumulate_unsharded: bool = False,
    health: Health | None = None,
    agreement: Agreement | None = None,
    keep_graph: bool = False,
) -> "LaunchedStep":
    """Hand one update to the device without waiting for it. `state.step` moves at once.

    All ranks judge loss and gradient norm on their devices before the update. Once one of them is not finite, `halted`
    is 1, and neither this step nor a later one changes a weight, an average or a centre, until the host sets it to 0.

    Args:
        state: changed in place.
        micro_batches: this rank's share of the global batch.
        config: of the run.
        halted: 0 or 1, equal on all ranks, changed in place: see `new_halt`.
        accumulate_unsharded: see `accumulate_gradients`.
        health: looks at the step's outputs.
        agreement: of the ranks on leaving or saving; its votes travel with the judgement.
        keep_graph: see `accumulate_gradients`.
    """
    config = config_at(state.step, config)
    schedule, objective = config.schedule, config.objective
    terms, sums = accumulate_gradients(
        state, micro_batches, objective, schedule.total_steps, accumulate_unsharded, health, keep_graph
    )
    with record_function("optimizer"):
        grad_norm = clip_gradients(state, config)
        metrics = {**{f"loss/{name}": term for name, term in terms.items()}, "grad_norm": grad_norm}
        launched = LaunchedStep(state.step, micro_batches, metrics, halted, agreement or Agreement())
        _update_student(state, config, halted)
    with record_function("ema"):
        momentum = ema_momentum(state.step, schedule.total_steps, objective)
        update_teacher(state.teacher, state.student, momentum, halted)
        state.centers.move(sums, center_momentum(state.step - state.skipped_steps, objective), halted)
    forget_forwards(state.teacher)
    state.step += 1
    return launched


class LaunchedStep:
    """A step that the device may still be doing."""

    def __init__(
        self,
        step: int,
        micro_batches: Sequence[Batch],
        metrics: dict[str, Tensor],
        halted: Tensor,
        agreement: Agreement,
    ) -> None:
        """Judge the step on the device; `halted` is set if it is bad. A collective."""
        self.step, self.micro_batches, self.agreement = step, micro_batches, agreement
        self.metrics = metrics
        """Device scalars whose mean over ranks is the global batch's value."""
        told = {name: metrics[name] for name in JUDGED} | agreement.votes(metrics["loss/total"])
        means = means_over_ranks(told)
        halted.copy_(torch.maximum(halted, (~means[: len(JUDGED)].isfinite().all()).to(halted.dtype)))
        self._names, self._told = list(told), HostCopy(means)

    def judge(self) -> None:
        """Wait for the judgement, count the ranks' votes; all ranks call this.

        Raises:
            BadStepError: loss or gradient norm is not finite; all ranks raise, and nothing was updated.
        """
        means = dict(zip(self._names, self._told.values(), strict=True))
        self.agreement.count(means)
        # A sum is not finite where a part of it is not: two numbers speak for all.
        if not all(isfinite(means[name]) for name in JUDGED):
            raise BadStepError(self.metrics, mean_over_ranks(self.metrics))


def accumulate_gradients(
    state: TrainState,
    micro_batches: Sequence[Batch],
    objective: ObjectiveConfig,
    total_steps: int,
    accumulate_unsharded: bool = False,
    health: Health | None = None,
    keep_graph: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Add the gradients of the global batch to the student's; centres and weights do not move.

    Every pass sees the same randomness because all of it is keyed by sample. With K > 1 a first pass embeds all
    micro-batches; the contrastive loss over them gives each embedding's gradient, which a second pass carries into the
    encoders one micro-batch at a time. With `keep_graph` the first pass has a graph, and the second one only computes
    what the first did not; otherwise the first has none, and the second computes all. `health` sees the outputs.

    Sharded gradients are averaged over ranks after every micro-batch, or once after the last if `accumulate_unsharded`:
    less traffic, but a whole gradient in the memory of every rank.

    Returns:
        The named losses with their `total`, and the score sums of all ranks that move the centres.
    """
    temperatures = prototype_temperatures(state.step, total_steps, objective)
    global_valid = sum_over_ranks(torch.stack([batch.valid_B.sum() for batch in micro_batches]).sum())
    only = _student_pass(state, micro_batches[0]) if len(micro_batches) == 1 else None
    embedded = [Embedded(*only[:2], None)] if only else [_embedded(state, batch, keep_graph) for batch in micro_batches]
    terms, pullbacks = _contrastive(embedded, [batch.valid_B for batch in micro_batches], objective)
    if health:
        health.see_embeddings([one[:2] for one in embedded], [batch.valid_B for batch in micro_batches])
    sums: dict[str, Tensor] = {}
    for batch, pullback in zip(micro_batches, pullbacks, strict=True):
        first = embedded.pop(0)  # so that its graph can go with this micro-batch's backward
        outputs = only or (_completed(state, batch, first) if keep_graph else _student_pass(state, batch))
        with record_function("teacher"):
            scores = state.teacher(batch, outputs.clean)
        with record_function("losses"):
            parts = self_supervised_terms(outputs, scores, state.centers, batch, objective, temperatures, global_valid)
            surrogate = pullback.surrogate(outputs) + weighted_total(parts, objective)
            _add(terms, {name: part.detach() for name, part in parts.items()})
            _add(sums, center_sums(scores, batch, objective))
            if health:
                health.see_targets(scores, state.centers, batch, temperatures)
        with record_function("backward"):
            _expect_backward(state, batch is micro_batches[-1], accumulate_unsharded)
            surrogate.backward()
    return {**terms, "total": weighted_total(terms, objective)}, _over_ranks(sums)


class Pullback(NamedTuple):
    """Gradients of the contrastive terms at one micro-batch's embeddings, to be carried into the networks."""

    embeddings: Embeddings
    log_temperature: Tensor
    """Zero in all micro-batches but one: the temperature's gradient is counted once."""

    def surrogate(self, outputs: StudentOutputs) -> Tensor:
        """A scalar with these gradients at `outputs`."""
        products = [(value * slope).sum() for value, slope in zip(outputs.embeddings, self.embeddings, strict=True)]
        return torch.stack([*products, (outputs.log_temperature * self.log_temperature).sum()]).sum()


def _contrastive(
    embedded: Sequence[Embedded], valid: Sequence[Tensor], objective: ObjectiveConfig
) -> tuple[dict[str, Tensor], list[Pullback]]:
    """Contrastive terms over all micro-batches and ranks, and their pullback to each micro-batch."""
    leaves = [_leaf(torch.cat(parts)) for parts in zip(*(one.embeddings for one in embedded), strict=True)]
    log_temperature = _leaf(embedded[0].log_temperature)
    with record_function("losses"):
        terms = contrastive_terms(Embeddings(*leaves), log_temperature, torch.cat(list(valid)), objective)
        total = weighted_total(terms, objective)
        # An embedding that no term asks for gets zeros.
        *slopes, slope = torch.autograd.grad(total, [*leaves, log_temperature], materialize_grads=True)
    sizes = [len(valid_B) for valid_B in valid]
    per_batch = zip(*(slope_BD.split(sizes) for slope_BD in slopes), strict=True)
    pullbacks = [Pullback(Embeddings(*rows), slope * (index == 0)) for index, rows in enumerate(per_batch)]
    return {name: term.detach() for name, term in terms.items()}, pullbacks


def _student_pass(state: TrainState, batch: Batch) -> StudentOutputs:
    with record_function("student"):
        return state.student(batch)


def _completed(state: TrainState, batch: Batch, first: Embedded) -> StudentOutputs:
    """The outputs of both passes, with the graphs of both."""
    with record_function("student"):
        return StudentOutputs(*first[:2], *state.student.complete(batch, first.view))


def _expect_backward(state: TrainState, is_last: bool, accumulate_unsharded: bool) -> None:
    """Tell FSDP about the next backward; an unsharded student has nothing to hear.

    The last one alone ends the step's bookkeeping: forgotten earlier, the order of the forward passes could not tell
    which weights the backward of a later micro-batch needs next.
    """
    if isinstance(state.student, FSDPModule):
        state.student.set_requires_gradient_sync(is_last or not accumulate_unsharded)
        state.student.set_is_last_backward(is_last)
        state.student.set_reshard_after_backward(is_last or not state.student.stays_gathered)


def _embedded(state: TrainState, batch: Batch, keep_graph: bool) -> Embedded:
    with record_function("embed"), torch.set_grad_enabled(keep_graph):
        found = state.student.embed(batch)
    return found if keep_graph else found._replace(view=None)


def clip_gradients(state: TrainState, config: TrainConfig) -> Tensor:
    """Drop gradients of frozen parameters, clip the others; returns their norm over all ranks before clipping."""
    _forget_frozen_gradients(state, config)
    grad_norm = torch.nn.utils.clip_grad_norm_(state.student.parameters(), config.optimizer.max_grad_norm)
    return grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm


def _update_student(state: TrainState, config: TrainConfig, halted: Tensor) -> None:
    """Update the student unless `halted`, and drop its gradients."""
    optimizer: Any = state.optimizer
    set_rates(optimizer, learning_rate(state.step, config.schedule), config.optimizer.weight_decay)
    optimizer.found_inf = halted  # the words of torch's GradScaler, which fused AdamW and ours understand
    optimizer.step()
    del optimizer.found_inf
    optimizer.zero_grad(set_to_none=True)


def _forget_frozen_gradients(state: TrainState, config: TrainConfig) -> None:
    """Drop the gradients of frozen parameters, which then have no part in norm, decay and averages."""
    frozen = []
    if prototypes_frozen(state.step, config.schedule.total_steps, config.objective):
        frozen += [head.prototypes for head in (state.student.heads.distillation, state.student.heads.masked_image)]
    if encoders_frozen(state.step, config.start):
        frozen += [weight for name, weight in state.student.named_parameters() if not name.startswith("heads.")]
    for weight in frozen:
        weight.grad = None


def _leaf(value: Tensor) -> Tensor:
    return value.detach().requires_grad_()


def _add(totals: dict[str, Tensor], parts: dict[str, Tensor]) -> None:
    for name, part in parts.items():
        totals[name] = totals[name] + part if name in totals else part


def _over_ranks(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """All score sums in one collective."""
    if not sums:
        return sums
    total = sum_over_ranks(torch.cat(list(sums.values())))
    return dict(zip(sums, total.split([len(part) for part in sums.values()]), strict=True))
