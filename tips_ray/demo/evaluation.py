"""Scores and pictures of the demo's trained run on unseen scenes. N scenes, D width."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tips_ray import storage
from tips_ray.config import RunConfig
from tips_ray.config.evaluation import SuiteConfig
from tips_ray.data.captions.join import captions_folder, read_captions, with_captions
from tips_ray.data.decode import decode
from tips_ray.data.index_folder import index_of
from tips_ray.evaluation.datasets import Dataset, load_dataset
from tips_ray.evaluation.dense import with_cls
from tips_ray.evaluation.depth import linear_depth_rmse
from tips_ray.evaluation.encoders import Features, TipsEncoder
from tips_ray.evaluation.features import FrozenData, encoded, encoding_here
from tips_ray.evaluation.probe import without_rates
from tips_ray.evaluation.retrieval import retrieval
from tips_ray.evaluation.tasks import TaskResult, task_result
from tips_ray.launch.captions import store_of
from tips_ray.models import Tokenizer, load_tokenizer
from tips_ray.report import CaptionedImage, ImageQuery, PatchFeatures, ProbeScore, TextQuery
from tips_ray.runs.checkpoint import checkpoints_of, from_newest
from tips_ray.scenes import Scene, render_scene
from tips_ray.train.checkpointing import load_checkpoint
from tips_ray.train.state import TrainState, new_state

TEST_SEED, TEST_SCENES, PROBE_SCENES = 3, 256, 512
"""Seed of the unseen scenes; number of them that are scored; number of training scenes for the depth probe."""
IMAGE_PX = 112
SHOWN, ROWS, NEAREST = 12, 4, 5
"""Images in the gallery, queries of each kind, and answers to each."""


@dataclass(frozen=True)
class Found:
    """Scores for a file, fields of the report, and one line for the terminal."""

    scores: dict[str, dict[str, float]]
    parts: dict[str, Any]
    line: str


@dataclass(frozen=True)
class _Scored:
    features: Features
    text_ND: Tensor
    scores: dict[str, float]


class _ShownTasks(NamedTuple):
    """Scores of both encoders, and pictures of the trained one."""

    probes: list[ProbeScore]
    pictures: dict[str, np.ndarray]


def evaluate(config: RunConfig, folder: str, suite: SuiteConfig, train_seed: int) -> Found:
    """Score the teacher on unseen scenes, beside the same encoder with random weights.

    Args:
        config: config of the run.
        folder: folder of the run, which has a checkpoint.
        suite: further tasks to score; it has one data set.
        train_seed: seed of the scenes that the run was trained on.

    Raises:
        ValueError: there is no complete checkpoint.
    """
    test = [render_scene(TEST_SEED, index, IMAGE_PX) for index in range(TEST_SCENES)]
    train = [render_scene(train_seed, index, IMAGE_PX) for index in range(PROBE_SCENES)]
    encoders = _encoders(config, folder)
    before, after = (_score(encoder, test, train) for encoder in encoders)
    scores = {"before": before.scores, "after": after.scores}
    parts, tasks = {"gallery": _gallery(config), **_parts(before, after, test)}, _shown_tasks(*encoders, suite)
    parts |= {"probes": parts["probes"] + tasks.probes, "task_pictures": tasks.pictures}
    return Found(scores, parts, _line(scores))


def _encoders(config: RunConfig, folder: str) -> tuple[TipsEncoder, TipsEncoder]:
    """The encoder with random weights, and the one of the newest checkpoint."""
    before, after = new_state(config), new_state(config)
    if from_newest(checkpoints_of(folder), lambda one: load_checkpoint(after, one) or one) is None:
        raise ValueError(f"{folder} holds no checkpoint that verifies; train first")
    tokenizer = load_tokenizer(config.captions.tokenizer or storage.join(folder, "tokenizer.json"))
    return _encoder(before, tokenizer), _encoder(after, tokenizer)


def _gallery(config: RunConfig) -> list[CaptionedImage]:
    """The first images of the data with the captions that training saw."""
    index = index_of(config.data, storage.join(config.storage, "index"))
    rows, most = index.read(0), (config.data.max_image_bytes, config.data.max_image_pixels)
    if config.captions.source != "column":
        store = store_of(config)
        rows = with_captions(rows, read_captions(index, [0], store)[0], captions_folder(index, 0, store))
    return [
        CaptionedImage(decode(row["image"], *most), row["web_caption"], " | ".join(row["synthetic_captions"]))
        for row in rows[:SHOWN]
        if not row["error"]
    ]


def _encoder(state: TrainState, tokenizer: Tokenizer) -> TipsEncoder:
    """The model with the teacher's image encoder, as an export has it, at the size of the scenes."""
    return TipsEncoder(state.teacher.image or state.student.image, state.student.text, tokenizer, IMAGE_PX)


def _score(encoder: TipsEncoder, test: list[Scene], train: list[Scene]) -> _Scored:
    features, probe = (encoded(encoding_here(encoder), _pixels(scenes)).features for scenes in (test, train))
    synthetic, web = (
        encoder.texts(captions)
        for captions in ([scene.synthetic_caption for scene in test], [scene.web_caption for scene in test])
    )
    train_NLD, test_NLD = (with_cls(found.patches_BLD, found.embeddings["cls_web"]) for found in (probe, features))
    depth = linear_depth_rmse(train_NLD, _depth(train), test_NLD, _depth(test))
    by_cls = {
        "synthetic": retrieval(features.embeddings["cls_synthetic"], synthetic),
        "web": retrieval(features.embeddings["cls_web"], web),
    }
    recalls = {f"{cls}/{name}": value for cls, found in by_cls.items() for name, value in found.items()}
    return _Scored(features, synthetic, {**recalls, "depth_rmse_m": depth})


def _parts(before: _Scored, after: _Scored, test: list[Scene]) -> dict[str, Any]:
    shown = test[:SHOWN]
    maps = after.features.patches_BLD[:SHOWN]
    side = round(maps.shape[1] ** 0.5)
    names = {"depth_rmse_m": "depth RMSE, m (linear probe)"}
    probes = [
        ProbeScore(names.get(name, name.replace("_", " ")), before.scores[name], value, not name.startswith("depth"))
        for name, value in after.scores.items()
    ]
    similarity_NN = after.text_ND @ F.normalize(after.features.embeddings["cls_synthetic"], dim=-1).T
    return {
        "features": PatchFeatures(
            [scene.image_HWC for scene in shown], teacher_BHWD=maps.unflatten(1, (side, side)).numpy()
        ),
        "text_queries": [_text_query(similarity_NN, test, row) for row in range(ROWS)],
        "image_queries": [_image_query(similarity_NN.T, test, row) for row in range(ROWS)],
        "probes": probes,
    }


def _text_query(similarity_NN: Tensor, test: list[Scene], row: int) -> TextQuery:
    nearest = similarity_NN[row].topk(NEAREST).indices.tolist()
    return TextQuery(
        test[row].synthetic_caption, [test[place].image_HWC for place in nearest], [place == row for place in nearest]
    )


def _image_query(similarity_NN: Tensor, test: list[Scene], row: int) -> ImageQuery:
    nearest = similarity_NN[row].topk(NEAREST).indices.tolist()
    captions = [test[place].synthetic_caption for place in nearest]
    return ImageQuery(test[row].image_HWC, captions, [place == row for place in nearest])


def _shown_tasks(before: TipsEncoder, after: TipsEncoder, suite: SuiteConfig) -> _ShownTasks:
    """Score all tasks of the suite on scenes that neither training nor the captioner has seen."""
    (config,) = suite.data.values()
    dataset = load_dataset(config, after.image_size_px)
    outcomes = [_outcomes(encoder, dataset, suite) for encoder in (before, after)]
    probes = [
        ProbeScore(f"{task}: {score}".replace("_", " "), outcomes[0][task].scores[score], value, "rmse" not in score)
        for task, outcome in outcomes[1].items()
        for score, value in without_rates(outcome.scores).items()
    ]
    pictures = {
        f"{task}: image, truth, prediction".replace("_", " "): picture
        for task, outcome in outcomes[1].items()
        for picture in outcome.pictures.values()
    }
    return _ShownTasks(probes, pictures)


def _outcomes(encoder: TipsEncoder, dataset: Dataset, suite: SuiteConfig) -> dict[str, TaskResult]:
    data = FrozenData(encoder, dataset, encoding_here(encoder, suite.batch_images))
    return {name: task_result(task, data, suite.seed) for name, task in suite.tasks.items()}


def _line(scores: dict[str, dict[str, float]]) -> str:
    before, after = scores["before"], scores["after"]
    recall, depth = "synthetic/text_to_image_recall_at_1", "depth_rmse_m"
    return (
        f"retrieval R@1 {after[recall]:.1%} (chance {1 / TEST_SCENES:.1%}), depth RMSE {after[depth]:.2f} m "
        f"(random weights {before[depth]:.2f} m) on {TEST_SCENES} unseen scenes"
    )


def _pixels(scenes: list[Scene]) -> Tensor:
    return torch.from_numpy(np.stack([scene.image_HWC for scene in scenes]))


def _depth(scenes: list[Scene]) -> Tensor:
    return torch.from_numpy(np.stack([scene.depth_HW for scene in scenes]))
