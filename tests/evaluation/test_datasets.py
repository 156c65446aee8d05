"""Data sets from folders of real files and from rendered scenes."""

import errno
import io
import struct
import threading
import zlib
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from writers import jpeg

from tips_ray.config.evaluation_data import (
    CaptionedFolderConfig,
    ClassFolderConfig,
    GeometryFolderConfig,
    LabelledFolderConfig,
    ScenesConfig,
)
from tips_ray.evaluation.datasets import images, load_dataset
from tips_ray.evaluation.datasets.examples import squashed_image
from tips_ray.scenes import SHAPES, render_scene


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def _write_labelled(folder, labels: np.ndarray) -> LabelledFolderConfig:
    """Two 6 x 8 images per part; `train` also has one broken, one without labels, one with labels of another size."""
    for part in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / part / kind).mkdir(parents=True)
        for number in range(2):
            (folder / part / "images" / f"{number}.jpg").write_bytes(jpeg(number))
            (folder / part / "labels" / f"{number}.png").write_bytes(_png(labels))
    (folder / "train" / "images" / "2.jpg").write_bytes(b"no image")
    (folder / "train" / "labels" / "2.png").write_bytes(_png(labels))
    (folder / "train" / "images" / "3.jpg").write_bytes(jpeg(3))
    (folder / "train" / "images" / "4.jpg").write_bytes(jpeg(4))
    (folder / "train" / "labels" / "4.png").write_bytes(_png(labels[:-1]))
    return _labels_config(folder)


def _labels_config(folder) -> LabelledFolderConfig:
    return LabelledFolderConfig(folder=str(folder), class_names=("a", "b"), ignore_index=9)


def test_a_labelled_folder_keeps_labels_at_their_size_and_counts_what_it_leaves_out(tmp_path):
    labels = np.array([[0, 1, 9, 1], [1, 1, 0, 0], [9, 0, 1, 0]], np.uint8).repeat(2, 0).repeat(2, 1)
    dataset = load_dataset(_write_labelled(tmp_path, labels), 4)
    assert dataset.left_out == {
        f"{reason} (train)": 1 for reason in ("not an image", "no labels", "labels of another size")
    }
    alone = load_dataset(_labels_config(tmp_path), 4, with_train=False)
    assert alone.train is None and len(alone.test.images_NSS3) == 2 and not alone.left_out
    assert dataset.train and dataset.train.images_NSS3.shape == dataset.test.images_NSS3.shape == (2, 4, 4, 3)
    assert all(torch.equal(found, torch.from_numpy(labels).long()) for found in dataset.train.labels)
    assert (dataset.class_names, dataset.ignore_index) == (("a", "b"), 9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            _png(np.zeros((2, 3, 3), np.uint8)),
            r"0.png has shape \(2, 3, 3\) uint8; a label map has one class per pixel",
        ),
        (b"no png", "0.png is no label map"),
        (
            _png(np.full((6, 8), 2, np.uint8)),
            r"0.png has class 2, and there are 2 class_names: name it, .* \(ignore_index is 9\)",
        ),
    ],
)
def test_a_wrong_label_map_is_named(content, message, tmp_path):
    config = _write_labelled(tmp_path, np.zeros((6, 8), np.uint8))
    (tmp_path / "val" / "labels" / "0.png").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_dataset(config, 4)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_label_map_of_few_bits_has_its_classes(bits, tmp_path):
    """Written by hand, because Pillow writes gray of 2 and 4 bits as 8."""
    classes = np.array([[0, 1, 1, 0, 1, 0, 0, 1]] * 6, np.uint8)
    config = _write_labelled(tmp_path, classes)
    rows = np.packbits(np.unpackbits(classes[:, :, None], axis=2)[:, :, 8 - bits :].reshape(6, -1), axis=1)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    head = struct.pack(">IIBBBBB", 8, 6, bits, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", body), (b"IEND", b"")]
    content = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    (tmp_path / "val" / "labels" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    (found, _) = load_dataset(config, 4).test.labels
    assert torch.equal(found, torch.from_numpy(classes))


def test_masks_whose_foreground_would_be_ignored_are_refused(tmp_path):
    config = _write_labelled(tmp_path, np.array([[0, 9, 9, 0, 9, 0, 0, 9]] * 6, np.uint8))
    with pytest.raises(ValueError, match=r"train/labels: every pixel is 0 or 9, and ignore_index \(9\) does not count"):
        load_dataset(config, 4)


def _write_geometry(folder, depth: np.ndarray, normals: np.ndarray) -> GeometryFolderConfig:
    """Two images of 6 x 8 per part; depth is in millimetres for the first, in metres for the second."""
    for part in ("train", "val"):
        for kind in ("images", "depth", "normals"):
            (folder / part / kind).mkdir(parents=True)
        for number in range(2):
            (folder / part / "images" / f"{number}.jpg").write_bytes(jpeg(number))
            np.save(folder / part / "normals" / f"{number}.npy", normals)
        (folder / part / "depth" / "0.png").write_bytes(_png((1000 * np.nan_to_num(depth)).astype(np.uint16)))
        np.save(folder / part / "depth" / "1.npy", depth)
    return GeometryFolderConfig(folder=str(folder))


def test_a_geometry_folder_reads_both_forms_of_depth_and_takes_pixels_that_are_none_out(tmp_path):
    depth, normals = np.full((6, 8), 2.5, np.float32), np.zeros((6, 8, 3), np.float32)
    depth[0], normals[:, :, 1], normals[2] = np.nan, 1, (0.6, 0, 0.9)
    dataset = load_dataset(_write_geometry(tmp_path, depth, normals), 4)
    expected = torch.full((6, 8), 2.5)
    expected[0] = 0
    counts = {"pixels of depth that is not finite": 8, "pixels of normals that are not of length 1": 16}
    assert dataset.train
    assert dataset.left_out == {f"{what} ({part})": n for what, n in counts.items() for part in ("train", "val")}
    for examples in (dataset.train, dataset.test):
        assert all(torch.equal(one, expected) for one in examples.depth_m) and len(examples.depth_m) == 2
        assert examples.normals[0].shape == (3, 6, 8) and not examples.normals[0][:, 2].any()
        assert examples.normals[0][:, 3].sum() == 8
    assert not dataset.test.labels and dataset.test.categories_N is None


def test_an_image_without_geometry_is_counted_and_left_out(tmp_path):
    depth, normals = np.ones((6, 8), np.float32), np.zeros((6, 8, 3), np.float32)
    normals[..., 2] = 1
    config = _write_geometry(tmp_path, depth, normals)
    for number, kind, values in ((2, "normals", normals), (3, "depth", 0 * depth), (4, "depth", depth[:, 1:])):
        (tmp_path / "train" / "images" / f"{number}.jpg").write_bytes(jpeg(number))
        np.save(tmp_path / "train" / kind / f"{number}.npy", values)
    dataset = load_dataset(config, 4)
    assert dataset.train and len(dataset.train.images_NSS3) == 2
    assert dataset.left_out == {
        f"{reason} (train)": 1 for reason in ("no depth", "no depth in any pixel", "depth of another size")
    }
    np.save(tmp_path / "val" / "normals" / "0.npy", normals[..., :2])
    with pytest.raises(
        ValueError, match=r"0.npy has shape \(6, 8, 2\) float32; normals are floating point \[H, W, 3\]"
    ):
        load_dataset(config, 4)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("1.npy", lambda path: path.write_bytes(b""), "1.npy is no map: No data left in file"),
        ("1.npy", lambda path: np.save(path, np.ones((1, 6, 8))), r"1.npy has shape \(1, 6, 8\); depth is \[H, W\]"),
    ],
)
def test_a_wrong_map_of_depth_is_named(name, write, message, tmp_path):
    normals = np.zeros((6, 8, 3), np.float32)
    normals[..., 0] = 1
    config = _write_geometry(tmp_path, np.ones((6, 8), np.float32), normals)
    write(tmp_path / "val" / "depth" / name)
    with pytest.raises(ValueError, match=message):
        load_dataset(config, 4)


def _write_classes(folder, part: str, **images: int) -> None:
    for category, count in images.items():
        (folder / part / category).mkdir(parents=True)
        for number in range(count):
            (folder / part / category / f"{number}.jpg").write_bytes(jpeg(number))


def test_a_folder_of_classes_gives_each_image_the_class_of_its_folder(tmp_path):
    _write_classes(tmp_path, "train", dog=1, big_cat=2, n01=1)
    _write_classes(tmp_path, "val", n01=1, dog=1)
    (tmp_path / "val" / "dog" / "bad.jpg").write_bytes(b"no image")
    config = ClassFolderConfig(folder=str(tmp_path), class_names={"n01": "tench"})
    dataset = load_dataset(config, 4)
    assert dataset.category_names == ("big cat", "dog", "tench") and dataset.left_out == {"not an image (val)": 1}
    assert dataset.train and dataset.train.categories_N is not None and dataset.test.categories_N is not None
    assert dataset.train.categories_N.tolist() == [0, 0, 1, 2] and dataset.test.categories_N.tolist() == [1, 2]
    assert dataset.train.images_NSS3.shape == (4, 4, 4, 3)
    _write_classes(tmp_path, "val", fox=1)
    with pytest.raises(ValueError, match="class 'fox' has no folder in train, which has 3"):
        load_dataset(config, 4)


def test_a_folder_of_classes_without_any_to_learn_from_is_enough_for_zero_shot(tmp_path):
    _write_classes(tmp_path, "val", dog=1, cat=1)
    dataset = load_dataset(ClassFolderConfig(folder=str(tmp_path)), 4, with_train=False)
    assert dataset.category_names == ("cat", "dog") and dataset.train is None
    with pytest.raises(ValueError, match="train has no image that can be used"):
        load_dataset(ClassFolderConfig(folder=str(tmp_path)), 4)


def test_captions_of_an_image_stay_together_in_the_order_of_the_table(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(jpeg(0))
    (tmp_path / "images" / "b.jpg").write_bytes(jpeg(200))
    (tmp_path / "images" / "none.jpg").write_bytes(jpeg(7))
    lines = ["image,caption", "b.jpg,first", "a.jpg,['second']", "b.jpg, third ", "a.jpg,", "gone.jpg,fourth"]
    lines += [",fifth", "none.jpg,"]
    (tmp_path / "captions.csv").write_text("\ufeff" + "\n".join(lines))
    dataset = load_dataset(CaptionedFolderConfig(folder=str(tmp_path)), 4)
    assert dataset.test.captions == {"caption": [["first", "third"], ["second"]]} and dataset.train is None
    assert dataset.left_out == {"missing": 1, "no caption": 1}
    assert (
        dataset.test.images_NSS3[0, 0, 0, 0] > dataset.test.images_NSS3[1, 0, 0, 0] or len(dataset.test.captions) == 1
    )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("name,text\na.jpg,b", "has the columns name, text; it needs image and caption"),
        ("image,caption\na.jpg,b", r"has no image that can be used \(1 missing\)"),
    ],
)
def test_a_table_that_says_nothing_is_named(table, message, tmp_path):
    (tmp_path / "captions.csv").write_text(table)
    with pytest.raises(ValueError, match=message):
        load_dataset(CaptionedFolderConfig(folder=str(tmp_path)), 4)


def test_scenes_come_with_their_truth_and_other_ones_to_learn_from():
    dataset = load_dataset(ScenesConfig(train=2, test=3), 28)
    scene = render_scene(6, 1, 28)
    assert np.array_equal(dataset.test.images_NSS3[1].numpy(), scene.image_HWC)
    assert np.array_equal(dataset.test.labels[1].numpy(), scene.labels_HW)
    assert np.array_equal(dataset.test.depth_m[1].numpy(), scene.depth_HW)
    assert np.array_equal(dataset.test.normals[1].numpy(), scene.normals_HWC.transpose(2, 0, 1))
    assert dataset.test.captions["web"][1] == [scene.web_caption]
    assert dataset.test.captions["synthetic"][1] == [scene.synthetic_caption]
    largest = max(scene.objects, key=lambda thing: thing.image_share)
    assert dataset.test.categories_N is not None and SHAPES[dataset.test.categories_N[1]] == largest.shape
    assert dataset.train and not torch.equal(dataset.train.images_NSS3[0], dataset.test.images_NSS3[0])


def test_squashing_averages_and_leaves_what_fits():
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, 4:] = 200
    squashed = squashed_image(image, 2)
    assert squashed[0, 0, 0] < 40 and squashed[0, 1, 0] > 160
    assert torch.equal(squashed_image(image[:, :4], 4), torch.zeros(4, 4, 3, dtype=torch.uint8))


def test_threads_read_ahead_and_give_results_in_order():
    started: list[int] = []

    def read(number: int) -> int:
        started.append(number)
        if number % 3 == 0:
            threading.Event().wait(0.002)
        return number * number

    found = images.ahead(read, range(500))
    assert [next(found) for _ in range(100)] == [n * n for n in range(100)]
    assert max(started) < 100 + images.READ_AHEAD, "no more is read than fits ahead"
    assert list(found) == [n * n for n in range(100, 500)]

    def fail(number: int) -> int:
        raise ValueError(f"item {number}")

    with pytest.raises(ValueError, match="item 0"):
        list(images.ahead(fail, range(9)))


def test_arrays_that_fill_the_disk_say_what_to_do(monkeypatch):
    stack = images.ImageStack(2)
    stack.append(torch.zeros(2, 2, 3, dtype=torch.uint8))
    assert stack.images("folder", Counter()).shape == (1, 2, 2, 3)

    class Full:
        def write(self, content: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stack, "_file", Full())
    with pytest.raises(ValueError, match=r"1 arrays of \(2, 2, 3\) have filled .*: set TMPDIR to a larger disk"):
        stack.append(torch.zeros(2, 2, 3, dtype=torch.uint8))
