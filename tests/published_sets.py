"""Tiny data sets in exactly the layouts of their publishers, with the odd cases of each."""

import gzip
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
from PIL import Image
from writers import jpeg

from tips_ray.config.evaluation_data import (
    UNED_SETS,
    Ade20kConfig,
    DocciConfig,
    ImagenetConfig,
    KarpathyConfig,
    NaviConfig,
    NyuBtsConfig,
    NyuGeonetConfig,
    PascalContextConfig,
    UnedConfig,
    Voc2012Config,
)

HEIGHT, WIDTH = 480, 640
"""Size of all pictures of NYUv2."""
BORDER = np.array([[255] * 8, *[[255, 15, 15, 0, 0, 20, 20, 255]] * 4, [255] * 8], np.uint8)
"""A person and a television with void around them, as VOC draws it."""


def write(path: Path, content: bytes | str) -> None:
    """Write a file and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def label_png(labels: np.ndarray, mode: str = "L") -> bytes:
    """VOC's own maps have a palette; those that others make are gray."""
    buffer, image = io.BytesIO(), Image.fromarray(labels)
    if mode == "P":
        image = Image.frombytes("P", labels.shape[::-1], labels.tobytes())
        image.putpalette([7 * n % 256 for n in range(768)])
    image.save(buffer, "PNG")
    return buffer.getvalue()


def jpeg_of(mode: str) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (8, 6), 90 if mode == "L" else (0, 60, 120, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_voc(folder: Path, aug: str = "aug.txt") -> Voc2012Config:
    lists = folder / "ImageSets" / "Segmentation"
    write(lists / "train.txt", b"2007_000032\n")
    write(lists / "val.txt", b"2007_000033\n2007_000034\n\n2007_000099\n")
    write(lists / aug, b"2008_000008\n" if aug == "aug.txt" else b"2007_000032\n2008_000008\n")
    for number, name in enumerate(("2007_000032", "2007_000033", "2007_000034", "2008_000008", "2011_000003")):
        write(folder / "JPEGImages" / f"{name}.jpg", jpeg(number))
    for name in ("2007_000032", "2007_000033", "2007_000034"):
        write(folder / "SegmentationClass" / f"{name}.png", label_png(BORDER, "P"))
    for name in ("2007_000032", "2008_000008"):
        write(folder / "SegmentationClassAug" / f"{name}.png", label_png(np.full((6, 8), 3, np.uint8)))
    write(folder / "JPEGImages" / "2007_000033.jpg", jpeg_of("L"))
    write(folder / "JPEGImages" / "2007_000034.jpg", jpeg_of("CMYK"))
    return Voc2012Config(folder=str(folder))


def write_ade(folder: Path) -> Ade20kConfig:
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName", "1\t0.1576\t11664\t1172\t1\twall"]
    lines += ["2\t0.1072\t6046\t612\t1\tbuilding, edifice"]
    lines += [f"{n}\t0.0\t1\t1\t0\tthing {n}, other name" for n in range(3, 150)] + ["150\t0.0\t1\t1\t0\tflag"]
    write(folder / "objectInfo150.txt", "\n".join(lines).encode())
    labels = np.array([[0, 1, 2, 150, 150, 0, 0, 1]] * 6, np.uint8)
    for number, (part, short) in enumerate((("training", "train"), ("validation", "val"))):
        for image in (1, 2, 3):
            write(folder / "images" / part / f"ADE_{short}_{image:08d}.jpg", jpeg(10 * number + image))
        for image in (1, 2):
            write(folder / "annotations" / part / f"ADE_{short}_{image:08d}.png", label_png(labels))
    return Ade20kConfig(folder=str(folder))


def encoded(pixels: np.ndarray, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def flat_jpeg(red: int, height: int = HEIGHT, width: int = WIDTH) -> bytes:
    return encoded(np.full((height, width, 3), (red, 0, 0), np.uint8), "JPEG")


def write_bts(folder: Path) -> NyuBtsConfig:
    """Three images to learn from, the last without depth, and a test image; its right half lies beyond 10 m."""
    depth = np.zeros((HEIGHT, WIDTH), np.uint16)
    depth[100:, :] = 2500
    depth[200:, 320:] = 10_500
    for number in range(3):
        write(folder / f"sync/kitchen_0028b/rgb_{number:05d}.jpg", flat_jpeg(number))
    for number in range(2):
        write(folder / f"sync/kitchen_0028b/sync_depth_{number:05d}.png", encoded(depth, "PNG"))
    lines = [f"/kitchen_0028b/rgb_{n:05d}.jpg /kitchen_0028b/sync_depth_{n:05d}.png 518.8579" for n in range(3)]
    write(folder / "train_test_inputs/nyudepthv2_train_files_with_gt.txt", "\n".join(lines).encode())
    write(folder / "official_splits/test/bathroom/rgb_00045.jpg", flat_jpeg(200))
    write(folder / "official_splits/test/bathroom/sync_depth_00045.png", encoded(depth, "PNG"))
    line = b"bathroom/rgb_00045.jpg bathroom/sync_depth_00045.png 518.8579\n"
    write(folder / "nyudepthv2_test_files_with_gt.txt", line)
    return NyuBtsConfig(folder=str(folder))


def write_labelled(folder: Path, test: int = 2) -> Path:
    """Three labelled images in MATLAB's order; image n has red 50 n, and depth 1 + n on top.

    All are green in their lower half, and their raw depth has a hole on the left.
    """
    h5py = pytest.importorskip("h5py")
    folder.mkdir(exist_ok=True)
    depths = np.stack([np.full((WIDTH, HEIGHT), 1.0 + n, np.float32) for n in range(3)])
    depths[:, :, 240:] += 4
    raw, images = depths.copy(), np.zeros((3, 3, WIDTH, HEIGHT), np.uint8)
    raw[:, :20] = 0
    images[:, 0] = 50 * np.arange(3)[:, None, None]
    images[:, 1, :, 240:] = 200
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w") as file:
        for name, values in (("images", images), ("depths", depths), ("rawDepths", raw)):
            file.create_dataset(name, data=values, compression="gzip")
    split = {"trainNdxs": np.array([[1], [3]], np.uint16), "testNdxs": np.array([[test]], np.uint16)}
    scipy.io.savemat(folder / "splits.mat", split)
    return folder


def write_geonet(folder: Path) -> NyuGeonetConfig:
    """One training file, and normals of all labelled images that point to the left, not of length 1."""
    write_labelled(folder)
    normals = np.zeros((3, HEIGHT, WIDTH, 3), np.float32)
    normals[:, :240, :, 0] = -0.5
    (folder / "all_normals.pklz").write_bytes(gzip.compress(pickle.dumps({"all_normals": normals}, protocol=2)))
    content = {
        "img": np.full((481, 641, 3), -100.0),
        "depth": np.full((481, 641), 3.0),
        "norm": np.zeros((481, 641, 3)),
    }
    content["norm"][..., 2] = 1
    (folder / "train").mkdir()
    scipy.io.savemat(folder / "train" / "kitchen_0001-1.mat", content)
    return NyuGeonetConfig(folder=str(folder))


def write_navi(folder: Path) -> NaviConfig:
    """A car with a wild photo and two of a scene, one beside its resized copy; a doll that has no wild photo."""
    disparity = np.zeros((48, 64), np.uint16)
    disparity[10:30, 20:50] = round(10 * 65_535 / 400)  # 400 mm
    scenes = [("car", "wild_set", ["000"]), ("car", "multiview-00-pixel_5", ["000", "001"])]
    for thing, scene, names in [*scenes, ("doll", "multiview-00-pixel_5", ["000"])]:
        place = folder / thing / scene
        for name in [*names, "downsampled_000"]:
            write(place / "images" / f"{name}.jpg", flat_jpeg(100, 48, 64))
            write(place / "depth" / f"{name}.png", encoded(disparity, "PNG"))
        entries = [
            {"filename": f"{name}.jpg", "camera": {"focal_length": 60.0}, "image_size": [48, 64]} for name in names
        ]
        write(place / "annotations.json", json.dumps(entries).encode())
    return NaviConfig(folder=str(folder), every=1)


WORDS = {"n01440764": "tench, Tinca tinca", "n01443537": "goldfish, Carassius auratus", "n02119789": "kit fox, Vulpes"}


def write_devkit(folder: Path) -> ImagenetConfig:
    """Flat validation images. The devkit numbers the kit fox 1, the goldfish 2, the tench 3, an inner node 1001."""
    numbers = {1: "n02119789", 2: "n01443537", 3: "n01440764", 1001: "n00001740"}
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O")]
    rows = [(number, wordnet, WORDS.get(wordnet, "entity")) for number, wordnet in numbers.items()]
    devkit = folder / "ILSVRC2012_devkit_t12" / "data"
    devkit.mkdir(parents=True)
    scipy.io.savemat(devkit / "meta.mat", {"synsets": np.array(rows, dtype=kinds)[:, None]})
    write(devkit / "ILSVRC2012_validation_ground_truth.txt", "3\n1\n2\n1\n")
    for row in (1, 2, 4):
        content = jpeg_of("CMYK") if row == 2 else jpeg(row)
        write(folder / "val" / f"ILSVRC2012_val_{row:08d}.JPEG", content)
    return ImagenetConfig(folder=str(folder))


def write_hub(folder: Path, label: int = 1, named: bool = True) -> ImagenetConfig:
    features = {"image": {"_type": "Image"}, "label": {"names": list(WORDS.values()), "_type": "ClassLabel"}}
    info = {b"huggingface": json.dumps({"info": {"features": features}}).encode()} if named else {}
    for part in ("train", "validation"):
        images = [{"bytes": content, "path": "a.JPEG"} for content in (jpeg(9), b"", jpeg(8), jpeg(7), jpeg(6))]
        table = pa.table({"image": images, "label": pa.array([label, 0, -1, 2, 0], pa.int64())})
        (folder / "data").mkdir(exist_ok=True, parents=True)
        pq.write_table(table.replace_schema_metadata(info), folder / "data" / f"{part}-00000-of-00001.parquet")
    return ImagenetConfig(folder=str(folder))


def write_uned(folder: Path, sets: tuple = UNED_SETS) -> UnedConfig:
    """Cars search themselves; Met has an index; its query 1 has two classes, and one is nowhere in the index."""
    files = {
        "cars/test": [("cars/car_ims/1.jpg", 0), ("cars/car_ims/2.jpg", 0), ("cars/car_ims/3.jpg", 5)],
        "met/test": [("met/test_met/1.jpg", [0, 9]), ("met/test_met/2.jpg", 4)],
        "met/index": [("met/MET/1.jpg", 0), ("met/MET/2.jpg", 1)],
    }
    for name in set(sets) - {"cars", "met"}:
        files[f"{name}/test"] = [(f"{name}/{number}.jpg", 0) for number in (1, 2)]
        if name in ("inshop", "gldv2"):
            files[f"{name}/index"] = [(f"{name}/index/{number}.jpg", number) for number in (0, 1)]
    for name, entries in files.items():
        write(
            folder / "info_files" / f"{name}.json",
            json.dumps([{"path": path, "class_id": label} for path, label in entries]),
        )
        for number, (path, _) in enumerate(entries):
            write(folder / "images" / path, jpeg(number))
    return UnedConfig(folder=str(folder), sets=sets)


def write_context(folder: Path, classes: int) -> PascalContextConfig:
    """One image to learn from and one to test on, with the background and three classes."""
    labels = np.array([[0, 1, 59, 59, 2, 2, 0, 0]] * 6, np.uint8)
    for name in ("train", "val"):
        write(folder / "ImageSets" / "SegmentationContext" / f"{name}.txt", "2008_000002\n")
    write(folder / "JPEGImages" / "2008_000002.jpg", jpeg())
    write(folder / "SegmentationClassContext" / "2008_000002.png", label_png(labels))
    return PascalContextConfig.model_validate({"folder": str(folder), "classes": classes})


def write_karpathy(folder: Path, name: str, images: str) -> KarpathyConfig:
    """Image 1 of the test split has six captions, image 4 is missing; other splits do not count."""
    entries = [
        {"filename": f"{n}.jpg", "split": split, "filepath": "val2014", "sentences": [{"raw": f" {n} {i} "}] * (5 + n)}
        for n, (split, i) in enumerate([("train", 0), ("test", 1), ("val", 2), ("restval", 3), ("test", 4)])
    ]
    write(folder / f"dataset_{name}.json", json.dumps({"images": entries, "dataset": name}))
    for number in range(4):
        write(folder / images / f"{number}.jpg", jpeg(number))
    return KarpathyConfig.model_validate({"folder": str(folder), "name": name})


def write_docci(folder: Path) -> DocciConfig:
    """An image of each split, of which the test image alone is there."""
    lines = [
        {"example_id": f"{split}_0", "split": split, "image_file": f"{split}_0.jpg", "description": f"of {split}"}
        for split in ("train", "test", "qual_dev", "qual_test")
    ]
    write(folder / "docci_descriptions.jsonlines", "\n".join(map(json.dumps, lines)) + "\n")
    write(folder / "images" / "test_0.jpg", jpeg())
    return DocciConfig(folder=str(folder))
