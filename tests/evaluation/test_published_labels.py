"""PASCAL VOC, Pascal Context and ADE20k in the layouts of their owners."""

import numpy as np
import pytest
from published_sets import BORDER, label_png, write_ade, write_context, write_voc

from tips_ray.evaluation.datasets import load_dataset
from tips_ray.evaluation.datasets.pascal import CONTEXT_CLASSES, VOC_CLASSES


@pytest.mark.parametrize("aug", ["aug.txt", "trainaug.txt"])
def test_voc_reads_its_lists_and_255_is_void(aug, tmp_path):
    dataset = load_dataset(write_voc(tmp_path, aug), 4)
    assert dataset.class_names == VOC_CLASSES and len(VOC_CLASSES) == 21 and dataset.ignore_index == 255
    assert dataset.train and [one.unique().tolist() for one in dataset.train.labels] == [[0, 15, 20, 255], [3]]
    assert len(dataset.test.images_NSS3) == 2, "a gray JPEG and one in CMYK count"
    assert (dataset.test.labels[0].numpy() == BORDER).all()
    assert VOC_CLASSES[15] == "person" and VOC_CLASSES[20] == "television"
    assert dataset.left_out == {"missing (val)": 1}


def test_voc_learns_from_its_own_images_alone_if_told_so(tmp_path):
    config = write_voc(tmp_path)
    (tmp_path / "ImageSets" / "Segmentation" / "aug.txt").unlink()
    with pytest.raises(ValueError, match=r"has neither trainaug.txt nor aug.txt: make the list .* or set train=train"):
        load_dataset(config, 4)
    dataset = load_dataset(config.model_copy(update={"train": "train"}), 4)
    assert dataset.train and len(dataset.train.labels) == 1


def test_voc_names_a_label_that_is_none_of_its_classes(tmp_path):
    config = write_voc(tmp_path)
    path = tmp_path / "SegmentationClass" / "2007_000033.png"
    path.write_bytes(label_png(np.full((6, 8), 21, np.uint8)))
    with pytest.raises(ValueError, match="2007_000033.png has class 21, and the data set has 21 classes: take the"):
        load_dataset(config, 4)
    path.write_bytes(label_png(np.zeros((6, 8, 3), np.uint8)))  # a copy drawn in colours
    with pytest.raises(ValueError, match="a label map has one class per pixel"):
        load_dataset(config, 4)


@pytest.mark.parametrize("classes", [59, 60])
def test_pascal_context_has_59_classes_without_the_background(classes, tmp_path):
    dataset = load_dataset(write_context(tmp_path, classes), 4)
    expected = [0, 1, 2, 59] if classes == 60 else [0, 1, 58, 255]
    assert dataset.test.labels[0].unique().tolist() == expected
    assert len(dataset.class_names) == classes and len(CONTEXT_CLASSES) == 60
    assert dataset.class_names[-1] == "wood" and dataset.class_names[0] == ("background", "aeroplane")[classes == 59]


def test_ade20k_does_not_count_label_0_and_names_its_classes(tmp_path):
    dataset = load_dataset(write_ade(tmp_path), 4)
    assert dataset.test.labels[0][0].tolist() == [255, 0, 1, 149, 149, 255, 255, 0]
    assert dataset.class_names[:2] == ("wall", "building") and dataset.class_names[149] == "flag"
    assert dataset.ignore_index == 255 and dataset.left_out == {"no labels (train)": 1, "no labels (val)": 1}


def test_ade20k_refuses_the_names_of_another_set(tmp_path):
    config = write_ade(tmp_path)
    (tmp_path / "objectInfo150.txt").write_text("Idx\tName\n1\twall\n")
    with pytest.raises(ValueError, match=r"objectInfo150.txt has 1 lines below \['Idx', 'Name'\]; take the file"):
        load_dataset(config, 4)
