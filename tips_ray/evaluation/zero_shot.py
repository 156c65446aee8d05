"""Classes by their names alone: images by an embedding, pixels by the values trick. N images, L patches, C classes."""

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional as F

from tips_ray.evaluation.classification import accuracy
from tips_ray.evaluation.segmentation import Classes, Segmentation, classes_of, miou


def class_embeddings(
    embed: Callable[[Sequence[str]], Tensor], names: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Unit-norm mean over templates of each class's texts, [C, E].

    Args:
        embed: texts -> unit-norm embeddings.
        names: of the classes.
        templates: each has a `{}` where the name goes.

    Raises:
        ValueError: a template has none.
    """
    wrong = [template for template in templates if "{}" not in template]
    if wrong:
        raise ValueError(f"template {wrong[0]!r} must have a {{}} where the name of the class goes")
    texts = [template.replace("{}", name) for name in names for template in templates]
    return F.normalize(embed(texts).unflatten(0, (len(names), -1)).mean(dim=1), dim=-1)


def zero_shot_accuracy(image_NE: Tensor, classes_CE: Tensor, labels_N: Tensor) -> dict[str, float]:
    """`accuracy` of the class with the largest cosine."""
    return {"accuracy": accuracy(F.normalize(image_NE, dim=-1) @ classes_CE.T, labels_N)}


def zero_shot_segmentation(
    text_patches_NLE: Tensor, classes_CE: Tensor, labels: Sequence[Tensor], classes: Classes
) -> Segmentation:
    """`miou` of the class with the largest cosine, which is bilinearly upsampled; every class takes part.

    Source: the values trick of TIPSv2, arXiv:2604.12012, for the patches.
    """
    pairs = zip(text_patches_NLE, labels, strict=True)
    predictions = [classes_of(F.normalize(rows_LE, dim=-1) @ classes_CE.T, one) for rows_LE, one in pairs]
    return Segmentation({"miou": miou(predictions, labels, classes)}, predictions)
