"""Pictures of the same test images at each evaluated checkpoint: what patches, CLS tokens and captions have learned.

B images, L patches on a square grid, D width, E width of embeddings, S side of an image.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from tips_ray.evaluation.datasets import Dataset
from tips_ray.evaluation.encoders import TipsEncoder, in_unit_range
from tips_ray.evaluation.pictures import FOUND, MISSED, PANEL_PX, grid
from tips_ray.report.pca import pca_rgb

POOL = 64
"""Captions among which an image finds its nearest: those of the first images."""
SHOWN_CAPTIONS, LINE_PX, TEXT_WIDTH_PX, CHARACTERS = 3, 18, 760, 120
HOT = np.array((255.0, 80.0, 0.0))
"""Colour of the patches that a CLS token attends to."""


def checkpoint_pictures(
    encoder: TipsEncoder, dataset: Dataset, count: int, tokens: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """Pictures by name, uint8 [H, W, 3].

    `features`: the first three principal components of the patches beside each image. `attention`: what CLS-web and
    CLS-synthetic attend to. `captions`: the captions nearest to each image, where the data have captions.

    Args:
        encoder: on its device.
        dataset: its first test images are shown.
        count: number of images.
        tokens: CLS token that is trained on each kind of caption, see `trained_tokens`.
    """
    images_BSS3 = dataset.test.images_NSS3[:count]
    pixels_BCHW = in_unit_range(images_BSS3)
    images, side = list(images_BSS3.numpy()), encoder.grid
    patches_BLD = encoder.features(pixels_BCHW).patches_BLD.float().cpu()
    colours = pca_rgb(patches_BLD.unflatten(1, (side, side)).numpy())
    heat_B2L = encoder.attention(pixels_BCHW).float().cpu()
    attended = [[_heated(image, one_L) for one_L in pair] for image, pair in zip(images, heat_B2L, strict=True)]
    found = {
        "features": _side_by_side([[image, colour] for image, colour in zip(images, colours, strict=True)]),
        "attention": _side_by_side([[image, *pair] for image, pair in zip(images, attended, strict=True)]),
    }
    if dataset.test.captions and encoder.text_embeddings:
        found["captions"] = _caption_rows(encoder, dataset, images, tokens)
    return found


def _side_by_side(rows: list[list[np.ndarray]]) -> np.ndarray:
    """Panels of two images in a row."""
    return grid([[panel for row in rows[first : first + 2] for panel in row] for first in range(0, len(rows), 2)])


def _heated(image_SS3: np.ndarray, weights_L: Tensor) -> np.ndarray:
    """The image, darker where little attention falls and coloured where most of it does."""
    size, side = image_SS3.shape[0], int(len(weights_L) ** 0.5)
    share_L = weights_L / weights_L.max().clamp(min=1e-12)
    share_SS1 = F.interpolate(share_L.view(1, 1, side, side), (size, size), mode="bilinear")[0, 0].numpy()[..., None]
    return (image_SS3 * (0.3 + 0.3 * share_SS1) + 0.4 * share_SS1 * HOT).clip(0, 255).astype(np.uint8)


def _caption_rows(
    encoder: TipsEncoder, dataset: Dataset, images: Sequence[np.ndarray], tokens: Mapping[str, str]
) -> np.ndarray:
    """Rows of an image and its nearest captions; its own are green, those of other images red."""
    kind = "synthetic" if "synthetic" in dataset.test.captions else next(iter(dataset.test.captions))
    captions = [texts[0] for texts in dataset.test.captions[kind][:POOL]]
    embeddings = encoder.features(in_unit_range(dataset.test.images_NSS3[: len(images)])).embeddings
    images_BE = F.normalize(embeddings[tokens.get(kind, tokens["synthetic"])].float().cpu(), dim=-1)
    nearest_BK = (images_BE @ encoder.texts(captions).T).topk(min(SHOWN_CAPTIONS, len(captions)), dim=1).indices
    step = PANEL_PX + 4
    canvas = Image.new("RGB", (step + TEXT_WIDTH_PX, step * len(images)), "white")
    for row, (image, nearest) in enumerate(zip(images, nearest_BK.tolist(), strict=True)):
        canvas.paste(Image.fromarray(image).resize((PANEL_PX, PANEL_PX)), (0, row * step))
        for line, place in enumerate(nearest):
            is_own = captions[place] == captions[row]
            _write(canvas, (step + 8, row * step + 8 + line * LINE_PX), captions[place], FOUND if is_own else MISSED)
    return np.array(canvas)


def _write(canvas: Image.Image, at: tuple[int, int], text: str, colour: tuple[int, int, int]) -> None:
    shown = text if len(text) <= CHARACTERS else f"{text[: CHARACTERS - 1]}..."
    ImageDraw.Draw(canvas).text(at, shown.encode("latin-1", "replace").decode("latin-1"), fill=colour)
