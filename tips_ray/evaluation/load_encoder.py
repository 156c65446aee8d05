"""Loads the encoder that MODEL names."""

import json
from pathlib import Path

import torch

from tips_ray import storage
from tips_ray.devices import use_fast_products
from tips_ray.evaluation.encoder_place import TIMM_PREFIXES, EncoderPlace
from tips_ray.evaluation.encoders import Encoder, TipsEncoder
from tips_ray.evaluation.foreign_encoders import TimmEncoder, TransformersEncoder
from tips_ray.models import load_official_image, load_official_text, load_tokenizer, load_transformers
from tips_ray.weights import WeightsSource, source_at, trained_model


def load_encoder(model: str, image_size_px: int | None = None) -> Encoder:
    """The encoder, fp32 on the CPU.

    Args:
        model: a run folder or one of its checkpoints (local or s3://); a folder that transformers or timm reads;
            released npz (a folder or pattern with both encoders, the vocabulary beside them, or the image encoder's
            file); `timm:NAME`, whose weights timm downloads.
        image_size_px: side of the images, a multiple of the patch size; default: the native one.

    Raises:
        ValueError: `model` is nothing that can be evaluated or cannot be read, or the size is no multiple.
    """
    encoder = _encoder(model, image_size_px)
    if encoder.image_size_px % encoder.patch_size_px:
        raise ValueError(
            f"image_size_px ({encoder.image_size_px}) must be a multiple of the patch size ({encoder.patch_size_px})"
        )
    return encoder


def placed_encoder(place: EncoderPlace, threads: float, gpus: float) -> Encoder:
    """The encoder at `place`, for an actor or task that holds `threads` CPUs and `gpus` GPUs.

    Raises:
        ValueError: it is no longer there, or it has changed.
    """
    torch.set_num_threads(max(int(threads), 1))
    encoder = load_encoder(place.model, place.image_size_px)
    if encoder.fingerprint != place.fingerprint:
        raise ValueError(f"MODEL ({place.model}) has changed since this command began; run it again")
    move(encoder, "cuda" if gpus else "cpu")
    return encoder


def move(encoder: Encoder, device: str) -> None:
    """Put an encoder on a device. A GPU then multiplies in TF32: 8 times as exact as bf16, in which it was trained."""
    use_fast_products(torch.device(device))
    for network in encoder.networks:
        network.to(device)


def _encoder(model: str, image_size_px: int | None) -> Encoder:
    if model.startswith(TIMM_PREFIXES):
        return TimmEncoder(model.removeprefix("timm:"), image_size_px)
    config = Path(model, "config.json")
    if storage.is_local(model) and config.is_file():
        return _of_folder(config, image_size_px)
    source = source_at("MODEL", model)
    if source.kind == "official":
        return _released(source, image_size_px)
    if source.kind == "transformers":
        raise ValueError(f"MODEL ({model}): a transformers folder must be local; copy it")
    return _of_run(source, image_size_px)


def _of_run(source: WeightsSource, image_size_px: int | None) -> Encoder:
    model, checkpoint = trained_model(source)
    encoder = TipsEncoder.of_model(model, image_size_px)
    encoder.checkpoint_uri = checkpoint.uri
    return encoder


def _of_folder(config: Path, image_size_px: int | None) -> Encoder:
    """Encoder of a folder with `config.json`: timm writes `architecture` into it, transformers `model_type`."""
    tree = json.loads(config.read_text(encoding="utf-8"))
    if tree.get("model_type") == "tipsv2":
        return TipsEncoder.of_model(load_transformers(config.parent), image_size_px)
    if "model_type" in tree:
        return TransformersEncoder(config.parent, image_size_px)
    if "architecture" in tree:
        return TimmEncoder(f"local-dir:{config.parent}", image_size_px)
    raise ValueError(f"{config} has neither model_type (transformers) nor architecture (timm)")


def _released(source: WeightsSource, image_size_px: int | None) -> Encoder:
    """Encoder of released npz files; it reads texts if the text encoder's file and a vocabulary are there."""
    if "image" not in source.files or not all(map(storage.is_local, source.files.values())):
        raise ValueError(f"MODEL ({source.uri}): the npz of the image encoder must be there, on this machine")
    heads = {kind: source.sizes[kind].get("num_heads") for kind in source.files}
    image = load_official_image(source.files["image"], heads["image"])
    folder = Path(source.files["image"]).parent
    has_vocabulary = any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json"))
    if "text" not in source.files or not has_vocabulary:
        return TipsEncoder(image, None, None, image_size_px)
    text = load_official_text(source.files["text"], heads["text"])
    return TipsEncoder(image, text, load_tokenizer(folder), image_size_px)
