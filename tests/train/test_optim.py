"""Parameter groups: every parameter is in one of them, with its rate and decay."""

import pytest
from toy import toy_config

from tips_ray.train.optim import parameter_groups, set_rates
from tips_ray.train.state import new_state


def _groups(**values) -> list[tuple[set[str], float, float]]:
    """(names, lr_factor, decay_factor) of each group of the toy student."""
    student = new_state(config := toy_config(**values)).student
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    groups = parameter_groups(student, config.optimizer)
    found = [({names[id(p)] for p in group["params"]}, group["lr_factor"], group["decay_factor"]) for group in groups]
    assert sorted(name for members, *_ in found for name in members) == sorted(names.values())
    return found


def test_only_matrices_decay():
    (decayed, spared) = sorted(_groups(), key=lambda group: -group[2])
    assert [decayed[1:], spared[1:]] == [(1.0, 1.0), (1.0, 0.0)]
    for name in spared[0]:
        assert name.endswith((".bias", ".gamma", "_token", "_tokens", "pos_embed", "log_temperature")) or "norm" in name
    for name in decayed[0]:
        assert name.endswith((".weight", ".prototypes")) and "norm" not in name


def test_layers_learn_slower_the_deeper_they_lie_by_hand():
    """Image 3 blocks, text 2: 0.5^3, 0.5^2, 0.5 and 0.5^2, 0.5; embeddings one layer below their first block."""
    groups = _groups(image__depth=3, optimizer__layer_decay=0.5, optimizer__patch_embed_lr_factor=0.2)
    factor = {name: lr_factor for names, lr_factor, _ in groups for name in names}
    assert [factor[f"image.blocks.{block}.attn.qkv.weight"] for block in range(3)] == [0.125, 0.25, 0.5]
    assert [factor[f"text.blocks.{block}.norm1.bias"] for block in range(2)] == [0.25, 0.5]
    tokens = ("cls_token", "register_tokens", "mask_token", "pos_embed")
    assert {factor[f"image.{name}"] for name in tokens} == {0.0625}
    assert factor["text.token_embedding.weight"] == 0.125
    assert [factor[f"image.patch_embed.proj.{name}"] for name in ("weight", "bias")] == pytest.approx([0.0125] * 2)
    above = ("image.norm.weight", "text.norm.bias", "heads.distillation.prototypes", "temperature.log_temperature")
    assert {factor[name] for name in above} == {1.0}
    assert len({group[1:] for group in groups}) == len(groups)  # equal ones are merged


def test_an_update_takes_each_groups_part_of_rate_and_decay():
    state = new_state(toy_config(optimizer__layer_decay=0.5))
    set_rates(state.optimizer, 0.8, 0.3)
    for group in state.optimizer.param_groups:
        assert group["lr"] == pytest.approx(0.8 * group["lr_factor"])
        assert group["weight_decay"] == pytest.approx(0.3 * group["decay_factor"])
