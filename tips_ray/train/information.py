"""How much a student predicts of its teacher's targets, in nats. K prototypes; a row is an image or a patch.

I = H(mean target) - mean cross-entropy(target, student) is a lower bound of the mutual information between the rows and
what the student predicts of their targets: a student that knows only the mean target has 0, one that knows less is
below 0. It is at most the targets' own mutual information with the rows, H(mean target) - mean H(target), which is at
most ln K and, over N rows, ln N.

Source: the variational bound of Barber and Agakov, NeurIPS 2003, with the student as the decoder.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

WINDOW_IMAGES = 512
"""(D) Images over which targets are averaged: a small batch would cap the information at the logarithm of its size."""


class TargetSums(NamedTuple):
    """Sums over the rows of a step, each row with its weight in the loss."""

    images: float
    """Valid images, each counted once."""
    weight: float
    """Sum of the weights."""
    target_K: Tensor
    """Sum of the targets, on the host."""
    entropy: float
    """Sum of the targets' entropies, in nats."""
    cross_entropy: float
    """Sum of the cross-entropies between target and student, in nats."""


def information(steps: Sequence[TargetSums]) -> dict[str, float]:
    """`information` and `mutual_information` over the rows of all steps, in nats; none if no row has a weight."""
    weight = sum(step.weight for step in steps)
    if not weight:
        return {}
    mean_K = torch.stack([step.target_K for step in steps]).sum(dim=0) / weight
    entropy_of_mean = torch.special.entr(mean_K).sum().item()
    return {
        "information": entropy_of_mean - sum(step.cross_entropy for step in steps) / weight,
        "mutual_information": entropy_of_mean - sum(step.entropy for step in steps) / weight,
    }


class InformationWindow:
    """The last logged steps of this start that have `images` images together. A restart begins with an empty one.

    Targets that all move from one step to the next count as information too: over S steps at most ln S nats of it. A
    held-out set has one state of the network, see `held_out_information`.
    """

    def __init__(self, images: int = WINDOW_IMAGES) -> None:
        self.images = images
        self.steps: deque[TargetSums] = deque()

    def add(self, step: TargetSums) -> dict[str, float]:
        """Add the newest step and forget those that are not needed; returns `information`, none before it is full."""
        self.steps.append(step)
        held = sum(one.images for one in self.steps)
        while held - self.steps[0].images >= self.images:
            held -= self.steps.popleft().images
        return information(self.steps) if held >= self.images else {}
