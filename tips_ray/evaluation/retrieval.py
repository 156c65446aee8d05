"""Image-text retrieval. N images, M texts (an image may have several), E width."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tips_ray.evaluation.metrics import recall_at_k


def retrieval(
    image_NE: Tensor, text_ME: Tensor, image_of_text_M: Tensor | None = None, ranks: Sequence[int] = (1, 5)
) -> dict[str, float]:
    """`image_to_text_recall_at_1` and so on in both directions.

    An image is a hit if any of its texts is among the first k; each text is a separate query.

    Args:
        image_NE: embeddings of any norm.
        text_ME: embeddings of any norm.
        image_of_text_M: index of the image that each text describes; None: text i describes image i.
        ranks: k of the recalls; those above the number of candidates are left out.

    Raises:
        ValueError: a similarity is NaN, or an image has no text.
    """
    image_of_text_M = torch.arange(len(text_ME)) if image_of_text_M is None else image_of_text_M
    similarity_NM = F.normalize(image_NE, dim=-1) @ F.normalize(text_ME, dim=-1).T
    positives_NM = torch.arange(len(image_NE))[:, None] == image_of_text_M
    directions = {
        "image_to_text": (similarity_NM, positives_NM),
        "text_to_image": (similarity_NM.T, positives_NM.T),
    }
    return {
        f"{name}_recall_at_{k}": recall_at_k(*pair, k)
        for name, pair in directions.items()
        for k in ranks
        if k <= pair[0].shape[1]
    }
