"""The evaluation's data sets on real photos and real street scenes."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from photos import SAMPLE, photos
from torch import Tensor, nn

from tips_ray.config.evaluation import RetrievalConfig
from tips_ray.config.evaluation_data import CaptionedFolderConfig, LabelledFolderConfig
from tips_ray.data.decode import decode
from tips_ray.evaluation.datasets import load_dataset
from tips_ray.evaluation.datasets.examples import squashed_image
from tips_ray.evaluation.encoders import Encoder, Features
from tips_ray.evaluation.features import FrozenData, encoding_here
from tips_ray.evaluation.tasks import task_result

STREETS = SAMPLE.parent / "camvid-sample"


class _Oracle(Encoder):
    """Embeds an image as its pixels, and a caption as the pixels of the photo that it was written for."""

    image_size_px, patch_size_px = 16, 16
    embeddings = text_embeddings = ("pixels",)

    def __init__(self) -> None:
        self._photo_of = {text: photo.image for photo in photos() for text in photo.captions}

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return ()

    def features(self, images_BCHW: Tensor) -> Features:
        pixels_BD = images_BCHW.flatten(1)
        return Features(pixels_BD[:, None], {"pixels": pixels_BD - 0.5})

    def texts(self, texts: Sequence[str]) -> Tensor:
        images = [squashed_image(decode(self._photo_of[text], 10**8, 10**8, 16), 16) for text in texts]
        embeddings_ND = self.features(torch.stack(images).permute(0, 3, 1, 2) / 255).embeddings["pixels"]
        return nn.functional.normalize(embeddings_ND, dim=1)


@pytest.mark.heavy
def test_captions_and_photos_keep_together_from_the_folder_to_the_score():
    dataset = load_dataset(CaptionedFolderConfig(folder=str(SAMPLE)), 16)
    assert (len(dataset.test.images_NSS3), dict(dataset.left_out)) == (400, {})
    scores = task_result(
        RetrievalConfig(data="photos"), FrozenData(_Oracle(), dataset, encoding_here(_Oracle())), 0
    ).scores
    assert scores["pixels/caption/image_to_text_recall_at_1"] == 1
    assert scores["pixels/caption/text_to_image_recall_at_1"] > 0.99  # captions that two photos share


def test_street_scenes_have_labels_at_their_own_size():
    if not STREETS.exists():
        pytest.skip("the street scenes of ../shared/data/camvid-sample are not here")
    config = LabelledFolderConfig(folder=str(STREETS), class_names=tuple("abcdefghijk"), ignore_index=11)
    dataset = load_dataset(config, 28)
    assert dataset.train and (len(dataset.train.labels), len(dataset.test.labels)) == (40, 20)
    found = np.unique(torch.stack([*dataset.train.labels, *dataset.test.labels]))
    assert dataset.test.labels[0].shape == (360, 480) and found.tolist() == list(range(12)) and not dataset.left_out
