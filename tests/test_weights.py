"""Weights sources, and the sentences where a config does not fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from toy import toy_config
from toy_model import toy_model
from toy_start import released, sizes_of, trained_run

from tips_ray.config import RunConfig, override
from tips_ray.errors import Faults
from tips_ray.models import train_tokenizer
from tips_ray.weights import require_its_vocabulary, start_source, teacher_source


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    trained_run(str(folder), 1, 2)
    return folder


def _start(uri: object, **values: Any):
    return start_source(toy_config(start__uri=str(uri), **values))


def _refusal(uri: object, **values: Any) -> str:
    with pytest.raises(ValueError) as refused:
        _start(uri, **values)
    return str(refused.value)


@pytest.mark.heavy
def test_what_lies_there_decides_what_it_is(run, tmp_path):
    model = released(tmp_path / "npz")
    model.export_transformers(tmp_path / "folder")
    fitting = sizes_of(model)
    assert _start(run).kind == "run"
    assert _start(run / "checkpoints" / "step-00000001").kind == "checkpoint"
    assert _start(tmp_path / "folder", **fitting).kind == "transformers"
    for name in ("npz", "npz/*.npz", "npz/text.npz"):
        assert _start(tmp_path / name, **fitting).kind == "official"


def test_a_run_is_described_by_its_newest_step_and_a_release_by_its_encoders(run, tmp_path):
    model = released(tmp_path)
    assert _start(run).described() == f"{run} at step 2"
    assert _start(run / "checkpoints" / "step-00000001").described() == f"{run} at step 1"
    assert _start(tmp_path, **sizes_of(model)).described() == f"the image encoder and text encoder of {tmp_path}"


def test_all_sizes_that_differ_stand_in_one_sentence_with_both_values(run):
    text = _refusal(run, image__depth=3, text__vocab_size=60, head__bottleneck=8, image__gelu="erf")
    assert text == (
        f"start.uri ({run}) has other sizes: image.depth (3) must be 2, image.gelu (erf) must be tanh, "
        "text.vocab_size (60) must be 50, head.bottleneck (8) must be 16, as it is there"
    )


def test_sizes_that_hold_no_weights_may_differ(run):
    _start(run, image__image_size_px=112, image__drop_path_rate=0.1, image__layer_scale_init=0.1, text__max_tokens=99)


def test_a_release_says_nothing_of_gelu_and_a_transformers_folder_does(tmp_path):
    model = released(tmp_path / "npz")
    model.export_transformers(tmp_path / "folder")
    other = {**sizes_of(model), "image__gelu": "erf"}
    assert model.image.config.gelu == "tanh"
    _start(tmp_path / "npz", **other)
    assert "image.gelu (erf) must be tanh" in _refusal(tmp_path / "folder", **other)


def test_gated_layers_have_no_gelu_that_could_differ(tmp_path):
    model = toy_model(ffn="swiglu")
    model.export_transformers(tmp_path / "folder")
    _start(tmp_path / "folder", **{**sizes_of(model), "image__gelu": "erf"})


def test_heads_of_a_published_width_are_those_that_were_published(tmp_path):
    model = released(tmp_path, width=384, num_heads=6, depth=1)
    fitting = sizes_of(model) | {"text__num_heads": 6}
    _start(tmp_path, **fitting)
    assert "image.num_heads (4) must be 6" in _refusal(tmp_path, **{**fitting, "image__num_heads": 4})


@pytest.mark.parametrize("name", ["nothing", "nothing.npz", "nothing/*.npz"])
def test_a_place_without_weights_is_told_with_what_could_lie_there(tmp_path, name):
    text = _refusal(tmp_path / name)
    assert text.startswith(f"start.uri ({tmp_path / name}): there is neither a run folder") and "npz" in text


def test_a_run_that_has_saved_nothing_yet_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(toy_config().model_dump(mode="json")))
    assert "is a run without a checkpoint" in _refusal(tmp_path)
    (tmp_path / "checkpoints/step-00000004").mkdir(parents=True)
    (tmp_path / "checkpoints/step-00000004/manifest.json").write_text("{")
    assert "is a run whose 1 checkpoints are damaged or cut; give another run" in _refusal(tmp_path)


def test_a_config_of_something_else_is_refused(run, tmp_path):
    for text in ("model: paligemma\n", "just words\n"):
        (tmp_path / "config.yaml").write_text(text)
        if not (tmp_path / "checkpoints").exists():
            (run / "checkpoints").rename(tmp_path / "checkpoints")
        try:
            assert "config.yaml is not the config of a run" in _refusal(tmp_path)
        finally:
            (tmp_path / "checkpoints").rename(run / "checkpoints")


def test_a_checkpoint_outside_of_its_run_is_refused(run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (run / "checkpoints" / "step-00000001").rename(tmp_path / "elsewhere" / "step-00000001")
    try:
        text = _refusal(tmp_path / "elsewhere" / "step-00000001")
    finally:
        (tmp_path / "elsewhere" / "step-00000001").rename(run / "checkpoints" / "step-00000001")
    assert f"is a checkpoint outside of a run: {tmp_path} has no config.yaml" in text


def test_two_image_encoders_are_one_too_many(tmp_path):
    released(tmp_path)
    (tmp_path / "other.npz").write_bytes((tmp_path / "vision.npz").read_bytes())
    assert "both hold image encoders; name one of them" in _refusal(tmp_path)


@pytest.mark.parametrize("content", [b"no zip", b""])
def test_a_damaged_release_is_refused(tmp_path, content):
    (tmp_path / "vision.npz").write_bytes(content)
    assert "vision.npz is not an npz file" in _refusal(tmp_path)


def test_arrays_of_something_else_are_refused(tmp_path):
    np.savez(tmp_path / "vision.npz", weights=np.zeros(3))
    assert "'patch_embed.proj.weight' (D, 3, patch, patch) is missing" in _refusal(tmp_path)


def test_another_architectures_folder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    assert "start.uri" in (text := _refusal(tmp_path)) and "model_type ('siglip') must be 'tipsv2'" in text


def test_a_checkpoint_whose_manifest_is_damaged_is_refused(tmp_path):
    trained_run(str(tmp_path), 1)
    checkpoint = tmp_path / "checkpoints" / "step-00000001"
    (checkpoint / "manifest.json").write_text("{")
    assert _refusal(checkpoint) == (
        f"start.uri ({checkpoint}): its manifest.json is damaged; give another checkpoint, or the run's folder"
    )


def _teacher(uri: object, **values: Any):
    return teacher_source(toy_config(objective__teacher="frozen", objective__frozen_teacher=str(uri), **values))


def test_a_teacher_must_score_the_same_prototypes_on_the_same_patches(run):
    assert _teacher(run, image__width=16, text__width=16, head__hidden=8, head__bottleneck=4).kind == "run"
    with pytest.raises(ValueError, match=rf"head.num_prototypes \(25\) must be 24, as in .*frozen_teacher \({run}\)"):
        _teacher(run, head__num_prototypes=25)
    with pytest.raises(ValueError, match=r"image.patch_size_px \(28\) must be 14, as in objective.frozen_teacher"):
        _teacher(run, image__patch_size_px=28)


def test_a_release_has_no_heads_to_teach_with(tmp_path):
    released(tmp_path)
    with pytest.raises(ValueError, match=r"objective.frozen_teacher .*without prototype heads.*give the folder of a"):
        _teacher(tmp_path)


RUN = {"name": "second", "data": {"sources": [{"uri": "a"}]}, "global_batch_images": 4}


def _vocabulary(uri: Path, tokenizer: Path | None, **sizes: Any) -> None:
    tree = {**toy_config(start__uri=str(uri), **sizes).model_dump(mode="json"), **RUN}
    config = override(RunConfig, tree, {"captions.tokenizer": tokenizer and str(tokenizer)})
    require_its_vocabulary(start_source(config), config)


def test_a_text_encoder_of_a_run_wants_the_vocabulary_of_that_run(run, tmp_path):
    tokenizers = [train_tokenizer([text], 40) for text in ("a red cube", "six blue spheres")]
    for tokenizer, folder in zip(tokenizers, (run, tmp_path), strict=True):
        tokenizer.save(folder)
    _vocabulary(run, run / "tokenizer.json")
    for given in (None, tmp_path / "tokenizer.json"):
        with pytest.raises(ValueError, match=rf"captions.tokenizer \({given}\) .* set captions.tokenizer={run}/tok"):
            _vocabulary(run, given)


def test_a_released_text_encoder_wants_a_given_vocabulary_and_an_image_encoder_none(tmp_path):
    fitting = sizes_of(released(tmp_path))
    _vocabulary(tmp_path / "vision.npz", None, **fitting)
    _vocabulary(tmp_path, tmp_path / "any.model", **fitting)
    with pytest.raises(ValueError, match=r"captions.tokenizer must name the vocabulary .*vision"):
        _vocabulary(tmp_path / "{vision,text}.npz", None, **fitting)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"start__uri": "x", "start__warmup_heads_steps": 10}, "start.warmup_heads_steps (10) must be below"),
        (
            {"start__uri": "x", "start__warmup_heads_steps": 1, "objective__alpha": 0, "objective__beta": 0},
            "no head is trained",
        ),
        ({"start__warmup_heads_steps": 1}, "start.uri: Field required"),
        ({"objective__frozen_teacher": "x"}, "frozen_teacher (x) needs teacher=frozen, not ema"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(values, words):
    with pytest.raises(Faults) as refused:
        toy_config(**values)
    assert words in str(refused.value)
