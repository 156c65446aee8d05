"""The DPT decoder and the tasks that train it."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tips_ray.config.evaluation import DecoderConfig, DptDepthConfig, NormalsConfig
from tips_ray.evaluation.depth_bins import dpt_depth
from tips_ray.evaluation.dpt import Decoder, LayerExamples
from tips_ray.evaluation.normals import dpt_normals

DECODER = DecoderConfig(hidden=16, steps=60, learning_rate=5e-3, batch_images=8)


def _layers(images: int, seed: int) -> list[Tensor]:
    """Layers of images with a 3 x 3 grid."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(images, 9, 6, generator=generator) for _ in range(4)]


def _pixels(patches_NLC: Tensor) -> list[Tensor]:
    """Maps [C, 9, 9] of the images."""
    square = patches_NLC.mT.unflatten(2, (3, 3))
    return list(square.repeat_interleave(3, 2).repeat_interleave(3, 3))


def test_maps_are_eight_times_the_grid_and_every_layer_counts():
    torch.manual_seed(0)
    decoder, layers = Decoder(6, 16, 5).eval(), _layers(2, 0)
    whole = decoder(layers)
    assert whole.shape == (2, 5, 24, 24)
    for place in range(4):
        others = [0 * layer if place == number else layer for number, layer in enumerate(layers)]
        assert not torch.allclose(decoder(others), whole, atol=1e-4)


def _surfaces(images: int, seed: int) -> LayerExamples:
    """Examples whose normals follow from the first and the last layer; the middle row of pixels has none."""
    layers = _layers(images, seed)
    normals = F.normalize(layers[0][..., :3] + layers[3][..., 3:], dim=-1)
    maps = _pixels(normals)
    for one in maps:
        one[:, 4] = 0
    return LayerExamples(layers, maps)


@pytest.mark.heavy
def test_normals_are_learned_from_the_layers_and_not_from_noise():
    config = NormalsConfig(data="toy", decoder=DECODER, train_size_px=9)
    train, test = _surfaces(60, 0), _surfaces(8, 1)
    found = dpt_normals(train, test, config)
    shuffled = LayerExamples([layer.flip(0) for layer in train.layers], train.targets)
    assert found.scores["rmse_degrees"] < 55 < 80 < dpt_normals(shuffled, test, config).scores["rmse_degrees"]
    assert all(torch.allclose(one.norm(dim=0), torch.ones(9, 9), atol=1e-5) for one in found.predictions)


def test_a_normal_that_is_not_of_length_one_is_named_before_training():
    train = _surfaces(4, 0)
    train.targets[2][:, 0] *= 2
    with pytest.raises(ValueError, match="target has a vector of length 2; normals must be of length 1"):
        dpt_normals(train, train, NormalsConfig(data="toy"))


@pytest.mark.heavy
def test_depth_is_learned_from_the_layers_and_not_from_noise():
    def examples(images: int, seed: int) -> LayerExamples:
        layers = _layers(images, seed)
        depth = (1 + 0.3 * layers[1][..., :1] - 0.2 * layers[2][..., :1]).exp().clamp(max=9)
        maps = [one[0] for one in _pixels(depth)]
        for one in maps:
            one[:2] = 50.0  # beyond max_depth_m
        return LayerExamples(layers, maps)

    config = DptDepthConfig(data="toy", decoder=DECODER, train_size_px=9, num_bins=32)
    train, test = examples(60, 0), examples(8, 1)
    found = dpt_depth(train, test, config)
    shuffled = LayerExamples([layer.flip(0) for layer in train.layers], train.targets)
    untaught = dpt_depth(shuffled, test, config)
    assert found.scores["rmse_m"] < 0.75 * untaught.scores["rmse_m"]
    assert [tuple(one.shape) for one in found.predictions_m] == [(9, 9)] * 8
