"""Optimizer and its parameter groups: what decays, and which part of the learning rate each layer gets."""

import re
from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from tips_ray.config import OptimizerConfig
from tips_ray.train.adafactor import Adafactor

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
    """What the next update uses, group by group."""
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = lr * group["lr_factor"], weight_decay * group["decay_factor"]


def fill_averages(optimizer: Optimizer) -> None:
    """AdamW's averages where no gradient has come yet (frozen prototypes), so that all checkpoints hold the same keys.

    Left to torch, a save leaves them out, and a load asks for them with a step count of one.
    """
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        averages = optimizer.state[parameter]
        if not averages:
            averages |= {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            averages["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)  # as fused AdamW does


def _lr_factor(name: str, depth: dict[str, int], config: OptimizerConfig) -> float:
    """Block i of d: layer_decay^(d - i); embeddings: layer_decay^(d + 1); all behind the blocks: 1."""
    layers_above = 0
    if found := _EMBEDDING.match(name):
        layers_above = depth[found[1]] + 1
    elif found := _BLOCK.match(name):
        layers_above = depth[found[1]] - int(found[2])
    own = config.patch_embed_lr_factor if name.startswith("image.patch_embed.") else 1.0
    return own * config.layer_decay**layers_above


def _decays(name: str, parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and name.rsplit(".", 1)[-1] not in _TOKENS
