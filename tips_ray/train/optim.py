"""Optimizer and its parameter groups."""

from torch import Tensor, nn
from torch.optim import AdamW

from tips_ray.config import OptimizerConfig

_TOKENS = ("cls_token", "register_tokens", "mask_token", "pos_embed")


def adamw(student: nn.Module, config: OptimizerConfig) -> AdamW:
    """Fused AdamW; the learning rate is set by the schedule before every update."""
    return AdamW(parameter_groups(student, config.weight_decay), lr=0.0, betas=config.betas, fused=True)


def parameter_groups(student: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices decay; biases, norms, tokens, positions, LayerScale and the temperature do not."""
    trained = [(name, parameter) for name, parameter in student.named_parameters() if parameter.requires_grad]
    decayed = [parameter for name, parameter in trained if _decays(name, parameter)]
    spared = [parameter for name, parameter in trained if not _decays(name, parameter)]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]


def _decays(name: str, parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and name.rsplit(".", 1)[-1] not in _TOKENS
