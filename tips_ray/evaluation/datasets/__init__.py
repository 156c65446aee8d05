"""Data sets of the evaluation, by their config."""

from tips_ray.config.evaluation import CaptionedFolderConfig, DatasetConfig, GeometryFolderConfig, LabelledFolderConfig
from tips_ray.evaluation.datasets.examples import Dataset, Examples
from tips_ray.evaluation.datasets.folders import captioned_folder, labelled_folder
from tips_ray.evaluation.datasets.geometry import geometry_folder
from tips_ray.evaluation.datasets.rendered import rendered

__all__ = ["Dataset", "Examples", "load_dataset"]


def load_dataset(config: DatasetConfig, size_px: int) -> Dataset:
    """All images, squashed to `size_px`, in memory.

    Raises:
        ValueError: what its reader says.
    """
    if isinstance(config, LabelledFolderConfig):
        return labelled_folder(config, size_px)
    if isinstance(config, CaptionedFolderConfig):
        return captioned_folder(config, size_px)
    if isinstance(config, GeometryFolderConfig):
        return geometry_folder(config, size_px)
    return rendered(config, size_px)
