"""A tiny PaliGemma with random weights, v1 or v2, and its tokenizer, written as a folder."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, trainers
from transformers import GemmaTokenizer, PaliGemmaConfig, PaliGemmaForConditionalGeneration, PaliGemmaProcessor
from transformers import SiglipImageProcessorPil as ImageProcessor

IMAGE_PX, PATCH_PX = 28, 14
WORDS = ["caption en", "describe en", "two dogs on green grass", "a blue circle above a yellow triangle"]


def write_paligemma(folder: Path, version: int = 1, seed: int = 0, image_px: int = IMAGE_PX, **text: int) -> Path:
    """Write the folder; `text` replaces sizes of the language model."""
    processor = _processor(image_px)
    sizes: dict[str, Any] = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    language: dict[str, Any] = {
        **sizes,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 512,
        **text,
    }
    language |= {"vocab_size": len(processor.tokenizer), "model_type": "gemma" if version == 1 else "gemma2"}
    language |= {"sliding_window": 8, "query_pre_attn_scalar": 16} if version == 2 else {}
    vision = {**sizes, "model_type": "siglip_vision_model", "image_size": image_px, "patch_size": PATCH_PX}
    vision |= {"projection_dim": language["hidden_size"], "vision_use_head": False}
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "image_token_index": processor.image_token_id}
    shared: dict[str, Any] = {name: language[name] for name in ("hidden_size", "vocab_size")}
    shared |= {"projection_dim": language["hidden_size"]}
    config = PaliGemmaConfig(vision_config=vision, text_config={**language, **special}, **shared, **special)
    torch.manual_seed(seed)
    model = PaliGemmaForConditionalGeneration(config).eval()
    _sharpen(model)
    # Every 12th token ends a caption, so that captions have some 12 tokens.
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = [1, *range(12, len(processor.tokenizer), 12)]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _sharpen(model: PaliGemmaForConditionalGeneration) -> None:
    """Let texts depend on the image and on the words before: with small random weights one token repeats itself."""
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim > 1 and "embed" not in name:
                weights.normal_(std=1.5 / weights[0].numel() ** 0.5)


def _processor(image_px: int) -> Any:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(WORDS * 8, trainer)
    found = json.loads(tokenizer.to_str())["model"]
    pairs: Any = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in found["merges"]]
    images: Any = ImageProcessor(size={"height": image_px, "width": image_px})
    images.image_seq_length = (image_px // PATCH_PX) ** 2  # PaliGemmaProcessor asks for it
    return PaliGemmaProcessor(image_processor=images, tokenizer=GemmaTokenizer(vocab=found["vocab"], merges=pairs))
