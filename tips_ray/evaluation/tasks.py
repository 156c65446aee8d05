"""Runs each kind of task on a frozen encoder and a data set. N images, E width of embeddings."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from tips_ray.config.evaluation import (
    ClassificationConfig,
    DepthConfig,
    DptDepthConfig,
    InstanceRetrievalConfig,
    NeighboursConfig,
    NormalsConfig,
    RetrievalConfig,
    SegmentationConfig,
    TaskConfig,
    ZeroShotClassificationConfig,
    ZeroShotSegmentationConfig,
)
from tips_ray.evaluation import pictures
from tips_ray.evaluation.classification import LabelledEmbeddings, knn_accuracy, linear_accuracy
from tips_ray.evaluation.datasets import Dataset, Examples
from tips_ray.evaluation.dense import DenseExamples
from tips_ray.evaluation.depth_bins import Depth, dpt_depth, judged_depth, linear_depth
from tips_ray.evaluation.dpt import LayerExamples
from tips_ray.evaluation.encoders import Features
from tips_ray.evaluation.features import FrozenData
from tips_ray.evaluation.instance_retrieval import instance_retrieval
from tips_ray.evaluation.normals import dpt_normals
from tips_ray.evaluation.probe import without_rates
from tips_ray.evaluation.retrieval import retrieval
from tips_ray.evaluation.segmentation import Classes, Segmentation, linear_segmentation
from tips_ray.evaluation.uncertainty import mean_error, miou_error, rmse_error, share_error
from tips_ray.evaluation.zero_shot import class_embeddings, zero_shot_accuracy, zero_shot_segmentation

SHOWN_IMAGES, SHOWN_QUERIES, SHOWN_FOUND = 4, 4, 5
Value = TypeVar("Value")


class TaskSkipped(Exception):
    """The encoder or the data set lacks what the task needs; the message says what."""


@dataclass(frozen=True)
class TaskResult:
    """Scores and pictures of a task."""

    scores: dict[str, float]
    """Scores by name; a score of one embedding has its name in front: `cls_web/accuracy_k10`."""
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    """Pictures by name, uint8 RGB."""
    standard_errors: dict[str, float] = field(default_factory=dict)
    """Standard errors over the test images, for all scores except chosen learning rates; see `uncertainty`."""


def task_result(config: TaskConfig, data: FrozenData, seed: int) -> TaskResult:
    """Run one task.

    Raises:
        TaskSkipped: the encoder reads no texts, or the data set lacks labels, depth, captions or classes.
        ValueError: the data cannot be scored.
    """
    return _TASKS[type(config)](config, data, seed)


def _segmentation(config: SegmentationConfig, data: FrozenData, seed: int) -> TaskResult:
    dataset, classes = data.dataset, _classes(data.dataset)
    train, test = _needed(dataset.train, "images to learn from"), dataset.test
    found = linear_segmentation(
        DenseExamples(data.train.patches_BLD, train.labels),
        DenseExamples(data.test.patches_BLD, test.labels),
        classes,
        config,
        seed,
    )
    return _segmented(found, test, classes)


def _zero_shot_segmentation(config: ZeroShotSegmentationConfig, data: FrozenData, seed: int) -> TaskResult:
    dataset, classes = data.dataset, _classes(data.dataset)
    if not data.encoder.has_text_patches:
        raise TaskSkipped("this model has no patches that meet texts")
    classes_CE = class_embeddings(data.encoder.texts, dataset.class_names, config.templates)
    found = zero_shot_segmentation(data.encoding, dataset.test, classes_CE, classes, config.windows)
    return _segmented(found, dataset.test, classes)


def _depth(config: DepthConfig, data: FrozenData, seed: int) -> TaskResult:
    train, test = _needed(data.dataset.train, "images to learn from"), data.dataset.test
    _needed(train.depth_m and test.depth_m or None, "depth")
    test = replace(test, depth_m=judged_depth(test.depth_m, config))
    name = data.encoder.embeddings[0]  # for TIPS: CLS-web, the first token like other models' CLS

    def dense(found: Features, examples: Examples) -> DenseExamples:
        cls_NE = found.embeddings[name] if config.with_cls else None
        return DenseExamples(found.patches_BLD, examples.depth_m, cls_NE)

    mirrored = dense(data.mirrored_test, test) if config.flip else None
    found = linear_depth(dense(data.train, train), dense(data.test, test), config, seed, mirrored)
    return _depth_outcome(found, test, config.max_depth_m)


def _dpt_depth(config: DptDepthConfig, data: FrozenData, seed: int) -> TaskResult:
    learned, judged = _layer_examples(data, lambda examples: examples.depth_m, "depth")
    judged = judged._replace(targets=judged_depth(judged.targets, config))
    found = dpt_depth(learned, judged, config, seed)
    return _depth_outcome(found, replace(data.dataset.test, depth_m=judged.targets), config.max_depth_m)


def _normals(config: NormalsConfig, data: FrozenData, seed: int) -> TaskResult:
    found = dpt_normals(*_layer_examples(data, lambda examples: examples.normals, "normals"), config, seed)
    errors = {"rmse_degrees": mean_error(found.degrees)}
    return TaskResult(found.scores, {"normals": _normals_rows(data.dataset.test, found.predictions)}, errors)


def _layer_examples(
    data: FrozenData, maps: Callable[[Examples], Sequence[Tensor]], what: str
) -> tuple[LayerExamples, LayerExamples]:
    """Layer features and maps of the training and of the test images."""
    train, test = _needed(data.dataset.train, "images to learn from"), data.dataset.test
    _needed(maps(train) and maps(test) or None, what)
    learned, judged = data.layers
    return LayerExamples(learned, maps(train)), LayerExamples(judged, maps(test))


def _neighbours(config: NeighboursConfig, data: FrozenData, seed: int) -> TaskResult:
    num_classes = len(data.dataset.category_names)
    return _by_embedding(
        ((name, knn_accuracy(train, test, num_classes, config)) for name, train, test in _categorised(data)), data
    )


def _classification(config: ClassificationConfig, data: FrozenData, seed: int) -> TaskResult:
    num_classes = len(data.dataset.category_names)
    return _by_embedding(
        ((name, linear_accuracy(train, test, num_classes, config, seed)) for name, train, test in _categorised(data)),
        data,
    )


def _zero_shot_classification(config: ZeroShotClassificationConfig, data: FrozenData, seed: int) -> TaskResult:
    labels_N = _needed(data.dataset.test.categories_N, "classes of whole images")
    names = _text_embeddings(data)
    classes_CE = class_embeddings(data.encoder.texts, data.dataset.category_names, config.templates)
    return _by_embedding(
        ((name, zero_shot_accuracy(data.test.embeddings[name], classes_CE, labels_N)) for name in names), data
    )


def _retrieval(config: RetrievalConfig, data: FrozenData, seed: int) -> TaskResult:
    test, names = data.dataset.test, _text_embeddings(data)
    if not test.captions:
        raise TaskSkipped("the data set has no captions")
    scores, errors, shown = {}, {}, {}
    for kind, captions in test.captions.items():
        texts = [text for of_image in captions for text in of_image]
        counts = torch.tensor([len(of_image) for of_image in captions])
        image_of_text_M = torch.arange(len(captions)).repeat_interleave(counts)
        text_ME = data.encoder.texts(texts)
        for name in names:
            image_NE = data.test.embeddings[name]
            scores[f"{name}/{kind}"] = found = retrieval(image_NE, text_ME, image_of_text_M, config.ranks)
            errors[f"{name}/{kind}"] = {
                key: share_error(share, len(image_NE) if key.startswith("image") else len(texts))
                for key, share in found.items()
            }
            shown[f"{name}-{kind}"] = _queries(image_NE, text_ME, image_of_text_M, texts, test)
    return TaskResult(_flat(scores), shown, _flat(errors))


def _instances(config: InstanceRetrievalConfig, data: FrozenData, seed: int) -> TaskResult:
    instances = _needed(data.dataset.test.instances, "queries and index of instance retrieval")
    found = {
        name: instance_retrieval(data.test.embeddings[name], instances, config) for name in data.encoder.embeddings
    }
    scores, errors = ({name: one[place] for name, one in found.items()} for place in (0, 1))
    return TaskResult(_flat(scores), standard_errors=_flat(errors))


_TASKS: Mapping[type, Callable[[Any, FrozenData, int], TaskResult]] = {
    SegmentationConfig: _segmentation,
    DepthConfig: _depth,
    DptDepthConfig: _dpt_depth,
    NormalsConfig: _normals,
    NeighboursConfig: _neighbours,
    ClassificationConfig: _classification,
    RetrievalConfig: _retrieval,
    InstanceRetrievalConfig: _instances,
    ZeroShotClassificationConfig: _zero_shot_classification,
    ZeroShotSegmentationConfig: _zero_shot_segmentation,
}


def _needed(value: Value | None, what: str) -> Value:
    if value is None:
        raise TaskSkipped(f"the data set has no {what}")
    return value


def _classes(dataset: Dataset) -> Classes:
    if not dataset.test.labels:
        raise TaskSkipped("the data set has no labels of pixels")
    return Classes(len(dataset.class_names), dataset.ignore_index)


def _text_embeddings(data: FrozenData) -> tuple[str, ...]:
    if not data.encoder.text_embeddings:
        raise TaskSkipped("this model reads no texts: it has no text encoder, or no vocabulary is beside it")
    return data.encoder.text_embeddings


def _categorised(data: FrozenData) -> Iterator[tuple[str, LabelledEmbeddings, LabelledEmbeddings]]:
    """Name of each embedding, with the embeddings and classes of training and test images."""
    examples = _needed(data.dataset.train, "images to learn from"), data.dataset.test
    train_N, test_N = (_needed(some.categories_N, "classes of whole images") for some in examples)
    for name in data.encoder.embeddings:
        train_NE, test_NE = data.train.embeddings[name], data.test.embeddings[name]
        yield name, LabelledEmbeddings(train_NE, train_N), LabelledEmbeddings(test_NE, test_N)


def _by_embedding(scores: Iterator[tuple[str, dict[str, float]]], data: FrozenData) -> TaskResult:
    """Result with accuracies, and learning rates of some tasks, for each embedding."""
    found, images = _flat(dict(scores)), len(data.dataset.test.images_NSS3)
    errors = {key: share_error(share, images) for key, share in without_rates(found).items()}
    return TaskResult(found, standard_errors=errors)


def _flat(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {f"{name}/{key}": value for name, found in scores.items() for key, value in found.items()}


def _segmented(found: Segmentation, test: Examples, classes: Classes) -> TaskResult:
    triples = zip(test.images_NSS3[:SHOWN_IMAGES], test.labels, found.predictions, strict=False)
    rows = [
        [image.numpy(), *(pictures.overlay(image, labels, classes.num_classes) for labels in pair)]
        for image, *pair in triples
    ]
    error = miou_error(found.predictions, test.labels, *classes)
    return TaskResult(found.scores, {"segmentation": pictures.grid(rows)}, {"miou": error})


def _depth_outcome(found: Depth, test: Examples, max_depth_m: float) -> TaskResult:
    error = rmse_error(found.predictions_m, test.depth_m, max_depth_m)
    return TaskResult(found.scores, {"depth": _depth_rows(test, found.predictions_m, max_depth_m)}, {"rmse_m": error})


def _depth_rows(test: Examples, predictions_m: Sequence[Tensor], max_depth_m: float) -> np.ndarray:
    """Rows of image, target, prediction; all on one depth scale."""
    known = torch.cat([depth_m[depth_m > 0] for depth_m in test.depth_m])
    span = known.min().item(), min(known.max().item(), max_depth_m)
    triples = zip(test.images_NSS3[:SHOWN_IMAGES], test.depth_m, predictions_m, strict=False)
    rows = [[image.numpy(), *(pictures.depth_panel(depth_m, *span) for depth_m in pair)] for image, *pair in triples]
    return pictures.grid(rows)


def _normals_rows(test: Examples, predictions: Sequence[Tensor]) -> np.ndarray:
    """Rows of image, target, prediction."""
    triples = zip(test.images_NSS3[:SHOWN_IMAGES], test.normals, predictions, strict=False)
    return pictures.grid([[image.numpy(), *map(pictures.normals_panel, pair)] for image, *pair in triples])


def _queries(
    image_NE: Tensor, text_ME: Tensor, image_of_text_M: Tensor, texts: Sequence[str], test: Examples
) -> np.ndarray:
    """Picture of some queries: first captions of images spread over the data, and the images found for each."""
    wanted = torch.linspace(0, len(image_NE) - 1, min(SHOWN_QUERIES, len(image_NE))).long().tolist()
    rows = []
    for image in wanted:
        text = int((image_of_text_M == image).nonzero()[0])
        similarity_N = torch.nn.functional.cosine_similarity(image_NE, text_ME[text : text + 1])
        best = similarity_N.topk(min(SHOWN_FOUND, len(image_NE))).indices
        rows.append(pictures.found_images(texts[text], test.images_NSS3[best], (best == image).tolist()))
    return np.concatenate(rows)
