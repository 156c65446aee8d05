"""The losses over chunks of prototype scores equal the equations on all scores, and never hold these."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tips_ray.losses import prototypes, score_sum
from tips_ray.losses.prototypes import prototype_loss

CROPS, ROWS, WIDTH, PROTOTYPES = 3, 11, 5, 7
WEIGHTS = torch.linspace(0, 1, ROWS, dtype=torch.float64)  # the first row has none


def _factors(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def unit(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).to(dtype)

    return {
        "student_VRD": unit(CROPS, ROWS, WIDTH).requires_grad_(),
        "student_KD": unit(PROTOTYPES, WIDTH).requires_grad_(),
        "teacher_RD": unit(ROWS, WIDTH + 2),  # a frozen teacher may have a bottleneck of its own
        "teacher_KD": unit(PROTOTYPES, WIDTH + 2),
        "center_K": 0.1 * unit(1, PROTOTYPES)[0],
        "weight_R": WEIGHTS.to(dtype),
    }


def _loss(student_VRD, student_KD, teacher_RD, teacher_KD, center_K, weight_R) -> Tensor:
    return prototype_loss((student_VRD, student_KD), (teacher_RD, teacher_KD), center_K, 0.1, 0.05, weight_R)


def _written_out(student_VRD, student_KD, teacher_RD, teacher_KD, center_K, weight_R) -> Tensor:
    probability_RK = F.softmax((teacher_RD @ teacher_KD.T - center_K) / 0.05, dim=-1)
    loss_VR = -(probability_RK * F.log_softmax(student_VRD @ student_KD.T / 0.1, dim=-1)).sum(dim=-1)
    return (loss_VR.mean(dim=0) * weight_R).sum()


def _with_gradients(function, factors: dict[str, Tensor]) -> tuple[Tensor, ...]:
    loss = function(**factors)
    return loss, *torch.autograd.grad(2.5 * loss, [factors["student_VRD"], factors["student_KD"]])


@pytest.mark.parametrize("scores_at_once", [1, 3 * CROPS * PROTOTYPES, 10**6])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_loss_and_gradients_over_chunks_are_those_of_the_equations(monkeypatch, scores_at_once, dtype, bound):
    monkeypatch.setitem(prototypes.SCORES_AT_ONCE, "cpu", scores_at_once)
    expected = _with_gradients(_written_out, _factors(torch.float64))
    found = _with_gradients(_loss, _factors(dtype))
    assert all(values.dtype == dtype for values in found)
    for values, right in zip(found, expected, strict=True):
        torch.testing.assert_close(values.double(), right, atol=bound * right.abs().max().item(), rtol=0)


def test_the_gradients_are_those_of_finite_differences(monkeypatch):
    monkeypatch.setitem(prototypes.SCORES_AT_ONCE, "cpu", 4 * CROPS * PROTOTYPES)
    factors = _factors(torch.float64)
    others = {name: factors[name] for name in ("teacher_RD", "teacher_KD", "center_K", "weight_R")}
    rows, kept = factors["student_VRD"], factors["student_KD"]
    assert torch.autograd.gradcheck(lambda rows, kept: _loss(rows, kept, **others), (rows, kept))


def test_half_precision_computes_its_softmaxes_in_float32():
    """Inputs in bf16 are off by 2^-9; a softmax in bf16 would be off by more."""
    factors = _factors(torch.bfloat16)
    factors["weight_R"] = factors["weight_R"].float()
    exact = {name: value.detach().double() for name, value in factors.items()}
    exact = {name: value.requires_grad_(name.startswith("student")) for name, value in exact.items()}
    found, expected = _with_gradients(_loss, factors), _with_gradients(_written_out, exact)
    assert [values.dtype for values in found] == [torch.float32, torch.bfloat16, torch.bfloat16]
    for values, right in zip(found, expected, strict=True):
        assert (values.double() - right).norm() < 2**-6 * right.norm()


def test_a_row_without_weight_may_hold_a_loss_that_is_not_finite():
    factors = _factors(torch.float64)
    factors["teacher_RD"][0] = torch.nan
    assert _loss(**factors).item() == pytest.approx(_loss(**_factors(torch.float64)).item())


def test_no_rows_give_no_loss_and_no_gradient():
    factors = _factors(torch.float64)
    none = {name: value[:0] for name, value in factors.items() if name.endswith("_R") or name.endswith("_RD")}
    factors |= none | {"student_VRD": factors["student_VRD"].detach()[:1, :0].requires_grad_()}
    loss, _, grad_KD = _with_gradients(_loss, factors)
    assert loss == 0 and not grad_KD.any()


def test_the_sum_of_all_scores_needs_none_of_them():
    factors, counted_R = _factors(torch.float64), WEIGHTS > 0.5
    sums_K1 = score_sum((factors["teacher_RD"], factors["teacher_KD"]), counted_R)
    scores_RK = factors["teacher_RD"] @ factors["teacher_KD"].T
    torch.testing.assert_close(sums_K1[:-1], scores_RK[counted_R].sum(dim=0), atol=1e-12, rtol=0)
    assert sums_K1[-1] == counted_R.sum() == 5


class _Largest(TorchDispatchMode):
    """Size of the largest matrix with a row for each prototype score."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and leaf.ndim > 1]
        self.most = max([self.most, *sizes])
        return out


def test_the_scores_of_a_chunk_are_the_largest_tensor(monkeypatch):
    monkeypatch.setitem(prototypes.SCORES_AT_ONCE, "cpu", 2 * CROPS * 1000)
    generator = torch.Generator().manual_seed(0)
    student = [torch.randn(*shape, generator=generator).requires_grad_() for shape in ((CROPS, 100, 2), (1000, 2))]
    teacher = torch.randn(100, 2, generator=generator), torch.randn(1000, 2, generator=generator)
    with _Largest() as largest:
        prototype_loss((student[0], student[1]), teacher, torch.zeros(1000), 0.1, 0.05, torch.ones(100)).backward()
    assert largest.most == 2 * CROPS * 1000


def test_compiled_chunks_give_the_same_numbers(monkeypatch):
    monkeypatch.setattr(prototypes, "_chunk", prototypes._chunk)
    expected = _with_gradients(_loss, _factors(torch.float64))
    prototypes.compile_losses(True, "aot_eager")
    found = _with_gradients(_loss, _factors(torch.float64))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
