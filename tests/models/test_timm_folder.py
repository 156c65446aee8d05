from typing import Any

import pytest
import timm
import torch
from toy_model import toy_model

from tips_ray.config.variants import VARIANTS
from tips_ray.models import export_timm, image_encoder

KINDS = [{"gelu": "tanh"}, {"gelu": "erf"}, {"ffn": "swiglu"}, {"depth": 2, "patch_size_px": 7}]
KINDS += [{"width": 56, "ffn_hidden": 61}]  # int(56 * (61 / 56)) is 60


def _loaded(folder, **options) -> Any:
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **options).eval()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_timm_gives_our_features_at_the_native_size(kind, tmp_path):
    model = toy_model(**kind)
    folder = model.export_timm(tmp_path / "folder")
    theirs, image = _loaded(folder).double(), model.image.double()
    images = torch.rand(2, 3, 56, 56, dtype=torch.float64)
    expected, tokens_BTD = image(images), theirs.forward_features(images)
    found = tokens_BTD[:, 0], tokens_BTD[:, 1], tokens_BTD[:, 2:]
    torch.testing.assert_close(found, tuple(expected), atol=1e-6, rtol=0)
    torch.testing.assert_close(theirs(images), expected.cls_web_BD, atol=1e-6, rtol=0)


@torch.no_grad()
def test_features_only_gives_maps_of_the_last_blocks(tmp_path):
    for depth, maps in [(2, 2), (4, 3)]:
        folder = export_timm(toy_model(depth=depth), tmp_path / str(depth))
        network = _loaded(folder, features_only=True)
        assert [tuple(found.shape) for found in network(torch.rand(1, 3, 56, 56))] == [(1, 32, 4, 4)] * maps


def test_timm_prepares_images_as_tips_does(tmp_path):
    from PIL import Image
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    folder = toy_model().export_timm(tmp_path / "folder")
    network = _loaded(folder)
    assert not network.pretrained_cfg.get("license") and not network.pretrained_cfg.get("tag")
    image = Image.new("RGB", (90, 60), "black")
    image.paste((255, 0, 51), (0, 0, 10, 60))  # the left edge: a crop would lose it
    pixels: Any = create_transform(**resolve_data_config({}, model=network))(image)  # pyright: ignore[reportCallIssue]
    assert pixels.shape == (3, 56, 56)
    torch.testing.assert_close(pixels[:, 0, 0], torch.tensor([1, 0, 0.2]))


@pytest.mark.heavy
@pytest.mark.parametrize("variant", VARIANTS)
def test_published_sizes_are_timms_own_architectures(variant):
    from tips_ray.models.timm_folder import _architecture, _model_args

    with torch.device("meta"):
        config = image_encoder(variant).config
        network = timm.create_model(_architecture(config), **_model_args(config))
        names = {"B": "base", "L": "large", "So400m": "so400m", "g": "giant"}
        if variant in names:
            assert _architecture(config) == f"vit_{names[variant]}_patch14_reg1_tipsv2"
            published = timm.create_model(_architecture(config)).state_dict()
            shapes = {name: value.shape for name, value in network.state_dict().items()}
            assert shapes == {name: value.shape for name, value in published.items()}
    hidden = network.blocks[0].mlp.fc2.in_features  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]
    assert hidden == config.ffn_hidden


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        export_timm(toy_model().image, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
