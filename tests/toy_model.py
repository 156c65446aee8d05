"""A small model for tests of export that looks trained: every parameter differs from its initial value."""

from typing import Any

import torch

from tips_ray.models import TipsModel, Tokenizer, image_encoder, text_encoder, train_tokenizer

CAPTIONS = [f"A {colour} {shape} on the floor." for colour in ("red", "blue") for shape in ("cube", "sphere", "cone")]
FFN_HIDDEN = {"mlp": 67, "swiglu": 88}
"""Hidden sizes of the FFN; no multiples of the width, as in So400m."""


def toy_model(tokenizer: Tokenizer | None = None, **image_sizes: Any) -> TipsModel:
    """Float64, width 32, three image blocks, 4 x 4 patches, at most 20 tokens; a trained tokenizer by default."""
    torch.manual_seed(0)
    tokenizer = tokenizer or train_tokenizer(CAPTIONS, 60)
    sizes = {"width": 32, "depth": 3, "num_heads": 2, "image_size_px": 56, **image_sizes}
    image = image_encoder("S", **{"ffn_hidden": FFN_HIDDEN[sizes.get("ffn", "mlp")], **sizes})
    text_sizes = {"width": sizes["width"], "depth": 2, "num_heads": 2, "ffn_hidden": 48, "max_tokens": 20}
    text = text_encoder("S", **text_sizes, vocab_size=max(70, tokenizer.vocab_size))
    for parameter in [*image.parameters(), *text.parameters()]:
        parameter.data += 0.1 * torch.randn_like(parameter)
    return TipsModel(image.eval(), text.eval(), tokenizer, 0.0625)
