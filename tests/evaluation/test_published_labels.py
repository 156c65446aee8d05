"""PASCAL VOC, Pascal Context and ADE20k in the layouts of their owners."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from writers import jpeg

from tips_ray.config.evaluation_data import Ade20kConfig, PascalContextConfig, Voc2012Config
from tips_ray.evaluation.datasets import load_dataset
from tips_ray.evaluation.datasets.pascal import CONTEXT_CLASSES, VOC_CLASSES

BORDER = np.array([[255] * 8, *[[255, 15, 15, 0, 0, 20, 20, 255]] * 4, [255] * 8], np.uint8)
"""A person and a television with void around them, as VOC draws it."""


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _png(labels: np.ndarray, mode: str = "L") -> bytes:
    """VOC's own maps have a palette; those that others make are gray."""
    buffer, image = io.BytesIO(), Image.fromarray(labels)
    if mode == "P":
        image = Image.frombytes("P", labels.shape[::-1], labels.tobytes())
        image.putpalette([7 * n % 256 for n in range(768)])
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _jpeg_of(mode: str) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (8, 6), 90 if mode == "L" else (0, 60, 120, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


def _write_voc(folder: Path, aug: str = "aug.txt") -> Voc2012Config:
    lists = folder / "ImageSets" / "Segmentation"
    _write(lists / "train.txt", b"2007_000032\n")
    _write(lists / "val.txt", b"2007_000033\n2007_000034\n\n2007_000099\n")
    _write(lists / aug, b"2008_000008\n" if aug == "aug.txt" else b"2007_000032\n2008_000008\n")
    for number, name in enumerate(("2007_000032", "2007_000033", "2007_000034", "2008_000008", "2011_000003")):
        _write(folder / "JPEGImages" / f"{name}.jpg", jpeg(number))
    for name in ("2007_000032", "2007_000033", "2007_000034"):
        _write(folder / "SegmentationClass" / f"{name}.png", _png(BORDER, "P"))
    for name in ("2007_000032", "2008_000008"):
        _write(folder / "SegmentationClassAug" / f"{name}.png", _png(np.full((6, 8), 3, np.uint8)))
    _write(folder / "JPEGImages" / "2007_000033.jpg", _jpeg_of("L"))
    _write(folder / "JPEGImages" / "2007_000034.jpg", _jpeg_of("CMYK"))
    return Voc2012Config(folder=str(folder))


@pytest.mark.parametrize("aug", ["aug.txt", "trainaug.txt"])
def test_voc_reads_its_lists_and_255_is_void(aug, tmp_path):
    dataset = load_dataset(_write_voc(tmp_path, aug), 4)
    assert dataset.class_names == VOC_CLASSES and len(VOC_CLASSES) == 21 and dataset.ignore_index == 255
    assert dataset.train and [one.unique().tolist() for one in dataset.train.labels] == [[0, 15, 20, 255], [3]]
    assert len(dataset.test.images_NSS3) == 2, "a gray JPEG and one in CMYK count"
    assert (dataset.test.labels[0].numpy() == BORDER).all()
    assert VOC_CLASSES[15] == "person" and VOC_CLASSES[20] == "television"
    assert dataset.left_out == {"missing (val)": 1}


def test_voc_learns_from_its_own_images_alone_if_told_so(tmp_path):
    config = _write_voc(tmp_path)
    (tmp_path / "ImageSets" / "Segmentation" / "aug.txt").unlink()
    with pytest.raises(ValueError, match=r"has neither trainaug.txt nor aug.txt: make the list .* or set train=train"):
        load_dataset(config, 4)
    dataset = load_dataset(config.model_copy(update={"train": "train"}), 4)
    assert dataset.train and len(dataset.train.labels) == 1


def test_voc_names_a_label_that_is_none_of_its_classes(tmp_path):
    config = _write_voc(tmp_path)
    path = tmp_path / "SegmentationClass" / "2007_000033.png"
    path.write_bytes(_png(np.full((6, 8), 21, np.uint8)))
    with pytest.raises(ValueError, match="2007_000033.png has class 21, and the data set has 21 classes: take the"):
        load_dataset(config, 4)
    path.write_bytes(_png(np.zeros((6, 8, 3), np.uint8)))  # a copy drawn in colours
    with pytest.raises(ValueError, match="a label map has one class per pixel"):
        load_dataset(config, 4)


@pytest.mark.parametrize("classes", [59, 60])
def test_pascal_context_has_59_classes_without_the_background(classes, tmp_path):
    labels = np.array([[0, 1, 59, 59, 2, 2, 0, 0]] * 6, np.uint8)
    for name in ("train", "val"):
        _write(tmp_path / "ImageSets" / "SegmentationContext" / f"{name}.txt", b"2008_000002\n")
    _write(tmp_path / "JPEGImages" / "2008_000002.jpg", jpeg())
    _write(tmp_path / "SegmentationClassContext" / "2008_000002.png", _png(labels))
    dataset = load_dataset(PascalContextConfig(folder=str(tmp_path), classes=classes), 4)
    expected = [0, 1, 2, 59] if classes == 60 else [0, 1, 58, 255]
    assert dataset.test.labels[0].unique().tolist() == expected
    assert len(dataset.class_names) == classes and len(CONTEXT_CLASSES) == 60
    assert dataset.class_names[-1] == "wood" and dataset.class_names[0] == ("background", "aeroplane")[classes == 59]


def _write_ade(folder: Path) -> Ade20kConfig:
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName", "1\t0.1576\t11664\t1172\t1\twall"]
    lines += ["2\t0.1072\t6046\t612\t1\tbuilding, edifice"]
    lines += [f"{n}\t0.0\t1\t1\t0\tthing {n}, other name" for n in range(3, 150)] + ["150\t0.0\t1\t1\t0\tflag"]
    _write(folder / "objectInfo150.txt", "\n".join(lines).encode())
    labels = np.array([[0, 1, 2, 150, 150, 0, 0, 1]] * 6, np.uint8)
    for number, (part, short) in enumerate((("training", "train"), ("validation", "val"))):
        for image in (1, 2):
            _write(folder / "images" / part / f"ADE_{short}_{image:08d}.jpg", jpeg(10 * number + image))
        _write(folder / "annotations" / part / f"ADE_{short}_00000001.png", _png(labels))
    return Ade20kConfig(folder=str(folder))


def test_ade20k_does_not_count_label_0_and_names_its_classes(tmp_path):
    dataset = load_dataset(_write_ade(tmp_path), 4)
    assert dataset.test.labels[0][0].tolist() == [255, 0, 1, 149, 149, 255, 255, 0]
    assert dataset.class_names[:2] == ("wall", "building") and dataset.class_names[149] == "flag"
    assert dataset.ignore_index == 255 and dataset.left_out == {"no labels (train)": 1, "no labels (val)": 1}


def test_ade20k_refuses_the_names_of_another_set(tmp_path):
    config = _write_ade(tmp_path)
    (tmp_path / "objectInfo150.txt").write_text("Idx\tName\n1\twall\n")
    with pytest.raises(ValueError, match=r"objectInfo150.txt has 1 lines below \['Idx', 'Name'\]; take the file"):
        load_dataset(config, 4)
