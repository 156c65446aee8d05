"""PaliGemma (v1, v2) through transformers: images in, captions out."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tips_ray.captioning.decoding import Decoder, Decoding, Row
from tips_ray.captioning.model_folder import model_folder
from tips_ray.config.captions import CaptionerConfig
from tips_ray.errors import reader_fault
from tips_ray.keyed import derived

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Captioned(NamedTuple):
    """What became of an image: captions, or an error."""

    captions: list[str]
    error: str = ""


class Captioner:
    """One PaliGemma on one device.

    Hand it more images than `batch_images` at a time: rows that end early make room for the next ones.

    Raises:
        ValueError: there is no such model, it is no PaliGemma, or the device is not there.
    """

    def __init__(self, config: CaptionerConfig) -> None:
        self.config = config
        folder, device = model_folder(config), _device(config)
        self._processor, self._model = _loaded(folder, _DTYPES[config.dtype])
        self._model.to(device)
        self._prompts = [self._prompt_ids(prompt) for prompt in config.prompts]
        self._decoder = Decoder(self._model, self._decoding(), config.batch_images)

    @property
    def batch_images(self) -> int:
        """Captions written at the same time; less than the config's once memory ran out."""
        return self._decoder.places

    def __call__(self, images: Sequence[np.ndarray], keys: Sequence[int] | None = None) -> list[Captioned]:
        """Captions of `images`, prompt by prompt; a bad image has an error instead and disturbs no other.

        Args:
            images: uint8 RGB [H, W, 3] each.
            keys: int64 per image, which alone decides the draws where the temperature is above 0; equal images with
                equal keys get equal captions.

        Raises:
            RuntimeError, MemoryError: there is no room for even one image.
        """
        if keys is None:
            keys = [0] * len(images)
        rows = [self._rows(image, key) for image, key in zip(images, keys, strict=True)]
        self._decoder.write(row for group in rows for row in group)
        return [self._captioned(group) for group in rows]

    def _rows(self, image: np.ndarray, key: int) -> list[Row]:
        pixels, draws = partial(self._pixels, image), self.config.captions_per_prompt
        return [
            Row(prompt, pixels, int(derived(torch.tensor([key]), number * draws + draw)))
            for number, prompt in enumerate(self._prompts)
            for draw in range(draws)
        ]

    def _pixels(self, image: np.ndarray) -> Tensor:
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            found = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
            raise ValueError(f"not an image: {found} instead of uint8 [H, W, 3]")
        if 0 in image.shape:
            raise ValueError(f"not an image: {image.shape[0]} x {image.shape[1]} pixels")
        options = {"return_tensors": "pt", "input_data_format": "channels_last"}
        return self._processor.image_processor(image, **options)["pixel_values"][0]

    def _captioned(self, rows: list[Row]) -> Captioned:
        error = next((row.error for row in rows if row.error), "")
        texts = self._processor.batch_decode([row.tokens for row in rows], skip_special_tokens=True)
        captions = [text for text in map(str.strip, texts) if text]
        if error or not captions:
            return Captioned([], error or "empty caption")
        return Captioned(captions)

    def _prompt_ids(self, prompt: str) -> Tensor:
        blank = np.zeros((8, 8, 3), np.uint8)
        return self._processor(images=blank, text=f"<image>{prompt}", return_tensors="pt")["input_ids"][0]

    def _decoding(self) -> Decoding:
        settings, config = self._model.generation_config, self.config
        end = settings.eos_token_id if settings.eos_token_id is not None else self._model.config.eos_token_id
        ends = frozenset([end] if isinstance(end, int) else end)
        return Decoding(config.max_new_tokens, config.temperature, settings.pad_token_id or 0, ends)


def _loaded(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoProcessor, PaliGemmaForConditionalGeneration

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        kind = AutoConfig.from_pretrained(folder, **options).model_type
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"model ({folder}): transformers does not know it ({_first_line(error)})") from None
    if kind != "paligemma":
        raise ValueError(f"model ({folder}): it is a {kind}, and must be a paligemma (v1 or v2); give another model")
    load: Callable = PaliGemmaForConditionalGeneration.from_pretrained
    cure = "give a folder with model and processor as save_pretrained writes them"
    try:
        model, report = load(folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **options)
        processor = AutoProcessor.from_pretrained(folder, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"model ({folder}): it cannot be loaded ({_first_line(error)}); {cure}") from None
    if report["missing_keys"]:  # transformers would go on with random ones
        raise ValueError(f"model ({folder}): weights are missing ({min(report['missing_keys'])}, ...); {cure}")
    return processor, model.eval()


def _device(config: CaptionerConfig) -> torch.device:
    there = torch.cuda.is_available()
    if config.device == "cuda" and not there:
        raise ValueError("device (cuda): torch finds no GPU here; use device: auto or cpu")
    return torch.device("cuda" if there and config.device != "cpu" else "cpu")


def _first_line(error: Exception) -> str:
    return reader_fault(error).split("\n", 1)[0]
