"""The first tensor of a step that is not finite. B images of a micro-batch, V local crops, L patches, M scored patches,
T text tokens.

Hooks see every module's output in the order of the forward passes, then the gradient at each output in the order of the
backward ones. An innermost module's hooks come before those of the modules around it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tips_ray.batch import Batch
from tips_ray.distributed import local_part
from tips_ray.models.networks import Student, Teacher, scored_patches


@dataclass(frozen=True)
class Numbers:
    """Range and bad values of a tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    low: float
    """Least finite value; NaN without any."""
    high: float
    not_finite: int


@dataclass(frozen=True)
class FirstBad:
    """Where a step went wrong first."""

    kind: Literal["input", "output", "loss", "gradient", "parameter gradient"]
    name: str
    """Field of the batch, path of the module, loss, or path of the parameter."""
    tensor: Numbers
    micro_batch: int | None = None
    """Index among the step's micro-batches; None: it belongs to the whole step."""
    images: tuple[int, ...] | None = None
    """Images of the micro-batch that have such values; None where rows belong to no image."""
    beside: tuple[Numbers, ...] = field(default=())
    """Inputs and own parameters of the module of an output; the output where a gradient arrived."""


def numbers(name: str, values: Tensor) -> Numbers:
    """`Numbers` of this process's shard of a tensor; on one process that is the whole tensor."""
    local = local_part(values).detach()
    finite = local[local.isfinite()].double()
    low, high = (finite.min().item(), finite.max().item()) if finite.numel() else (torch.nan, torch.nan)
    return Numbers(name, tuple(local.shape), str(local.dtype), low, high, local.numel() - finite.numel())


def is_bad(values: Tensor) -> bool:
    """Some value is not finite."""
    return values.is_floating_point() and not local_part(values).isfinite().all().item()


class Watch:
    """Looks at everything that `student` and `teacher` compute; `first` is the first bad tensor."""

    def __init__(self, student: Student, teacher: Teacher, batches: list[Batch]) -> None:
        self.first: FirstBad | None = None
        self.batches, self.config, self.student = batches, student.config, student
        self._current: int | None = None
        for name, network in (("student", student), ("teacher", teacher)):
            network.register_forward_pre_hook(self._entered)
            for path, module in network.named_modules():
                module.register_forward_hook(partial(self._saw_output, f"{name}.{path}".rstrip(".")), with_kwargs=True)
        embed = student.embed
        student.embed = lambda batch: (self._entered(student, (batch,)), embed(batch))[1]

    def look_at_inputs(self) -> None:
        """Before the step: the images themselves."""
        for index, batch in enumerate(self.batches):
            for name, image_dim in (("global_crops_BCHW", 0), ("local_crops_VBCHW", 1)):
                values = getattr(batch, name)
                if is_bad(values):
                    images = _bad_rows(values.movedim(image_dim, 0)).tolist()
                    self._found(FirstBad("input", name, numbers(name, values), index, tuple(images)))

    def look_at_losses(self, terms: dict[str, Tensor]) -> None:
        """After the step: a loss comes before the gradients that it spoils."""
        bad = next((name for name, term in terms.items() if is_bad(term)), None)
        if bad and (self.first is None or "gradient" in self.first.kind):
            self.first = FirstBad("loss", bad, numbers(bad, terms[bad]))

    def look_at_gradients(self) -> None:
        """After the step: parameter gradients, which may go bad only in the sum over a parameter's uses."""
        for name, parameter in reversed(list(self.student.named_parameters())):
            if parameter.grad is not None and is_bad(parameter.grad):
                beside = (numbers("parameter", parameter),)
                self._found(FirstBad("parameter gradient", name, numbers(name, parameter.grad), beside=beside))

    def _entered(self, network: nn.Module, inputs: tuple[Any, ...]) -> None:
        # FSDP hands its root a copy of the batch, with images in the compute type; integers are the same tensors.
        own = [batch.key_B.data_ptr() for batch in self.batches]
        self._current = own.index(inputs[0].key_B.data_ptr())

    def _saw_output(self, path: str, module: nn.Module, inputs: tuple, keywords: dict, output: Any) -> None:
        for name, values in _tensors(output, path):
            if is_bad(values):
                beside = [*_tensors((inputs, keywords), "input"), *module.named_parameters(recurse=False)]
                seen = tuple(numbers(of, tensor) for of, tensor in beside if tensor.is_floating_point())
                images = self._images(name, values, self._current)
                self._found(FirstBad("output", name, numbers(name, values), self._current, images, seen))
            if values.requires_grad:
                values.register_hook(partial(self._saw_gradient, name, self._current, numbers("output", values)))

    def _saw_gradient(self, name: str, micro_batch: int | None, output: Numbers, gradient: Tensor) -> None:
        if is_bad(gradient):
            images = self._images(name, gradient, micro_batch)
            self._found(FirstBad("gradient", name, numbers(name, gradient), micro_batch, images, (output,)))

    def _found(self, bad: FirstBad) -> None:
        self.first = self.first or bad

    def _images(self, path: str, values: Tensor, micro_batch: int | None) -> tuple[int, ...] | None:
        if micro_batch is None or not values.dim():
            return None
        image_R = _image_of_rows(path.split(".", 1)[1], values, self.batches[micro_batch], self.student)
        if image_R is None:
            return None
        return tuple(sorted(set(image_R[_bad_rows(values).cpu()].tolist())))


def _image_of_rows(path: str, values: Tensor, batch: Batch, student: Student) -> Tensor | None:
    """Which image each row of a module's output belongs to, derived from its path and length; None if unknown."""
    if path.endswith("prototypes_KD"):
        return None
    images, crops, rows = len(batch), len(batch.local_crops_VBCHW), len(values)
    if rows in (images, 2 * images, crops * images):  # both captions, or crop after crop
        return torch.arange(rows) % images
    if path.startswith("text"):
        return torch.arange(rows) // batch.web_ids_BT.shape[1] % images
    if path.startswith("image"):
        return _image_of_tokens(rows, batch, student.image.config.patch_size_px)
    scored_M = scored_patches(batch, student.config).cpu()
    return scored_M // batch.patch_mask_BL.shape[1] if rows == len(scored_M) else None


def _image_of_tokens(rows: int, batch: Batch, patch_size_px: int) -> Tensor | None:
    """Packed tokens: up to two global views, then the local crops, two CLS tokens and the patches of each."""
    images = len(batch)
    local_tokens = 2 + batch.local_crops_VBCHW[0, 0, 0].numel() // patch_size_px**2
    global_tokens = 2 + batch.patch_mask_BL.shape[1]
    for views in (0, 1, 2):
        for crops in (0, len(batch.local_crops_VBCHW)):
            lengths = [global_tokens] * views * images + [local_tokens] * crops * images
            if sum(lengths) == rows:
                return (torch.arange(len(lengths)) % images).repeat_interleave(torch.tensor(lengths))
    return None


def _bad_rows(values: Tensor) -> Tensor:
    is_fine_R = values.detach()[:, None].flatten(1).isfinite().all(dim=1)
    return (~is_fine_R).nonzero().flatten()


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors inside tuples, lists and dicts, each with its path."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _tensors(part, f"{name}.{key}")
    elif isinstance(value, tuple | list):
        names = getattr(value, "_fields", range(len(value)))
        for key, part in zip(names, value, strict=True):
            yield from _tensors(part, f"{name}.{key}")
