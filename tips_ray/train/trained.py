"""The model that a run has reached, for all that is done with it after training."""

from typing import Any

import torch

from tips_ray import storage
from tips_ray.config import ImageEncoderConfig, TextEncoderConfig
from tips_ray.data.vocabulary import tokenizer_at
from tips_ray.models import ImageEncoder, TextEncoder, TipsModel, Tokenizer
from tips_ray.train.loading import fill_from_checkpoint
from tips_ray.weights import Origin


def trained_model(origin: Origin) -> TipsModel:
    """Averaged image encoder, text encoder, vocabulary and temperature, fp32 on the CPU, in evaluation mode.

    Args:
        origin: a checkpoint; of a run the one that `verified` has found.

    Raises:
        ValueError: it is damaged.
    """
    assert origin.checkpoint is not None
    image = ImageEncoder(ImageEncoderConfig(**origin.sizes["image"]))
    text = TextEncoder(TextEncoderConfig(**origin.sizes["text"]))
    log_temperature = torch.empty(1)
    tree: dict[str, dict[str, Any]] = {"student": {"log_temperature": log_temperature}, "teacher": {}}
    tree["student"] |= {f"text.{name}": value for name, value in text.state_dict().items()}
    tree[origin.teacher_part("image.norm.weight")] |= {f"image.{name}": v for name, v in image.state_dict().items()}
    fill_from_checkpoint({part: tensors for part, tensors in tree.items() if tensors}, origin.checkpoint)
    return TipsModel(image.eval(), text.eval(), _tokenizer(origin), log_temperature.exp().item())


def _tokenizer(origin: Origin) -> Tokenizer | None:
    """None where a run folder was copied without its vocabulary."""
    assert origin.config is not None
    uri = origin.config["captions"]["tokenizer"] or storage.join(origin.run_uri, "tokenizer.json")
    return tokenizer_at(uri) if storage.exists(uri) else None
