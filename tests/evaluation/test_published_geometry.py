"""NYUv2 and NAVI in the layouts of their owners. Pictures of NYUv2 have 480 x 640 pixels."""

import gzip
import pickle
import sys

import numpy as np
import pytest
import scipy.io
import torch
from published_sets import HEIGHT, WIDTH, encoded, write_bts, write_geonet, write_labelled, write_navi
from torch import tensor

from tips_ray.config.evaluation_data import NyuLabelledConfig
from tips_ray.evaluation.datasets import load_dataset
from tips_ray.evaluation.datasets.navi import depth_of, normals_from_depth, relative, square_around


def test_depth_of_bts_is_in_millimetres_and_0_is_none(tmp_path):
    config = write_bts(tmp_path)
    dataset = load_dataset(config, 14)
    assert dataset.train and len(dataset.train.images_NSS3) == 2 and dataset.left_out == {"no depth (train)": 1}
    (depth_m,) = dataset.test.depth_m
    torch.testing.assert_close(depth_m[tensor([0, 100, 200]), tensor([0, 0, 320])], tensor([0, 2.5, 10.5]))
    thinned = load_dataset(config.model_copy(update={"every": 2}), 14)
    assert thinned.train and len(thinned.train.images_NSS3) == 1


def test_depth_of_8_bits_and_a_missing_list_are_told(tmp_path):
    config = write_bts(tmp_path)
    path = tmp_path / "official_splits/test/bathroom/sync_depth_00045.png"
    path.write_bytes(encoded(np.full((HEIGHT, WIDTH), 7, np.uint8), "PNG"))
    with pytest.raises(ValueError, match="has 8 bits; depth is a PNG of 16 bits in millimetres"):
        load_dataset(config, 14, with_train=False)
    (tmp_path / "nyudepthv2_test_files_with_gt.txt").unlink()
    with pytest.raises(ValueError, match="test_files_with_gt.txt is missing: copy it from train_test_inputs of BTS"):
        load_dataset(config, 14, with_train=False)


def test_the_labelled_file_is_read_in_matlabs_order_and_counted_from_1(tmp_path):
    folder = write_labelled(tmp_path)
    dataset = load_dataset(NyuLabelledConfig(folder=str(folder)), 14)
    assert dataset.train and dataset.train.images_NSS3[:, 0, 0, 0].tolist() == [0, 100]
    assert dataset.test.images_NSS3[0, 0, [0, -1]].tolist() == [[50, 0, 0]] * 2
    assert dataset.test.images_NSS3[0, -1, [0, -1]].tolist() == [[50, 200, 0]] * 2
    (depth_m,) = dataset.test.depth_m
    assert depth_m.shape == (HEIGHT, WIDTH) and depth_m[0, 0] == 2 and depth_m[-1, 0] == 6
    raw = load_dataset(NyuLabelledConfig(folder=str(folder), raw_depth=True, center_crop_px=480), 14, False)
    assert raw.test.depth_m[0].shape == (480, 480) and raw.test.depth_m[0].all(), "the hole lies left of the crop"
    holes = load_dataset(NyuLabelledConfig(folder=str(folder), raw_depth=True), 14, False).test.depth_m[0]
    assert not holes[:, :20].any() and holes[:, 20:].all()


def test_a_labelled_file_that_is_none_is_told(tmp_path):
    folder = write_labelled(tmp_path)
    (folder / "nyu_depth_v2_labeled.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    with pytest.raises(ValueError, match="is no MATLAB file of version 7.3 .*; download it again"):
        load_dataset(NyuLabelledConfig(folder=str(folder)), 14)
    (folder / "splits.mat").write_bytes(b"no split")
    with pytest.raises(ValueError, match="splits.mat is no MATLAB file of version 5"):
        load_dataset(NyuLabelledConfig(folder=str(folder)), 14)


def test_without_h5py_the_labelled_file_says_what_to_install(tmp_path, monkeypatch):
    scipy.io.savemat(tmp_path / "splits.mat", {"trainNdxs": np.array([[1]]), "testNdxs": np.array([[1]])})
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match=r"needs h5py: install tips-ray\[nyu\]"):
        load_dataset(NyuLabelledConfig(folder=str(tmp_path)), 14)


def test_normals_of_nyu_have_length_1_or_0_and_images_are_cropped(tmp_path):
    dataset = load_dataset(write_geonet(tmp_path), 14)
    (judged,) = dataset.test.normals
    assert judged.shape == (3, 480, 480) and judged[:, 0, 0].tolist() == [-1, 0, 0] and not judged[:, 300].any()
    assert dataset.train and dataset.train.normals[0][:, 0, 0].tolist() == [0, 0, 1]
    assert dataset.train.images_NSS3[0, 0, 0].tolist() == [144, 132, 107]  # 2 x 122.175 - 100 and so on


class _Evil:
    def __reduce__(self):
        return print, ("run",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys):
    config = write_geonet(tmp_path)
    (tmp_path / "all_normals.pklz").write_bytes(gzip.compress(pickle.dumps({"all_normals": _Evil()})))
    with pytest.raises(ValueError, match=r"holds no array all_normals: it holds builtins.print, which is no array"):
        load_dataset(config, 14)
    assert "run" not in capsys.readouterr().out


def test_navi_learns_from_scenes_and_is_tested_in_the_wild(tmp_path):
    config = write_navi(tmp_path)
    dataset = load_dataset(config, 28)
    assert dataset.train and len(dataset.train.images_NSS3) == 2 and len(dataset.test.images_NSS3) == 1
    (depth_m,) = dataset.test.depth_m
    assert depth_m.shape == (512, 512) and dataset.test.normals[0].shape == (3, 512, 512)
    assert depth_m[depth_m > 0].sub(0.4).abs().max() < 1e-4, "400 mm"
    assert depth_m[256, 5] > 0 and depth_m[256, 500] > 0, "the object fills the width of the crop"
    fourth = load_dataset(config.model_copy(update={"every": 4}), 28)
    assert fourth.train and len(fourth.train.images_NSS3) == 1
    scaled = load_dataset(config.model_copy(update={"relative_depth": True}), 28).test.depth_m[0]
    assert scaled[scaled > 0].sub(0.01).abs().max() < 1e-6


def test_a_wild_photo_without_depth_is_counted(tmp_path):
    config = write_navi(tmp_path)
    (tmp_path / "car/multiview-00-pixel_5/depth/001.png").unlink()
    assert load_dataset(config, 28).left_out == {"missing (train)": 1}


def test_depth_of_navi_is_the_inverse_of_its_disparity():
    values = np.array([[0, 65_535, 6_553]], np.uint16)
    torch.testing.assert_close(depth_of(values), tensor([[0.0, 0.01, 0.1]]), rtol=1e-3, atol=0)
    torch.testing.assert_close(relative(tensor([[0.0, 0.2, 0.4, 0.3]])), tensor([[0.0, 0.01, 1.0, 0.505]]))


def test_normals_of_a_plane_are_its_normal():
    """Depth of the plane n . P = d along the ray (x / f, y / f, 1) is d / (n . ray)."""
    normal, focal_px = tensor([0.6, 0.0, 0.8]).double(), 20.0
    y, x = torch.meshgrid(torch.arange(6) + 0.5, torch.arange(8) + 0.5, indexing="ij")
    rays_HW3 = torch.stack([x / focal_px, y / focal_px, torch.ones_like(x)], dim=-1).double()
    depth = (2 / (rays_HW3 @ normal)).float()
    found = normals_from_depth(depth, focal_px)
    torch.testing.assert_close(found[:, 2, 3], normal.float(), atol=1e-4, rtol=0)
    assert not found[:, 0].any() and not found[:, :, -1].any()


def test_a_normal_is_the_mean_of_four_triangles():
    """A naive reference on depth at random: a pixel with neighbours left, up, right, down in this order."""
    depth, focal_px = 1 + torch.rand(5, 5, generator=torch.Generator().manual_seed(0)), 8.0

    def point(y: int, x: int) -> np.ndarray:
        z = depth[y, x].item()
        return np.array([(x + 0.5) * z / focal_px, (y + 0.5) * z / focal_px, z])

    edges = [point(*place) - point(2, 2) for place in ((2, 1), (1, 2), (2, 3), (3, 2))]
    summed = sum(np.cross(edges[n], edges[(n + 1) % 4]) for n in range(4))
    expected = torch.from_numpy(summed / np.linalg.norm(summed)).float()
    torch.testing.assert_close(normals_from_depth(depth, focal_px)[:, 2, 2], expected, atol=1e-5, rtol=0)


def test_a_square_around_an_object_stays_in_the_picture():
    mask = torch.zeros(10, 10, dtype=torch.bool)
    mask[2:4, 2:7] = True
    assert square_around(mask) == (1, 2, 4)  # box of 1 x 4: three rows are missing, one goes above
    mask = torch.zeros(10, 10, dtype=torch.bool)
    mask[8:10, 1:8] = True
    assert square_around(mask) == (3, 1, 6)  # one row would lie below the picture: all five go above
