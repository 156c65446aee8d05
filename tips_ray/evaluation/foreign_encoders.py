"""Encoders of timm and transformers, for comparison. B images, T tokens, L patches, D width, E width of embeddings."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tips_ray.errors import reader_fault
from tips_ray.evaluation.encoders import TEXTS_AT_ONCE, Encoder, Features, device_of, quarters

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")


@contextmanager
def _reader_errors_as_sentences(model: str) -> Iterator[None]:
    """Raise ValueError for any error: libraries raise many kinds for an unknown name or a damaged file."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"MODEL ({model}) cannot be loaded: {' '.join(reader_fault(error).split())}") from error


class TimmEncoder(Encoder):
    """A ViT of timm. TIPS models give both CLS tokens; others give `cls`, and `pooled` if the model pools."""

    def __init__(self, name: str, image_size_px: int | None = None) -> None:
        """Load the model that timm calls `name`, such as `vit_base_patch14_dinov2` or `local-dir:FOLDER`.

        Raises:
            ValueError: there is no such model, or it gives no tokens.
        """
        import timm

        sizes: dict[str, Any] = {} if image_size_px is None else {"img_size": image_size_px}
        with _reader_errors_as_sentences(name):
            self.network: Any = timm.create_model(name, pretrained=True, num_classes=0, **sizes).eval()
        config = self.network.pretrained_cfg
        if not hasattr(self.network, "num_prefix_tokens") or not hasattr(self.network, "patch_embed"):
            raise ValueError(f"MODEL ({name}) gives no patch tokens; of timm's models only ViTs can be evaluated")
        self.patch_size_px = self.network.patch_embed.patch_size[0]
        self.image_size_px = image_size_px or config["input_size"][-1]
        self._is_tips = "tips" in config["architecture"]
        self._mean_std = config["mean"], config["std"]
        self.preparation = json.dumps(self._mean_std).encode()
        self.embeddings = ("cls_web", "cls_synthetic") if self._is_tips else self._other_embeddings()

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return (self.network,)

    def _other_embeddings(self) -> tuple[str, ...]:
        cls = ("cls",) if getattr(self.network, "cls_token", None) is not None else ()
        return cls if cls and self.network.global_pool == "token" else (*cls, "pooled")

    @torch.inference_mode()
    def features(self, images_BCHW: Tensor) -> Features:
        images_BCHW = standardised(images_BCHW.to(device_of(self.network)), *self._mean_std)
        return self._features(self.network.forward_features(images_BCHW))

    def _features(self, tokens_BTD: Tensor) -> Features:
        found = {"cls_web": 0, "cls_synthetic": 1} if self._is_tips else {"cls": 0}
        embeddings = {name: tokens_BTD[:, place] for name, place in found.items() if name in self.embeddings}
        if "pooled" in self.embeddings:
            embeddings["pooled"] = self.network.forward_head(tokens_BTD, pre_logits=True)
        return Features(tokens_BTD[:, self.network.num_prefix_tokens :], embeddings)

    @torch.inference_mode()
    def features_with_layers(self, images_BCHW: Tensor) -> tuple[Features, list[Tensor]]:
        images_BCHW = standardised(images_BCHW.to(device_of(self.network)), *self._mean_std)
        places = quarters(len(self.network.blocks))
        tokens_BTD, found = self.network.forward_intermediates(
            images_BCHW, indices=sorted(set(places)), output_fmt="NLC"
        )
        by_place = dict(zip(sorted(set(places)), found, strict=True))
        return self._features(tokens_BTD), [by_place[place] for place in places]


class TransformersEncoder(Encoder):
    """A folder that AutoModel reads. CLIP and SigLIP have a text tower, which `pooled` matches; DINOv2 has `cls`."""

    def __init__(self, folder: Path, image_size_px: int | None = None) -> None:
        """Load the model, and its mean, standard deviation and vocabulary, from `folder`.

        Raises:
            ValueError: it is damaged, does not say how images are prepared, or is no image encoder of square patches.
        """
        from transformers import AutoModel

        self._mean_std = _mean_and_std(folder)
        with _reader_errors_as_sentences(str(folder)), torch.random.fork_rng(devices=()):
            torch.manual_seed(0)  # weights that the folder lacks, such as a pooler, are then equal in every process
            self.network: Any = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
        config = getattr(self.network.config, "vision_config", self.network.config)
        if not all(isinstance(getattr(config, name, None), int) for name in ("patch_size", "image_size")):
            raise ValueError(f"MODEL ({folder}) is a {config.model_type}, which has no square patches and images")
        self.patch_size_px = config.patch_size
        self.image_size_px = image_size_px or config.image_size
        self._has_text = hasattr(self.network, "get_image_features")
        self._tokenizer = _tokenizer(folder) if self._has_text else None
        self._prefix_tokens = self._count_prefix_tokens()
        self.embeddings = ("pooled",) if self._has_text or not self._prefix_tokens else ("cls",)
        self.text_embeddings = self.embeddings if self._tokenizer else ()
        self.preparation = json.dumps(self._mean_std).encode() + _vocabulary(folder)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return (self.network,)

    @torch.inference_mode()
    def _count_prefix_tokens(self) -> int:
        tokens_BTD = self._outputs(torch.zeros(1, 3, self.image_size_px, self.image_size_px)).last_hidden_state
        return tokens_BTD.shape[1] - (self.image_size_px // self.patch_size_px) ** 2

    def _outputs(self, images_BCHW: Tensor, **options: Any) -> Any:
        if self._has_text:
            return self.network.get_image_features(images_BCHW, interpolate_pos_encoding=True, **options)
        return self.network(images_BCHW, **options)

    @torch.inference_mode()
    def features(self, images_BCHW: Tensor) -> Features:
        return self._features(self._outputs(standardised(images_BCHW.to(device_of(self.network)), *self._mean_std)))

    def _features(self, outputs: Any) -> Features:
        tokens_BTD, name = outputs.last_hidden_state, self.embeddings[0]
        embedding_BE = tokens_BTD[:, 0] if name == "cls" else outputs.pooler_output
        return Features(tokens_BTD[:, self._prefix_tokens :], {name: embedding_BE})

    @torch.inference_mode()
    def features_with_layers(self, images_BCHW: Tensor) -> tuple[Features, list[Tensor]]:
        images_BCHW = standardised(images_BCHW.to(device_of(self.network)), *self._mean_std)
        outputs = self._outputs(images_BCHW, output_hidden_states=True)
        _, *hidden = outputs.hidden_states
        return self._features(outputs), [hidden[place][:, self._prefix_tokens :] for place in quarters(len(hidden))]

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        assert self._tokenizer is not None
        most = self.network.config.text_config.max_position_embeddings
        parts = []
        for first in range(0, len(texts), TEXTS_AT_ONCE):
            some = list(texts[first : first + TEXTS_AT_ONCE])
            # SigLIP was trained on texts padded to full length, without a mask; its tokenizer gives no mask
            inputs = self._tokenizer(some, padding="max_length", truncation=True, max_length=most, return_tensors="pt")
            outputs = self.network.get_text_features(**inputs.to(device_of(self.network)))
            parts.append(outputs.pooler_output.float().cpu())
        return F.normalize(torch.cat(parts), dim=-1)


def standardised(images_BCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(image - mean) / std of each channel."""
    mean_C11, std_C11 = (torch.tensor(value, device=images_BCHW.device)[:, None, None] for value in (mean, std))
    return (images_BCHW - mean_C11) / std_C11


def _mean_and_std(folder: Path) -> tuple[list[float], list[float]]:
    for name in _PROCESSOR_FILES:
        if (folder / name).is_file():
            tree: Mapping[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
            tree = tree.get("image_processor", tree)
            if not tree.get("do_normalize", True):
                return [0.0] * 3, [1.0] * 3
            if "image_mean" in tree and "image_std" in tree:
                return tree["image_mean"], tree["image_std"]
    raise ValueError(f"MODEL ({folder}): image_mean and image_std must be in one of {', '.join(_PROCESSOR_FILES)}")


def _tokenizer(folder: Path) -> Any:
    """The folder's tokenizer; None if it has no vocabulary."""
    from transformers import AutoTokenizer

    has_vocabulary = any((folder / name).is_file() for name in _VOCABULARIES)
    if not has_vocabulary:
        return None
    with _reader_errors_as_sentences(str(folder)):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _vocabulary(folder: Path) -> bytes:
    """Contents of the folder's tokenizer files."""
    paths = (folder / name for name in (*_VOCABULARIES, "merges.txt", "tokenizer_config.json"))
    return b"".join(path.read_bytes() for path in paths if path.is_file())
