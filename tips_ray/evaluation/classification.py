"""Image classification on frozen embeddings: k nearest neighbours and linear probes. N images, E width, C classes."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tips_ray.config.evaluation import ClassificationConfig, NeighboursConfig
from tips_ray.evaluation.metrics import knn_votes, nearest
from tips_ray.evaluation.probe import LEARNING_RATE, split_places, trained_probes


class LabelledEmbeddings(NamedTuple):
    """Embeddings, not necessarily of unit norm, and the class of each."""

    embeddings_NE: Tensor
    labels_N: Tensor


def knn_accuracy(
    train: LabelledEmbeddings, test: LabelledEmbeddings, num_classes: int, config: NeighboursConfig
) -> dict[str, float]:
    """`accuracy_k10` and so on, for each configured k that is at most the number of training images.

    Raises:
        ValueError: an embedding is not finite, or every k exceeds the number of training images.
    """
    allowed = [k for k in config.neighbours if k <= len(train.labels_N)]
    if not allowed:
        raise ValueError(f"neighbours ({config.neighbours}) all exceed the {len(train.labels_N)} training images")
    similarity_Nk, place_Nk = nearest(test.embeddings_NE, train.embeddings_NE, max(allowed))
    labels_Nk = train.labels_N[place_Nk]

    def votes_NC(k: int) -> Tensor:
        return knn_votes(similarity_Nk[:, :k], labels_Nk[:, :k], num_classes, config.temperature)

    return {f"accuracy_k{k}": accuracy(votes_NC(k), test.labels_N) for k in allowed}


def linear_accuracy(
    train: LabelledEmbeddings,
    test: LabelledEmbeddings,
    num_classes: int,
    config: ClassificationConfig,
    seed: int = 0,
) -> dict[str, float]:
    """`accuracy` of the learning rate that is best on held-out training images.

    (D) The probe reads the embedding alone, after BatchNorm; DINOv2 also tries it beside the mean patch.

    Raises:
        ValueError: there are too few images to hold one out.
    """

    def loss(logits_Rb1C: Tensor, batch_b: Tensor) -> Tensor:
        labels_b = train.labels_N[batch_b]
        return torch.stack([F.cross_entropy(logits_b1C[:, 0], labels_b) for logits_b1C in logits_Rb1C])

    rows_N1E = train.embeddings_NE[:, None]
    learned_n, held_out_m = split_places(len(rows_N1E), config.probe)
    probes = trained_probes(rows_N1E.__getitem__, learned_n, num_classes, loss, config.probe, seed)
    held_out_R = [accuracy(logits_m1C[:, 0], train.labels_N[held_out_m]) for logits_m1C in probes(rows_N1E[held_out_m])]
    chosen = held_out_R.index(max(held_out_R))
    found = accuracy(probes(test.embeddings_NE[:, None])[chosen, :, 0], test.labels_N)
    return {"accuracy": found, LEARNING_RATE: config.probe.learning_rates[chosen]}


def accuracy(scores_NC: Tensor, labels_N: Tensor) -> float:
    """Share of images whose class has the largest score."""
    return (scores_NC.argmax(dim=1) == labels_N).double().mean().item()
