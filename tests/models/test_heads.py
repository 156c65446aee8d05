"""The prototype head gives unit rows and prototypes, with the gradients of `F.normalize`."""

import torch
from torch.nn import functional as F

from tips_ray.config import PrototypeHeadConfig
from tips_ray.models.heads import PrototypeHead, PrototypeScores


def _head() -> PrototypeHead:
    torch.manual_seed(0)
    return PrototypeHead(6, PrototypeHeadConfig(num_prototypes=9, hidden=8, bottleneck=4)).double()


def test_rows_prototypes_and_all_gradients_are_those_of_normalize():
    head, features_RD = _head(), torch.randn(5, 6, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    head.prototypes.data[2] = 0  # normalize divides by 1e-12 there
    expected = PrototypeScores(F.normalize(head.mlp(features_RD), dim=-1), F.normalize(head.prototypes, dim=-1))
    found = head(features_RD)
    torch.testing.assert_close(found, expected, atol=1e-14, rtol=0)
    weights = list(head.parameters())
    slopes = [torch.autograd.grad(_any_function(scores), weights) for scores in (found, expected)]
    torch.testing.assert_close(*slopes, atol=1e-12, rtol=1e-12)


def _any_function(scores: PrototypeScores) -> torch.Tensor:
    return torch.stack([(factor.sin() * torch.arange(4)).sum() for factor in scores]).sum()


def test_norms_of_half_precision_are_those_of_float32():
    head, features_RD = _head().bfloat16(), torch.randn(5, 6, dtype=torch.bfloat16)
    rows_RD = head.mlp(features_RD)
    assert torch.equal(head(features_RD).unit_RD, F.normalize(rows_RD.float(), dim=-1).bfloat16())
