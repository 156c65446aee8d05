"""Image-text retrieval with one caption per image. N pairs, D width."""

import torch
from torch import Tensor
from torch.nn import functional as F

from tips_ray.evaluation.metrics import recall_at_k


def retrieval(cls_ND: Tensor, text_ND: Tensor) -> dict[str, float]:
    """Recall at 1 and 5 in both directions; row i of `text_ND` describes image i.

    Embeddings need no unit norm.
    """
    similarity_NN = F.normalize(cls_ND, dim=-1) @ F.normalize(text_ND, dim=-1).T
    return _recalls(similarity_NN, "image_to_text") | _recalls(similarity_NN.T, "text_to_image")


def _recalls(similarity_NN: Tensor, direction: str) -> dict[str, float]:
    positives_NN = torch.eye(len(similarity_NN), dtype=torch.bool)
    return {
        f"{direction}_recall_at_{k}": recall_at_k(similarity_NN, positives_NN, k)
        for k in (1, 5)
        if k <= len(similarity_NN)
    }
