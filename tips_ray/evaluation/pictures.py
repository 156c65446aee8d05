"""Pictures of tasks: rows of panels as uint8 RGB. H W pixels, S side of an image."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

PANEL_PX, GAP_PX, TEXT_PX = 160, 4, 18
OPACITY = 0.6
FOUND, MISSED = (30, 160, 60), (200, 60, 50)


def grid(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Panels [H, W, 3] in rows on white, all squashed to one size."""
    step = PANEL_PX + GAP_PX
    canvas = Image.new("RGB", (step * max(map(len, rows)), step * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, panel_HWC in enumerate(row):
            canvas.paste(Image.fromarray(panel_HWC).resize((PANEL_PX, PANEL_PX)), (x * step, y * step))
    return np.array(canvas)


def overlay(image_SS3: Tensor, labels_HW: Tensor, num_classes: int) -> np.ndarray:
    """The image blended with one colour per class; pixels with other labels show only the image."""
    size = (labels_HW.shape[1], labels_HW.shape[0])
    image_HW3 = np.array(Image.fromarray(image_SS3.numpy()).resize(size)).astype(np.float64)
    labels_HW = labels_HW.cpu()
    known_HW1 = ((labels_HW >= 0) & (labels_HW < num_classes)).numpy()[..., None]
    colours_HW3 = _palette(num_classes)[labels_HW.clamp(0, num_classes - 1).numpy()]
    mixed = (1 - OPACITY) * image_HW3 + OPACITY * colours_HW3
    return np.where(known_HW1, mixed, image_HW3).round().astype(np.uint8)


def depth_panel(depth_m: Tensor, nearest_m: float, farthest_m: float) -> np.ndarray:
    """Depth on a logarithmic scale: near is bright, far is dark; white where there is no depth."""
    low, high = np.log(nearest_m), np.log(max(farthest_m, 1.001 * nearest_m))
    share = 1 - (depth_m.clamp(min=nearest_m, max=farthest_m).log().numpy() - low) / (high - low)
    colours = np.stack([255 * share, 40 + 180 * share, 110 + 40 * share], axis=-1)
    return np.where((depth_m > 0).numpy()[..., None], colours, 255.0).clip(0, 255).round().astype(np.uint8)


def normals_panel(normals_3HW: Tensor) -> np.ndarray:
    """Normals as colours: x, y, z in [-1, 1] as red, green, blue; white where there is none."""
    colours = (255 * (normals_3HW.permute(1, 2, 0).numpy() + 1) / 2).round()
    return np.where(normals_3HW.any(dim=0).numpy()[..., None], colours, 255.0).clip(0, 255).astype(np.uint8)


def found_images(text: str, images_kSS3: Tensor, are_right: Sequence[bool]) -> np.ndarray:
    """A query and the images found for it, best first; a green frame is right, a red one wrong."""
    panels = [_framed(image, is_right) for image, is_right in zip(images_kSS3, are_right, strict=True)]
    row = Image.fromarray(grid([panels]))
    canvas = Image.new("RGB", (row.width, row.height + TEXT_PX), "white")
    canvas.paste(row, (0, TEXT_PX))
    ImageDraw.Draw(canvas).text((2, 3), text.encode("latin-1", "replace").decode("latin-1"), fill="black")
    return np.array(canvas)


def _framed(image_SS3: Tensor, is_right: bool) -> np.ndarray:
    panel = np.array(Image.fromarray(image_SS3.numpy()).resize((PANEL_PX, PANEL_PX)))
    panel[:4] = panel[-4:] = panel[:, :4] = panel[:, -4:] = FOUND if is_right else MISSED
    return panel


def _palette(num_classes: int) -> np.ndarray:
    """Colours whose hues are far apart for neighbouring classes, float64 [C, 3]."""
    hue = (torch.arange(num_classes) * 0.618034) % 1
    phases = hue[:, None] + torch.tensor([0, 1 / 3, 2 / 3])
    return (127.5 * (1 + (2 * torch.pi * phases).cos())).double().numpy()
