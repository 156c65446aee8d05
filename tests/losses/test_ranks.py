"""One, two and four ranks give equal values and gradients of every loss, with uneven masks and invalid rows."""

import pytest
import torch
from given_scores import given_scores
from ranks import run_on_ranks
from torch import Tensor

from tips_ray.distributed import rank, sum_over_ranks, world_size
from tips_ray.losses import contrastive_loss, distillation_loss, masked_image_loss, moved_center, score_sum

IMAGES, PATCHES, CROPS, PROTOTYPES = 8, 10, 3, 12
VALID = torch.tensor([True, False, True, True, True, False, False, True])


def _tensors(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    counts = torch.tensor([0, 1, PATCHES, 3, 7, 2, 5, 4])
    return {
        "image": torch.nn.functional.normalize(normal(IMAGES, 6), dim=1),
        "text": torch.nn.functional.normalize(normal(IMAGES, 6), dim=1),
        "log_temperature": torch.tensor([-2.0], dtype=dtype),
        "student_crops": normal(IMAGES, CROPS, PROTOTYPES),  # images first, so that rows can be distributed to ranks
        "teacher_cls": normal(IMAGES, PROTOTYPES),
        "student_patches": normal(IMAGES, PATCHES, PROTOTYPES),
        "teacher_patches": normal(IMAGES, PATCHES, PROTOTYPES),
        "mask": torch.rand(IMAGES, PATCHES, generator=generator).argsort(dim=1) < counts[:, None],
        "valid": VALID,
    }


def _own_rows(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    share = IMAGES // world_size()
    own = slice(rank() * share, (rank() + 1) * share)
    return {name: value if name == "log_temperature" else value[own] for name, value in tensors.items()}


def _contrastive(own: dict[str, Tensor]) -> Tensor:
    return contrastive_loss(own["image"], own["text"], (-own["log_temperature"]).exp(), own["valid"])


def _distillation(own: dict[str, Tensor]) -> Tensor:
    center = own["teacher_cls"].new_zeros(PROTOTYPES)
    student, teacher = given_scores(own["student_crops"].transpose(0, 1)), given_scores(own["teacher_cls"])
    return distillation_loss(student, teacher, center, 0.1, 0.07, own["valid"])


def _masked_image(own: dict[str, Tensor], visible_weight: float = 0.0) -> Tensor:
    chosen = torch.ones_like(own["mask"]) if visible_weight else own["mask"]
    index = chosen.flatten().nonzero().flatten()
    student, teacher = (own[name].flatten(0, 1)[index] for name in ("student_patches", "teacher_patches"))
    scores, center = (given_scores(student), given_scores(teacher)), teacher.new_zeros(PROTOTYPES)
    return masked_image_loss(
        *scores, index, own["mask"], center, 0.1, 0.07, own["valid"], visible_weight=visible_weight
    )


def _masked_and_visible(own: dict[str, Tensor]) -> Tensor:
    return _masked_image(own, visible_weight=0.7)


LOSSES = {
    _contrastive: ("image", "text", "log_temperature"),
    _distillation: ("student_crops",),
    _masked_image: ("student_patches",),
    _masked_and_visible: ("student_patches",),
}


def _losses_and_gradients(dtype: torch.dtype) -> dict[str, list[Tensor]]:
    """This rank's part of each loss and gradient, as in training, where FSDP averages gradients over ranks."""
    results = {}
    for loss_of, names in LOSSES.items():
        own = _own_rows(_tensors(dtype))
        leaves = [own[name].requires_grad_() for name in names]
        loss = loss_of(own)
        grads = torch.autograd.grad(loss, leaves)
        results[loss_of.__name__] = [
            sum_over_ranks(loss) / world_size(),
            *(_as_trained(*pair) for pair in zip(names, grads, strict=True)),
        ]
    own = _own_rows(_tensors(dtype))
    sums = sum_over_ranks(
        score_sum(given_scores(own["teacher_patches"].flatten(0, 1)), (own["mask"] & own["valid"][:, None]).flatten())
    )
    results["center"] = [moved_center(torch.zeros(PROTOTYPES, dtype=dtype), sums, 0.9)]
    return results


def _as_trained(name: str, grad: Tensor) -> Tensor:
    return sum_over_ranks(grad) / world_size() if name == "log_temperature" else grad / world_size()


def _joined(per_rank: list[dict[str, list[Tensor]]]) -> dict[str, list[Tensor]]:
    """Rows of the ranks joined in order; values that all ranks share appear once."""

    def join(parts: tuple[Tensor, ...]) -> Tensor:
        return parts[0] if parts[0].dim() < 2 else torch.cat(parts)

    return {name: [join(parts) for parts in zip(*(r[name] for r in per_rank), strict=True)] for name in per_rank[0]}


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("ranks", "dtype", "tolerance"),
    [
        (2, torch.float32, 1e-5),
        (4, torch.float64, 1e-10),
        pytest.param(2, torch.float64, 1e-10, marks=pytest.mark.variant),
        pytest.param(4, torch.float32, 1e-5, marks=pytest.mark.variant),
    ],
)
def test_ranks_equal_one_rank_in_every_loss_and_gradient(ranks, dtype, tolerance):
    whole = _losses_and_gradients(dtype)
    torch.testing.assert_close(
        _joined(run_on_ranks(ranks, _losses_and_gradients, dtype)), whole, atol=tolerance, rtol=tolerance
    )
