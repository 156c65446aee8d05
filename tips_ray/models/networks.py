"""The two networks of TIPS pretraining. B images, V local crops, A synthetic captions, L patches, M scored patches,
D width, K prototypes.

The student is one module with one `forward`, so that FSDP gathers each of its blocks once for all crops of a step.
"""

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tips_ray import keyed
from tips_ray.batch import Batch
from tips_ray.config import ObjectiveConfig, PrototypeHeadConfig
from tips_ray.models.heads import PrototypeHead, PrototypeScores
from tips_ray.models.text import PADDING_ID, TextEncoder
from tips_ray.models.vision import ImageEncoder, ImageFeatures, View
from tips_ray.precision import at_least_fp32

Scores = PrototypeScores | None
_CLEAN, _MASKED, _FIRST_LOCAL, _CAPTION = 0, 1, 2, -1  # salts of the keyed randomness of each pass


class Embeddings(NamedTuple):
    """Unit-norm embeddings for the contrastive losses, in fp32 or better whatever the network computes in."""

    cls_web_BD: Tensor
    cls_synthetic_BD: Tensor
    web_caption_BD: Tensor
    synthetic_caption_BD: Tensor


class Embedded(NamedTuple):
    """What the first pass of a step with several micro-batches finds."""

    embeddings: Embeddings
    log_temperature: Tensor
    """Logarithm of the contrastive temperature, [1]."""
    view: ImageFeatures | None
    """Features of the view of the contrastive losses, where another part of the objective needs them as well."""


class StudentOutputs(NamedTuple):
    embeddings: Embeddings
    log_temperature: Tensor
    """Logarithm of the contrastive temperature, [1], in the type of the weights."""
    crop_scores: PrototypeScores | None
    """Scores of CLS-web of each local crop, [V * B, K], crop after crop; None without distillation."""
    patch_scores: PrototypeScores | None
    """Scores of the scored patches; None without masked image modelling."""
    clean: ImageFeatures | None
    """Features of the unmasked global view without gradient, for a teacher without an encoder."""


class TeacherScores(NamedTuple):
    cls: PrototypeScores | None
    """Of B images."""
    patch: PrototypeScores | None
    """Of M scored patches."""


class Heads(nn.Module):
    """Two prototype heads: one for CLS-web, one for patches."""

    def __init__(self, width: int, config: PrototypeHeadConfig) -> None:
        super().__init__()
        self.distillation = PrototypeHead(width, config, has_fp32_scores=True)
        self.masked_image = PrototypeHead(width, config)


class Temperature(nn.Module):
    """Contrastive temperature; a module of its own, so that FSDP keeps it in fp32: bf16 knows it to 3 % only."""

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.initial = initial
        # One element, because FSDP shards no 0-dimensional parameter.
        self.log_temperature = nn.Parameter(torch.empty(1))
        self.reset_own_parameters()

    def reset_own_parameters(self) -> None:
        nn.init.constant_(self.log_temperature, math.log(self.initial))

    def forward(self) -> Tensor:
        """Its logarithm, [1]: a copy made inside forward, where FSDP holds the whole parameter."""
        return self.log_temperature * 1


class Student(nn.Module):
    """Image encoder, text encoder, prototype heads and contrastive temperature: everything with a gradient."""

    stays_gathered = False
    """Whether its weights, cut over ranks, stay gathered until the last backward of a step."""

    def __init__(self, image: ImageEncoder, text: TextEncoder, heads: Heads, config: ObjectiveConfig) -> None:
        super().__init__()
        self.temperature = Temperature(config.initial_temperature)
        self.image, self.text, self.heads, self.config = image, text, heads, config

    @property
    def log_temperature(self) -> nn.Parameter:
        """Logarithm of the contrastive temperature, [1]."""
        return self.temperature.log_temperature

    def forward(self, batch: Batch) -> StudentOutputs:
        """Run all passes that the objective needs, packed into one."""
        views = self._views(batch)
        features = dict(zip(views, self.image.forward_views(list(views.values())), strict=True))
        return StudentOutputs(
            self._embeddings(features[self.config.contrastive_view], batch),
            self.temperature(),
            *self._others(features, batch),
        )

    def embed(self, batch: Batch) -> Embedded:
        """The first two outputs of `forward`, for the first pass of a step with several micro-batches."""
        view = self._global_view(self.config.contrastive_view, batch)
        (features,) = self.image.forward_views([view])
        return Embedded(self._embeddings(features, batch), self.temperature(), self._used_again(features))

    def complete(self, batch: Batch, view: ImageFeatures | None) -> tuple[Scores, Scores, ImageFeatures | None]:
        """The other outputs of `forward`, for a batch that `embed` has seen.

        Args:
            batch: the same as that of `embed`.
            view: from `embed`, with its graph.
        """
        views = self._views(batch)
        views.pop(self.config.contrastive_view, None)
        passed = self.image.forward_views(list(views.values())) if views else []
        features = dict(zip(views, passed, strict=True))
        return self._others(features | ({self.config.contrastive_view: view} if view else {}), batch)

    def _views(self, batch: Batch) -> dict[str, View]:
        config, views = self.config, {}
        if config.contrastive_view == "clean":
            views["clean"] = self._global_view("clean", batch)
        if config.beta and config.teacher != "frozen":
            views["masked"] = self._global_view("masked", batch)
        if config.alpha:
            views["local"] = _local_view(batch)
        return views

    def _global_view(self, name: str, batch: Batch) -> View:
        if name == "masked":
            return View(batch.global_crops_BCHW, batch.patch_mask_BL, keyed.derived(batch.key_B, _MASKED))
        if self.config.teacher == "ema_heads":
            return View(batch.global_crops_BCHW)  # it is the teacher's as well, and a teacher drops nothing
        return View(batch.global_crops_BCHW, None, keyed.derived(batch.key_B, _CLEAN))

    def _embeddings(self, features: ImageFeatures, batch: Batch) -> Embeddings:
        captions = torch.cat([batch.web_ids_BT, drawn_captions(batch.synthetic_ids_BAT, batch.key_B)])
        pooled = (
            features.cls_web_BD,
            features.cls_synthetic_BD,
            *self.text(captions, short_texts_S=batch.short_texts_S).chunk(2),
        )
        return Embeddings(*(F.normalize(at_least_fp32(embedding_BD), dim=-1) for embedding_BD in pooled))

    def _used_again(self, view: ImageFeatures) -> ImageFeatures | None:
        """Features of the contrastive view, detached where no gradient comes back, None where nothing else needs it."""
        if self.config.teacher == "ema_heads":
            return ImageFeatures(*(feature.detach() for feature in view))
        scored = "clean" if self.config.teacher == "frozen" else "masked"
        return view if self.config.beta and scored == self.config.contrastive_view else None

    def _others(self, features: dict[str, ImageFeatures], batch: Batch) -> tuple[Scores, Scores, ImageFeatures | None]:
        crop_scores = self.heads.distillation(features["local"].cls_web_BD) if "local" in features else None
        return crop_scores, self._patch_scores(features, batch), self._clean(features)

    def _clean(self, features: dict[str, ImageFeatures]) -> ImageFeatures | None:
        if self.config.teacher != "ema_heads":
            return None
        return ImageFeatures(*(feature.detach().clone() for feature in features["clean"]))

    def _patch_scores(self, features: dict[str, ImageFeatures], batch: Batch) -> PrototypeScores | None:
        if not self.config.beta:
            return None
        view = features["clean" if self.config.teacher == "frozen" else "masked"]
        return self.heads.masked_image(view.patches_BLD.flatten(0, 1)[scored_patches(batch, self.config)])


class Teacher(nn.Module):
    """Encoder and heads that the student learns to match; never has a gradient.

    `image` is None if the student's clean pass serves as the teacher's encoder (TIPSv2's head-only EMA).
    """

    def __init__(self, image: ImageEncoder | None, heads: Heads, config: ObjectiveConfig) -> None:
        super().__init__()
        self.image, self.heads, self.config = image, heads, config
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, because a teacher drops nothing."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, batch: Batch, clean: ImageFeatures | None) -> TeacherScores:
        """Scores of the global view; `clean`, the student's features, is used only if the teacher has no encoder."""
        if not self.config.alpha and not self.config.beta:
            return TeacherScores(None, None)
        features = clean if self.image is None else self.image(batch.global_crops_BCHW)
        assert features is not None
        patches_PD = features.patches_BLD.flatten(0, 1)
        return TeacherScores(
            self.heads.distillation(features.cls_web_BD) if self.config.alpha else None,
            self.heads.masked_image(patches_PD[scored_patches(batch, self.config)]) if self.config.beta else None,
        )


def scored_patches(batch: Batch, config: ObjectiveConfig) -> Tensor:
    """Positions [M] in [B * L] of the patches that go through the masked-image heads."""
    if config.visible_weight or config.teacher == "frozen":
        return torch.arange(batch.patch_mask_BL.numel(), device=batch.patch_mask_BL.device)
    return batch.masked_index_M


def drawn_captions(synthetic_ids_BAT: Tensor, key_B: Tensor) -> Tensor:
    """One synthetic caption of each image, drawn uniformly, [B, T] (TIPSv2's caption alternation).

    Absent captions are rows of padding after the present ones.
    """
    present_B = (synthetic_ids_BAT != PADDING_ID).any(dim=2).sum(dim=1).clamp(min=1)
    choice_B = (keyed.uniform(key_B, _CAPTION) * present_B).long()
    return synthetic_ids_BAT[torch.arange(len(key_B), device=key_B.device), choice_B]


def _local_view(batch: Batch) -> View:
    crops = batch.local_crops_VBCHW
    keys = [keyed.derived(batch.key_B, _FIRST_LOCAL + crop) for crop in range(len(crops))]
    return View(crops.flatten(0, 1), None, torch.cat(keys))
