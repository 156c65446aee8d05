"""ImageNet-1k, captions and UnED in the layouts of their publishers; instance retrieval."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import torch
from PIL import Image
from torch import tensor
from writers import jpeg

from tips_ray.config.evaluation import InstanceRetrievalConfig
from tips_ray.config.evaluation_data import CocoCaptionsConfig, DocciConfig, ImagenetConfig, KarpathyConfig, UnedConfig
from tips_ray.evaluation.datasets import load_dataset
from tips_ray.evaluation.datasets.examples import Instances
from tips_ray.evaluation.datasets.uned import _image_uri
from tips_ray.evaluation.instance_retrieval import instance_retrieval, others

WORDS = {"n01440764": "tench, Tinca tinca", "n01443537": "goldfish, Carassius auratus", "n02119789": "kit fox, Vulpes"}


def _write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def _cmyk() -> bytes:
    buffer = io.BytesIO()
    Image.new("CMYK", (8, 6), (0, 60, 120, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


def _categories(dataset) -> list[int]:
    assert dataset.test.categories_N is not None
    return dataset.test.categories_N.tolist()


def _write_devkit(folder: Path) -> ImagenetConfig:
    """Flat validation images. The devkit numbers the kit fox 1, the goldfish 2, the tench 3, an inner node 1001."""
    numbers = {1: "n02119789", 2: "n01443537", 3: "n01440764", 1001: "n00001740"}
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O")]
    rows = [(number, wordnet, WORDS.get(wordnet, "entity")) for number, wordnet in numbers.items()]
    devkit = folder / "ILSVRC2012_devkit_t12" / "data"
    devkit.mkdir(parents=True)
    scipy.io.savemat(devkit / "meta.mat", {"synsets": np.array(rows, dtype=kinds)[:, None]})
    _write(devkit / "ILSVRC2012_validation_ground_truth.txt", "3\n1\n2\n1\n")
    for row in (1, 2, 4):
        content = _cmyk() if row == 2 else jpeg(row)
        _write(folder / "val" / f"ILSVRC2012_val_{row:08d}.JPEG", content)
    return ImagenetConfig(folder=str(folder))


def test_numbers_of_the_devkit_become_places_in_the_order_of_wordnet_ids(tmp_path):
    dataset = load_dataset(_write_devkit(tmp_path), 4, with_train=False)
    assert dataset.category_names == ("tench", "goldfish", "kit fox")
    assert _categories(dataset) == [0, 2, 2] and dataset.left_out == {"missing (val)": 1}


def test_class_folders_of_imagenet_have_names_and_val_may_lack_classes(tmp_path):
    _write(tmp_path / "LOC_synset_mapping.txt", "\n".join(f"{wordnet} {words}" for wordnet, words in WORDS.items()))
    _write(tmp_path / "train" / "n01443537" / "n01443537_1.JPEG", jpeg(1))
    _write(tmp_path / "val" / "n02119789" / "ILSVRC2012_val_00000001.JPEG", jpeg(2))
    dataset = load_dataset(ImagenetConfig(folder=str(tmp_path)), 4)
    assert dataset.train and dataset.train.categories_N is not None
    assert dataset.train.categories_N.tolist() == [1] and _categories(dataset) == [2]
    assert dataset.category_names == ("tench", "goldfish", "kit fox")
    (tmp_path / "LOC_synset_mapping.txt").unlink()
    with pytest.raises(ValueError, match=r"no names of classes: put LOC_synset_mapping.txt or .*meta.mat into it"):
        load_dataset(ImagenetConfig(folder=str(tmp_path)), 4)


def _write_hub(folder: Path, label: int = 1, named: bool = True) -> ImagenetConfig:
    features = {"image": {"_type": "Image"}, "label": {"names": list(WORDS.values()), "_type": "ClassLabel"}}
    info = {b"huggingface": json.dumps({"info": {"features": features}}).encode()} if named else {}
    for part in ("train", "validation"):
        images = [{"bytes": jpeg(9), "path": "a.JPEG"}, {"bytes": b"", "path": None}, {"bytes": jpeg(8), "path": "b"}]
        table = pa.table({"image": images, "label": pa.array([label, 0, -1], pa.int64())})
        (folder / "data").mkdir(exist_ok=True)
        pq.write_table(table.replace_schema_metadata(info), folder / "data" / f"{part}-00000-of-00001.parquet")
    return ImagenetConfig(folder=str(folder))


def test_the_parquet_of_the_hub_has_names_in_its_metadata(tmp_path):
    dataset = load_dataset(_write_hub(tmp_path), 4)
    assert dataset.category_names == ("tench", "goldfish", "kit fox") and _categories(dataset) == [1]
    assert dataset.train and len(dataset.train.images_NSS3) == 1
    counts = {"zero bytes": 1, "no label": 1}
    assert dataset.left_out == {f"{what} ({part})": n for what, n in counts.items() for part in ("train", "val")}
    with pytest.raises(ValueError, match="has label 3, and its metadata name 3 classes"):
        load_dataset(_write_hub(tmp_path, label=3), 4)
    with pytest.raises(ValueError, match="no names of classes in its metadata"):
        load_dataset(_write_hub(tmp_path, named=False), 4)


def test_a_folder_without_any_layout_of_imagenet_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"has neither val/ with images nor data/validation-\*.parquet"):
        load_dataset(ImagenetConfig(folder=str(tmp_path)), 4)


@pytest.mark.parametrize(("name", "images"), [("flickr30k", "flickr30k-images"), ("coco", "val2014")])
def test_karpathys_test_split_has_the_first_five_captions(name, images, tmp_path):
    entries = [
        {"filename": f"{n}.jpg", "split": split, "filepath": "val2014", "sentences": [{"raw": f" {n} {i} "}] * (5 + n)}
        for n, (split, i) in enumerate([("train", 0), ("test", 1), ("val", 2), ("restval", 3), ("test", 4)])
    ]
    _write(tmp_path / f"dataset_{name}.json", json.dumps({"images": entries, "dataset": name}))
    for number in range(4):
        _write(tmp_path / images / f"{number}.jpg", jpeg(number))
    dataset = load_dataset(KarpathyConfig(folder=str(tmp_path), name=name), 4)
    assert dataset.test.captions == {"caption": [["1 1"] * 5]}, "six captions: the first five count"
    assert dataset.left_out == {"missing": 1} and dataset.train is None
    _write(tmp_path / f"dataset_{name}.json", "[]")
    with pytest.raises(ValueError, match="is not Karpathy's JSON"):
        load_dataset(KarpathyConfig(folder=str(tmp_path), name=name), 4)


def test_captions_of_coco_val2017_belong_to_their_images_by_number(tmp_path):
    content = {
        "images": [{"id": 139, "file_name": "000000000139.jpg"}, {"id": 7, "file_name": "000000000007.jpg"}],
        "annotations": [{"id": n, "image_id": 139 if n % 2 else 7, "caption": f"c{n}"} for n in (3, 1, 2)],
    }
    content["images"].append({"id": 8, "file_name": "000000000008.jpg"})
    _write(tmp_path / "annotations" / "captions_val2017.json", json.dumps(content))
    for number in (7, 139):
        _write(tmp_path / "val2017" / f"{number:012d}.jpg", jpeg(number))
    dataset = load_dataset(CocoCaptionsConfig(folder=str(tmp_path)), 4)
    assert dataset.test.captions == {"caption": [["c1", "c3"], ["c2"]]} and dataset.left_out == {"no caption": 1}


def test_docci_is_tested_on_its_test_images(tmp_path):
    lines = [
        {"example_id": f"{split}_0", "split": split, "image_file": f"{split}_0.jpg", "description": f"of {split}"}
        for split in ("train", "test", "qual_dev", "qual_test")
    ]
    _write(tmp_path / "docci_descriptions.jsonlines", "\n".join(map(json.dumps, lines)) + "\n")
    _write(tmp_path / "images" / "test_0.jpg", jpeg())
    dataset = load_dataset(DocciConfig(folder=str(tmp_path)), 4)
    assert dataset.test.captions == {"caption": [["of test"]]} and not dataset.left_out
    _write(tmp_path / "docci_descriptions.jsonlines", '{"split": "test"}\n')
    with pytest.raises(ValueError, match="line 1 has no description and no image_file; download it again"):
        load_dataset(DocciConfig(folder=str(tmp_path)), 4)


def _write_uned(folder: Path) -> UnedConfig:
    """Cars search themselves; Met has an index; its query 1 has two classes, and one is nowhere in the index."""
    files = {
        "cars/test": [("cars/car_ims/1.jpg", 0), ("cars/car_ims/2.jpg", 0), ("cars/car_ims/3.jpg", 5)],
        "met/test": [("met/test_met/1.jpg", [0, 9]), ("met/test_met/2.jpg", 4)],
        "met/index": [("met/MET/1.jpg", 0), ("met/MET/2.jpg", 1)],
    }
    for name, entries in files.items():
        content = [{"path": path, "class_id": label} for path, label in entries]
        _write(folder / "info_files" / f"{name}.json", json.dumps(content))
        for number, (path, _) in enumerate(entries):
            _write(folder / "images" / path, jpeg(number))
    return UnedConfig(folder=str(folder), sets=("cars", "met"))


def test_uned_reads_queries_and_the_index_of_its_own(tmp_path):
    dataset = load_dataset(_write_uned(tmp_path), 4)
    instances = dataset.test.instances
    assert instances and len(dataset.test.images_NSS3) == 7 and instances.domains == ("cars", "met")
    assert instances.domain_N.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert instances.is_index_N.tolist() == [True, True, True, False, False, True, True]
    assert instances.is_query_N.tolist() == [True, True, False, True, False, False, False]
    assert instances.labels[3] == (0, 9)
    assert dataset.left_out == {"queries without another image of their class": 2}
    (tmp_path / "info_files" / "met" / "index.json").write_text('{"path": 1}')
    with pytest.raises(ValueError, match="index.json is not an info file of UnED, a list of path and class_id"):
        load_dataset(UnedConfig(folder=str(tmp_path), sets=("met",)), 4)


def test_escaped_names_of_rp2k_are_found(tmp_path):
    assert _image_uri(f"{tmp_path}/rp2k/all/test/\u4e2d/1.jpg") == f"{tmp_path}/rp2k/all/test/#U4e2d/1.jpg"
    assert _image_uri(f"{tmp_path}/cars/1.jpg") == f"{tmp_path}/cars/1.jpg"


def _toy() -> tuple[torch.Tensor, Instances]:
    """Two domains on a circle (degrees below). a: places 0..3, each also the index; b: query 4, index 5 and 6."""
    degrees = tensor([0.0, 0.0, 40.0, 90.0, 1.0, 3.0, 180.0]).deg2rad()
    labels = [(1,), (1,), (1,), (2,), (1, 7), (1,), (7,)]
    own = tensor([True] * 4 + [False, True, True])
    asks = tensor([True, True, True, False, True, False, False])
    instances = Instances(("a", "b"), tensor([0, 0, 0, 0, 1, 1, 1]), labels, asks, own)
    return torch.stack([degrees.cos(), degrees.sin()], dim=1), instances


def test_a_query_leaves_itself_out_by_identity_and_not_by_rank():
    """Places 0 and 1 are equal: by rank one of them would find itself, or lose its right answer."""
    embedding, _ = _toy()
    found = others(embedding, tensor([0, 1]), tensor([0, 1, 2, 3]), 2)
    assert found.tolist() == [[1, 2], [0, 2]]
    assert others(embedding, tensor([0]), tensor([0, 1]), 5).tolist() == [[1, -1]]


def test_an_instance_is_found_by_class_and_domain():
    """By hand. a, separate: 0 -> 1, 1 -> 0, 2 -> 0 or 1: all right. Merged: image 5 at 3 degrees is nearer to 2.

    Its class has the same number and is of another domain: wrong. b: 4 -> 5 alone, merged -> 0 at 1 degree: wrong.
    """
    embedding, instances = _toy()
    found = instance_retrieval(embedding, instances, InstanceRetrievalConfig(data="toy", mmp_at=2))
    scores = found.scores
    assert scores["separate/a_recall_at_1"] == 1 and scores["separate/b_recall_at_1"] == 1
    assert scores["merged/a_recall_at_1"] == pytest.approx(2 / 3) and scores["merged/b_recall_at_1"] == 0
    assert scores["merged/recall_at_1"] == pytest.approx(1 / 3)
    # separate: 0 and 1 have two right images, both first; 2 too; b has two right images in its index of two
    assert scores["separate/a_mmp_at_2"] == 1 and scores["separate/b_mmp_at_2"] == 1
    # merged: 0 finds 1 and then 5: 1/2; the same for 1; 2 finds 5 and then 0 or 1: 1/2
    assert scores["merged/a_mmp_at_2"] == pytest.approx(1 / 2) and scores["merged/b_mmp_at_2"] == 0
    assert found.standard_errors["merged/a_recall_at_1"] == pytest.approx((2 / 9 / 3) ** 0.5)
    assert found.standard_errors["merged/recall_at_1"] == pytest.approx((2 / 9 / 3) ** 0.5 / 2)
    assert instances.relevant_N.tolist() == [2, 2, 2, 0, 2, 0, 0]
