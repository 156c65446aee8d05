"""What runs see in the same images at each of their checkpoints: patch features as colours, and what they find.

B images, H x W patches, D channels, S side of a run's images.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from tips_ray import storage
from tips_ray.config.evaluation import trained_tokens
from tips_ray.config.run import DataConfig
from tips_ray.data.decode import BadImage, decode, squashed
from tips_ray.evaluation.encoders import Encoder
from tips_ray.evaluation.load_encoder import load_encoder
from tips_ray.report.pca import pca_rgb
from tips_ray.runs.checkpoint import checkpoints_of, list_checkpoints
from tips_ray.runs.run import run_at
from tips_ray.scenes import render_scene
from tuning.comparison.run import ComparedRun
from tuning.comparison.slider import FOUND, MAPS, Look, Looks, Pool

SCENES = "scenes"
"""Stands for rendered scenes instead of files."""
SCENES_SEED = 6
"""Seed of the scenes: of the test images of evaluations."""
POOL = 64
"""Images among which a query finds its nearest."""
MOST_RUNS, MOST_STEPS = 8, 6
SIDE_PX = 224


def looks(runs: Sequence[ComparedRun], place: str) -> Looks:
    """Load checkpoints of the runs, evenly spaced, and look at the images.

    Args:
        runs: with their run folders, local or s3://; the first ones are shown.
        place: images, a folder or pattern, local or s3://; or `scenes`.

    Raises:
        ValueError: there are fewer than two images, or no run has a checkpoint.
    """
    pool, shown, left_out = _pool(place), list[tuple[ComparedRun, list[Look]]](), list[str]()
    for run in runs:
        if len(shown) == MOST_RUNS:
            left_out.append(f"{run.label}: only {MOST_RUNS} runs are shown in pictures")
            continue
        try:
            shown.append((run, _looks_of(run, pool)))
        except (ValueError, storage.StorageError) as error:
            left_out.append(f"{run.label} is in no picture: {error}")
    if not shown:
        raise ValueError(f"--images ({place}): no run can be shown; {left_out[0]}")
    return Looks(pool, shown, left_out)


def _pool(place: str) -> Pool:
    if place == SCENES:
        scenes = [render_scene(SCENES_SEED, number, SIDE_PX) for number in range(POOL)]
        return Pool([scene.image_HWC for scene in scenes], [scene.synthetic_caption for scene in scenes])
    images, limits, bad = [], DataConfig.model_fields, 0
    for file in storage.list_files(place):
        try:
            content = storage.read_bytes(file.uri)
            most = limits["max_image_bytes"].default, limits["max_image_pixels"].default
            images.append(decode(content, *most, SIDE_PX))
        except BadImage:
            bad += 1
        if len(images) == POOL or bad == 10 * POOL:
            break
    if len(images) < 2:
        raise ValueError(f"--images ({place}): {len(images)} of its first {bad + len(images)} files are images, at "
                         "least two are needed")  # fmt: skip
    return Pool(images, [])


def _looks_of(run: ComparedRun, pool: Pool) -> list[Look]:
    """
    Raises:
        ValueError: the run has no folder or no checkpoint.
        StorageError: a checkpoint cannot be read.
    """
    if not run.folder:
        raise ValueError("MLflow does not know its run folder")
    checkpoints = list_checkpoints(checkpoints_of(run.folder))
    if not checkpoints:
        raise ValueError(f"{run.folder} has no checkpoint")
    places = np.linspace(0, len(checkpoints) - 1, min(MOST_STEPS, len(checkpoints))).round().astype(int)
    token = trained_tokens(run_at(run.folder).config.objective)["synthetic"]
    steps, features, found = [], [], []
    for checkpoint in (checkpoints[place] for place in places):
        encoder = load_encoder(checkpoint.uri)
        patches_BHWD, embeddings = _features(encoder, pool)
        steps.append(checkpoint.step)
        features.append(patches_BHWD)
        found.append(_found(encoder, pool, embeddings, token))
    colours = pca_rgb(np.concatenate(features))  # one PCA, so that a colour means the same at all steps
    maps = [list(part) for part in np.split(colours, len(features))]
    return [Look(*one) for one in zip(steps, maps, found, strict=True)]


def _features(encoder: Encoder, pool: Pool) -> tuple[np.ndarray, Mapping[str, torch.Tensor]]:
    """Patch features [B, H, W, D] of the first images, and embeddings of all."""
    side = encoder.image_size_px
    pixels_BSS3 = torch.from_numpy(np.stack([squashed(image, side) for image in pool.images]))
    features = encoder.features(pixels_BSS3.permute(0, 3, 1, 2).float() / 255)
    patches_BLD = features.patches_BLD[:MAPS].float().cpu()
    return patches_BLD.unflatten(1, (encoder.grid, encoder.grid)).numpy(), features.embeddings


def _found(encoder: Encoder, pool: Pool, embeddings: Mapping[str, torch.Tensor], token: str) -> list[list[int]]:
    """Images nearest to each query by cosine; an image that is the query is not among them."""
    images_BE = F.normalize(embeddings[token].float().cpu(), dim=-1)
    if pool.captions and encoder.text_embeddings:
        nearest_QB = encoder.texts(pool.captions[: pool.queries]) @ images_BE.T
    else:
        nearest_QB = images_BE[: pool.queries] @ images_BE.T
        nearest_QB.fill_diagonal_(-torch.inf)
    return nearest_QB.topk(min(FOUND, len(pool.images) - 1), dim=1).indices.tolist()
