"""Rendered scenes as a data set: exact labels, depth and normals, both kinds of captions, and image categories."""

import numpy as np
import torch

from tips_ray.config.evaluation_data import ScenesConfig
from tips_ray.evaluation.datasets.examples import Dataset, Examples
from tips_ray.scenes import CLASS_NAMES, SHAPES, Scene, render_scene

TRAIN_SEED, TEST_SEED = 5, 6
"""Seeds of worlds that neither the demo nor its captioner learns from."""


def rendered(config: ScenesConfig, size_px: int, with_train: bool) -> Dataset:
    """Render the data set; an image's category is the shape of the object that fills most of it."""
    train = _examples(TRAIN_SEED, config.train, size_px) if with_train else None
    test = _examples(TEST_SEED, config.test, size_px)
    return Dataset(test, train, CLASS_NAMES, None, SHAPES)


def _examples(seed: int, count: int, size_px: int) -> Examples:
    scenes = [render_scene(seed, index, size_px) for index in range(count)]
    return Examples(
        torch.from_numpy(np.stack([scene.image_HWC for scene in scenes])),
        [torch.from_numpy(scene.labels_HW) for scene in scenes],
        [torch.from_numpy(scene.depth_HW) for scene in scenes],
        [torch.from_numpy(scene.normals_HWC).permute(2, 0, 1).contiguous() for scene in scenes],
        torch.tensor([_category(scene) for scene in scenes]),
        {
            "web": [[scene.web_caption] for scene in scenes],
            "synthetic": [[scene.synthetic_caption] for scene in scenes],
        },
    )


def _category(scene: Scene) -> int:
    largest = max(scene.objects, key=lambda thing: thing.image_share)
    return SHAPES.index(largest.shape)
