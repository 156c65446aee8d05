"""ImageNet-1k, captions and UnED in the layouts of their publishers; instance retrieval."""

import json

import pytest
import torch
from published_sets import WORDS, write, write_devkit, write_docci, write_hub, write_karpathy, write_uned
from torch import tensor
from writers import jpeg

from tips_ray.config.evaluation import InstanceRetrievalConfig
from tips_ray.config.evaluation_data import CocoCaptionsConfig, ImagenetConfig, UnedConfig
from tips_ray.evaluation.datasets import load_dataset
from tips_ray.evaluation.datasets.examples import Instances
from tips_ray.evaluation.datasets.uned import _image_uri
from tips_ray.evaluation.instance_retrieval import instance_retrieval, others


def _categories(dataset) -> list[int]:
    assert dataset.test.categories_N is not None
    return dataset.test.categories_N.tolist()


def test_numbers_of_the_devkit_become_places_in_the_order_of_wordnet_ids(tmp_path):
    dataset = load_dataset(write_devkit(tmp_path), 4, with_train=False)
    assert dataset.category_names == ("tench", "goldfish", "kit fox")
    assert _categories(dataset) == [0, 2, 2] and dataset.left_out == {"missing (val)": 1}


def test_class_folders_of_imagenet_have_names_and_val_may_lack_classes(tmp_path):
    write(tmp_path / "LOC_synset_mapping.txt", "\n".join(f"{wordnet} {words}" for wordnet, words in WORDS.items()))
    write(tmp_path / "train" / "n01443537" / "n01443537_1.JPEG", jpeg(1))
    write(tmp_path / "val" / "n02119789" / "ILSVRC2012_val_00000001.JPEG", jpeg(2))
    dataset = load_dataset(ImagenetConfig(folder=str(tmp_path)), 4)
    assert dataset.train and dataset.train.categories_N is not None
    assert dataset.train.categories_N.tolist() == [1] and _categories(dataset) == [2]
    assert dataset.category_names == ("tench", "goldfish", "kit fox")
    (tmp_path / "LOC_synset_mapping.txt").unlink()
    with pytest.raises(ValueError, match=r"no names of classes: put LOC_synset_mapping.txt or .*meta.mat into it"):
        load_dataset(ImagenetConfig(folder=str(tmp_path)), 4)


def test_the_parquet_of_the_hub_has_names_in_its_metadata(tmp_path):
    dataset = load_dataset(write_hub(tmp_path), 4)
    assert dataset.category_names == ("tench", "goldfish", "kit fox") and _categories(dataset) == [1, 2, 0]
    assert dataset.train and len(dataset.train.images_NSS3) == 3
    counts = {"zero bytes": 1, "no label": 1}
    assert dataset.left_out == {f"{what} ({part})": n for what, n in counts.items() for part in ("train", "val")}
    with pytest.raises(ValueError, match="has label 3, and its metadata name 3 classes"):
        load_dataset(write_hub(tmp_path, label=3), 4)
    with pytest.raises(ValueError, match="no names of classes in its metadata"):
        load_dataset(write_hub(tmp_path, named=False), 4)


def test_a_folder_without_any_layout_of_imagenet_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"has neither val/ with images nor data/validation-\*.parquet"):
        load_dataset(ImagenetConfig(folder=str(tmp_path)), 4)


@pytest.mark.parametrize(("name", "images"), [("flickr30k", "flickr30k-images"), ("coco", "val2014")])
def test_karpathys_test_split_has_the_first_five_captions(name, images, tmp_path):
    config = write_karpathy(tmp_path, name, images)
    dataset = load_dataset(config, 4)
    assert dataset.test.captions == {"caption": [["1 1"] * 5]}, "six captions: the first five count"
    assert dataset.left_out == {"missing": 1} and dataset.train is None
    write(tmp_path / f"dataset_{name}.json", "[]")
    with pytest.raises(ValueError, match="is not Karpathy's JSON"):
        load_dataset(config, 4)


def test_captions_of_coco_val2017_belong_to_their_images_by_number(tmp_path):
    content = {
        "images": [{"id": 139, "file_name": "000000000139.jpg"}, {"id": 7, "file_name": "000000000007.jpg"}],
        "annotations": [{"id": n, "image_id": 139 if n % 2 else 7, "caption": f"c{n}"} for n in (3, 1, 2)],
    }
    content["images"].append({"id": 8, "file_name": "000000000008.jpg"})
    write(tmp_path / "annotations" / "captions_val2017.json", json.dumps(content))
    for number in (7, 139):
        write(tmp_path / "val2017" / f"{number:012d}.jpg", jpeg(number))
    dataset = load_dataset(CocoCaptionsConfig(folder=str(tmp_path)), 4)
    assert dataset.test.captions == {"caption": [["c1", "c3"], ["c2"]]} and dataset.left_out == {"no caption": 1}


def test_docci_is_tested_on_its_test_images(tmp_path):
    config = write_docci(tmp_path)
    dataset = load_dataset(config, 4)
    assert dataset.test.captions == {"caption": [["of test"]]} and not dataset.left_out
    write(tmp_path / "docci_descriptions.jsonlines", '{"split": "test"}\n')
    with pytest.raises(ValueError, match="line 1 has no description and no image_file; download it again"):
        load_dataset(config, 4)


def test_uned_reads_queries_and_the_index_of_its_own(tmp_path):
    dataset = load_dataset(write_uned(tmp_path, ("cars", "met")), 4)
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
    more = instance_retrieval(embedding, instances, InstanceRetrievalConfig(data="toy", index=("separate",), mmp_at=3))
    assert more.scores["separate/a_mmp_at_3"] == 1, "two right images: the third place does not count"
    assert instances.relevant_N.tolist() == [2, 2, 2, 0, 2, 0, 0]
