"""Linear probes on frozen features. N images, P rows per image, D width, K outputs, R learning rates."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from tips_ray.config.evaluation import ProbeConfig, TrainingConfig

LEARNING_RATE = "learning_rate"
"""Key under which a task reports the chosen rate beside its scores."""
Rows = Callable[[Tensor], Tensor]
"""Positions of n images [n] -> their features [n, P, D]."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs [R, b, P, K], positions of the b images [b]) -> loss of each probe, [R]."""


class LinearProbes(nn.Module):
    """R linear maps side by side after one BatchNorm, which has no weights because the linear maps have them.

    Probes are independent: each parameter gets the gradient of one loss, and AdamW and SGD act per parameter.
    """

    def __init__(self, width: int, outputs: int, probes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)
        weight_KD = 0.01 * torch.randn(outputs, width, generator=generator)  # mmsegmentation's, in DINOv2
        self.weights = nn.ParameterList(weight_KD.clone() for _ in range(probes))
        self.biases = nn.ParameterList(torch.zeros(outputs) for _ in range(probes))

    def forward(self, rows_NPD: Tensor) -> Tensor:
        """Outputs [R, N, P, K]."""
        normed_NPD = self.norm(rows_NPD.flatten(0, 1)).view_as(rows_NPD)
        pairs = zip(self.weights, self.biases, strict=True)
        return torch.stack([nn.functional.linear(normed_NPD, weight, bias) for weight, bias in pairs])


def trained_probes(
    rows: Rows, places_n: Tensor, outputs: int, loss: Loss, config: ProbeConfig, seed: int
) -> LinearProbes:
    """One probe per learning rate, all with equal initial weights, trained on images `places_n`; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    probes = LinearProbes(rows(places_n[:1]).shape[-1], outputs, len(config.learning_rates), generator)
    optimizer = _optimizer(probes, config)
    for step, batch_b in enumerate(batches(places_n, config, generator)):
        for group, peak in zip(optimizer.param_groups, config.learning_rates, strict=True):
            group["lr"] = peak * rate_factor(step, config)
        losses_R = loss(probes(rows(batch_b)), batch_b)
        losses_R.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return probes.requires_grad_(False).eval()


def without_rates(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores without the chosen learning rates, whose keys may have an embedding's name in front."""
    return {name: value for name, value in scores.items() if not name.endswith(LEARNING_RATE)}


def split_places(images: int, config: ProbeConfig) -> tuple[Tensor, Tensor]:
    """Positions of the images to train on, and of the held-out ones, which are evenly spread.

    Raises:
        ValueError: there are fewer than two images.
    """
    if images < 2:
        raise ValueError(f"{images} training images; a probe needs at least 2, one of them held out")
    every = min(max(round(1 / config.held_out), 2), images)
    places_N = torch.arange(images)
    is_held_out_N = places_N % every == every - 1
    return places_N[~is_held_out_N], places_N[is_held_out_N]


def _optimizer(probes: LinearProbes, config: ProbeConfig) -> torch.optim.Optimizer:
    groups = [{"params": pair} for pair in zip(probes.weights, probes.biases, strict=True)]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9, weight_decay=config.weight_decay)
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=config.weight_decay)


def rate_factor(step: int, config: TrainingConfig) -> float:
    """Factor of the peak rate: rises linearly, then falls linearly to 0; above 0 at step 0."""
    rising = config.warmup * config.steps
    return min((step + 1) / (rising + 1), (config.steps - step) / (config.steps - rising))


def batches(places_n: Tensor, config: TrainingConfig, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of positions: each pass over the images has a new order; a batch never holds an image twice."""
    size, order_n = min(config.batch_images, len(places_n)), places_n[:0]
    for _ in range(config.steps):
        if len(order_n) < size:
            order_n = places_n[torch.randperm(len(places_n), generator=generator)]
        yield order_n[:size]
        order_n = order_n[size:]
