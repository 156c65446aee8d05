"""Reads and writes our model as a `Tipsv2Model` folder of transformers, which loads offline and without our code.

Weights are written under the names of the released Hugging Face checkpoints (`vision_encoder.`, `text_encoder.`), which
transformers writes too; the names of its modules (`vision_model.`, `text_model.`) are also read. D width.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tips_ray.models.model import TipsModel, new_folder
from tips_ray.models.official import filled, released_image_name, released_text_name, renamed
from tips_ray.models.text import TextEncoder
from tips_ray.models.transformers_config import read_config, written_config
from tips_ray.models.vision import ImageEncoder
from tips_ray.tokenizer import SENTENCEPIECE_FILE, TOKENIZERS_FILE, Tokenizer, load_tokenizer

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
_IMAGE, _TEXT = "vision_encoder.", "text_encoder."
_FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_RELEASED_NAMES = {  # transformers' module names, and its spelling of released ones -> released names
    r"^vision_model\.embeddings\.patch_embeddings\.projection\.": _IMAGE + "patch_embed.proj.",
    r"^vision_model\.embeddings\.position_embeddings": _IMAGE + "pos_embed",
    r"^vision_model\.embeddings\.": _IMAGE,
    r"^vision_model\.layernorm\.": _IMAGE + "norm.",
    r"^vision_model\.encoder\.layer\.": _IMAGE + "blocks.",
    r"\.attention\.o_proj\.": ".attn.proj.",
    r"\.attention\.q_proj\.": ".attn.qkv.",
    r"\.layer_scale([12])\.lambda1": r".ls\1.gamma",
    r"\.mlp\.gate_proj\.": ".mlp.w12.",
    r"\.mlp\.down_proj\.": ".mlp.w3.",
    rf"^({_IMAGE}.*)\.mlp\.c_fc\.": r"\1.mlp.fc1.",
    rf"^({_IMAGE}.*)\.mlp\.c_proj\.": r"\1.mlp.fc2.",
    r"^text_model\.embeddings\.token_embedding\.": _TEXT + "token_embedding.",
    r"^text_model\.final_layer_norm\.": _TEXT + "ln_final.",
    r"^text_model\.encoder\.layers\.": _TEXT + "transformer.resblocks.",
    r"\.layer_norm([12])\.": r".ln_\1.",
    r"\.self_attn\.q_proj\.": ".attn.in_proj_",
    r"\.self_attn\.": ".attn.",
    rf"^({_TEXT}.*)\.mlp\.fc1\.": r"\1.mlp.c_fc.",
    rf"^({_TEXT}.*)\.mlp\.fc2\.": r"\1.mlp.c_proj.",
}


def export_transformers(model: TipsModel, folder: Path | str) -> Path:
    """Write config, weights (fp32), image processor and tokenizer for AutoModel, AutoProcessor and the pipeline
    "zero-shot-image-classification".

    `temperature` stays a divisor. Drop-path is written as 0, because it belongs to a run, not a model. The image
    processor squashes to the native size, bilinearly, and needs torchvision. Token ids are ours, with two exceptions:
    with a SentencePiece file a final sigma, which Python lower-cases by context, and with a unigram file literal
    "<pad>" and the like. Without a tokenizer, AutoModel and AutoImageProcessor load, but AutoProcessor does not.

    Raises:
        ValueError: `folder` exists and is not empty, or a SwiGLU hidden width that `Tipsv2VisionConfig` cannot express.
    """
    from safetensors.torch import save_file

    config = written_config(model.image.config, model.text.config, model.temperature)
    with new_folder(folder) as temporary:
        config.save_pretrained(temporary)
        save_file(_tensors(model), temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        _write_processor(model, temporary)
    return Path(folder)


def load_transformers(folder: Path | str) -> TipsModel:
    """Read a `Tipsv2Model` folder, ours or released: config.json, model.safetensors (whole or sharded), tokenizer.

    bf16 and fp16 become fp32. If the weights have no temperature, the config's is used. Without tokenizer.model and
    tokenizer.json the tokenizer is None.

    Raises:
        ValueError: a file is missing or unreadable, the config describes another architecture, or a tensor is missing,
            unknown or of the wrong shape.
    """
    folder = Path(folder)
    image_config, text_config, temperature = read_config(folder)
    tensors = _read_tensors(folder)
    temperature = tensors.pop("temperature", torch.tensor(temperature)).item()
    texts = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_TEXT)}
    image_name = released_image_name(image_config.ffn)
    image = filled(ImageEncoder, image_config, tensors, lambda name: _IMAGE + image_name(name), str(folder))
    text = filled(TextEncoder, text_config, texts, lambda name: _TEXT + released_text_name(name), str(folder))
    has_tokenizer = any((folder / name).is_file() for name in (SENTENCEPIECE_FILE, TOKENIZERS_FILE))
    return TipsModel(image, text, load_tokenizer(folder) if has_tokenizer else None, temperature)


def _tensors(model: TipsModel) -> dict[str, Tensor]:
    """Weights under released names, fp32 on the CPU."""
    image_name = released_image_name(model.image.config.ffn)
    named = {_IMAGE + image_name(name): value for name, value in model.image.state_dict().items()}
    named |= {_TEXT + released_text_name(name): value for name, value in model.text.state_dict().items()}
    named["temperature"] = torch.tensor(model.temperature)
    return {name: value.detach().float().cpu().contiguous() for name, value in named.items()}


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder under released names, fp32."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            tensors |= load_file(path)
        except (SafetensorError, FileNotFoundError) as error:
            raise ValueError(f"{path} cannot be read as safetensors: {error}") from error
    return {renamed(name, _RELEASED_NAMES): value.float() for name, value in _fused(tensors, folder).items()}


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if index.is_file():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    if not (folder / WEIGHTS_FILE).is_file():
        raise ValueError(f"{folder} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}")
    return [folder / WEIGHTS_FILE]


def _fused(tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Tensors with transformers' separate matrices (q, k, v; gate, up) joined under the name of the first."""
    fused = dict(tensors)
    for first, *others in _FUSED:
        for name in [name for name in tensors if f".{first}." in name]:
            names = [name, *(name.replace(f".{first}.", f".{other}.") for other in others)]
            missing = [part for part in names if part not in tensors]
            if missing:
                raise ValueError(f"{folder}: {missing[0]!r} is missing beside {name!r}")
            fused[name] = torch.cat([fused.pop(part) for part in names])
    return fused


def _write_processor(model: TipsModel, folder: Path) -> None:
    from transformers import Tipsv2ImageProcessor, Tipsv2Processor

    side = model.image.config.image_size_px
    image_processor = Tipsv2ImageProcessor(size={"height": side, "width": side})
    if model.tokenizer is None:
        image_processor.save_pretrained(folder)
        return
    tokenizer = _transformers_tokenizer(model.tokenizer, model.text.config.max_tokens, folder)
    Tipsv2Processor(image_processor, tokenizer).save_pretrained(folder)


def _transformers_tokenizer(tokenizer: Tokenizer, max_tokens: int, folder: Path) -> Any:
    """The tokenizer for AutoTokenizer. `Tipsv2Processor` pads to its `max_length` instead of 64."""
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    if tokenizer.file_name == SENTENCEPIECE_FILE:
        backend = _converted_sentencepiece(tokenizer.save(folder))
    else:
        backend = Backend.from_str(tokenizer.source.decode())
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=tokenizer.piece(0),
        split_special_tokens=True,
        model_max_length=max_tokens,
        max_length=max_tokens,
    )


def _converted_sentencepiece(path: Path) -> Any:
    """A SentencePiece file as `Tipsv2Tokenizer` converts it, assuming BPE with byte pieces; other kinds are corrected.

    The original file stays beside it; `load_transformers` reads that one.
    """
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers.models import Unigram
    from transformers import Tipsv2Tokenizer

    proto = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())  # pyright: ignore[reportAttributeAccessIssue]
    spec = proto.trainer_spec
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    backend = Tipsv2Tokenizer.from_pretrained(path.parent).backend_tokenizer
    if spec.model_type == spec.UNIGRAM:
        backend.model = Unigram(pieces, unk_id=spec.unk_id, byte_fallback=spec.byte_fallback)
    elif not spec.byte_fallback:
        backend.model.unk_token = pieces[spec.unk_id][0]
    return backend
