"""Linear probes on frozen features. N images, P rows of an image, D width, K outputs, R learning rates."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from tips_ray.config.evaluation import ProbeConfig, TrainingConfig

LEARNING_RATE = "learning_rate"
"""Under which a task says, beside its scores, which rate was chosen."""
Rows = Callable[[Tensor], Tensor]
"""Places of n images [n] -> what is known of them, [n, P, D]."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs [R, b, P, K], places of the b images [b]) -> loss of each probe, [R]."""


class LinearProbes(nn.Module):
    """R linear maps side by side behind one BatchNorm, which has no weights of its own: a linear map has them.

    No probe sees another: each parameter gets the gradient of its own loss alone, and AdamW and SGD go by parameter.
    """

    def __init__(self, width: int, outputs: int, probes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)
        weight_KD = 0.01 * torch.randn(outputs, width, generator=generator)  # mmsegmentation's start, in DINOv2
        self.weights = nn.ParameterList(weight_KD.clone() for _ in range(probes))
        self.biases = nn.ParameterList(torch.zeros(outputs) for _ in range(probes))

    def forward(self, rows_NPD: Tensor) -> Tensor:
        """[R, N, P, K]."""
        normed_NPD = self.norm(rows_NPD.flatten(0, 1)).view_as(rows_NPD)
        pairs = zip(self.weights, self.biases, strict=True)
        return torch.stack([nn.functional.linear(normed_NPD, weight, bias) for weight, bias in pairs])


def trained_probes(
    rows: Rows, places_n: Tensor, outputs: int, loss: Loss, config: ProbeConfig, seed: int
) -> LinearProbes:
    """A probe for each learning rate, all from the same start, trained on the images `places_n`; evaluation mode."""
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
    """The scores alone; those of an embedding have its name before the rate's."""
    return {name: value for name, value in scores.items() if not name.endswith(LEARNING_RATE)}


def split_places(images: int, config: ProbeConfig) -> tuple[Tensor, Tensor]:
    """Places of the images to train on and of those held out, evenly spread.

    Raises:
        ValueError: there are fewer than two.
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
    """Linear up, linear down to 0; step 0 already moves."""
    rising = config.warmup * config.steps
    return min((step + 1) / (rising + 1), (config.steps - step) / (config.steps - rising))


def batches(places_n: Tensor, config: TrainingConfig, generator: torch.Generator) -> Iterator[Tensor]:
    """Pass after pass in a new order each; a batch never holds an image twice."""
    size, order_n = min(config.batch_images, len(places_n)), places_n[:0]
    for _ in range(config.steps):
        if len(order_n) < size:
            order_n = places_n[torch.randperm(len(places_n), generator=generator)]
        yield order_n[:size]
        order_n = order_n[size:]
