import json
import os

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from toy import toy_config
from toy_model import CAPTIONS, toy_model

from tips_ray.config import ImageEncoderConfig, TextEncoderConfig
from tips_ray.config.variants import VARIANTS, image_sizes, text_sizes
from tips_ray.models import TipsModel, exported, load_tokenizer, load_transformers
from tips_ray.models.model import new_folder
from tips_ray.models.transformers_config import _vision_config, read_config
from tips_ray.train.state import new_state

KINDS = [{"gelu": "tanh"}, {"gelu": "erf"}, {"ffn": "swiglu"}]
AWKWARD = {"width": 56, "depth": 1, "num_heads": 2, "ffn_hidden": 61}
"""Sizes whose MLP ratio rounds badly: int(56 * (61 / 56)) is 60."""
SIZES = [(56, 56), (84, 84), (28, 70), (28, 112)]  # the last has the native number of patches


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: "-".join(kind.values()))
def folder_and_model(request, tmp_path_factory):
    model = toy_model(**request.param)
    return model.export_transformers(tmp_path_factory.mktemp("export") / "folder"), model


@pytest.fixture
def folder(tmp_path):
    return toy_model().export_transformers(tmp_path / "folder")


def _assert_equal(found: TipsModel, expected: TipsModel) -> None:
    """Assert that both models are equal bit for bit."""
    assert (found.image.config, found.text.config) == (expected.image.config, expected.text.config)
    for part in ("image", "text"):
        states = getattr(found, part).state_dict(), getattr(expected, part).state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert found.temperature == expected.temperature
    assert found.tokenizer and expected.tokenizer
    assert torch.equal(found.tokenizer(CAPTIONS), expected.tokenizer(CAPTIONS))


@torch.no_grad()
def test_automodel_gives_our_features_at_every_size_masked_or_not(folder_and_model):
    from transformers import AutoModel

    folder, model = folder_and_model
    theirs, image = AutoModel.from_pretrained(folder).double().vision_model, model.image.double()
    for height, width in SIZES:
        images = torch.rand(2, 3, height, width, dtype=torch.float64)
        masks = None, torch.rand(2, height * width // 14**2) < 0.5
        for mask in masks:
            tokens_BTD = theirs(images, bool_masked_pos=mask).last_hidden_state
            found = tokens_BTD[:, 0], tokens_BTD[:, 1], tokens_BTD[:, 2:]
            torch.testing.assert_close(found, tuple(image(images, mask)), atol=1e-6, rtol=0)
    image.float()


@torch.no_grad()
def test_autoprocessor_and_automodel_give_our_ids_texts_and_logits(folder_and_model):
    from transformers import AutoModel, AutoProcessor

    folder, model = folder_and_model
    images, texts = torch.rand(3, 3, 56, 56), [*CAPTIONS, "", "red " * 30, "unseen: qxz", "a <unk> cube"]
    inputs = AutoProcessor.from_pretrained(folder)(text=texts, return_tensors="pt")
    ids_BT = model.tokenizer(texts, 20)
    assert torch.equal(inputs["input_ids"], ids_BT) and torch.equal(inputs["attention_mask"], (ids_BT > 0).long())
    kept = ids_BT.any(dim=1)  # transformers gives NaN for a text without tokens
    outputs = AutoModel.from_pretrained(folder)(ids_BT[kept], images, inputs["attention_mask"][kept])
    texts_BD = model.text(ids_BT[kept])
    torch.testing.assert_close(outputs.text_model_output.pooler_output, texts_BD, atol=2e-6, rtol=0)
    cosine = F.normalize(model.image(images).cls_web_BD, dim=1) @ F.normalize(texts_BD, dim=1).T
    torch.testing.assert_close(outputs.logits_per_image * model.temperature, cosine, atol=1e-6, rtol=0)


def test_the_folder_comes_back_bit_for_bit(folder_and_model):
    folder, model = folder_and_model
    _assert_equal(load_transformers(folder), model)


@pytest.mark.heavy
def test_what_transformers_saves_comes_back_too(folder_and_model, tmp_path):
    from transformers import AutoModel

    folder, model = folder_and_model
    theirs = AutoModel.from_pretrained(folder)
    for name, options in [("own", {"save_original_format": False}), ("shards", {"max_shard_size": "20KB"})]:
        theirs.save_pretrained(tmp_path / name, **options)
        model.tokenizer.save(tmp_path / name)
        _assert_equal(load_transformers(tmp_path / name), model)
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()


def test_the_zero_shot_pipeline_scores_an_image(folder):
    from PIL import Image
    from transformers import pipeline

    image = Image.new("RGB", (90, 60), "red")
    scores = pipeline("zero-shot-image-classification", str(folder))(image, candidate_labels=["cube", "red cone"])
    assert {score["label"] for score in scores} == {"cube", "red cone"}
    assert sum(score["score"] for score in scores) == pytest.approx(1)


def test_the_image_processor_squashes_to_the_native_size_without_normalisation(folder):
    from PIL import Image
    from transformers import AutoProcessor

    pixels = AutoProcessor.from_pretrained(folder)(images=Image.new("RGB", (90, 60), (255, 0, 51)), return_tensors="pt")
    expected = torch.tensor([1, 0, 0.2])[:, None, None].expand(1, 3, 56, 56)
    torch.testing.assert_close(pixels["pixel_values"], expected)


@pytest.mark.parametrize("options", [{}, {"byte_fallback": False, "vocab_size": 100}, {"model_type": "unigram"}])
def test_a_sentencepiece_vocabulary_gives_the_same_ids_there_and_back(options, tmp_path):
    from test_tokenizer import PROBES, _sentencepiece
    from transformers import AutoTokenizer

    _sentencepiece(tmp_path / "tokenizer.model", **options)
    tokenizer = load_tokenizer(tmp_path)
    folder = toy_model(tokenizer).export_transformers(tmp_path / "folder")
    probes = [text for text in PROBES if "<pad>" not in text]
    padding = {"padding": "max_length", "truncation": True, "max_length": 20, "return_tensors": "pt"}
    assert torch.equal(AutoTokenizer.from_pretrained(folder)(probes, **padding)["input_ids"], tokenizer(probes, 20))
    back = load_transformers(folder).tokenizer
    assert back and back.source == tokenizer.source


@pytest.mark.parametrize("sizes", [*map(image_sizes, VARIANTS), AWKWARD], ids=[*VARIANTS, "awkward"])
def test_feed_forward_widths_survive_the_ratio(sizes):
    from transformers import Tipsv2VisionConfig
    from transformers.models.tipsv2.modeling_tipsv2 import Tipsv2VisionMLP, Tipsv2VisionSwiGLUFFN

    config = Tipsv2VisionConfig(**_vision_config(ImageEncoderConfig(**sizes)))
    with torch.device("meta"):
        theirs = (Tipsv2VisionSwiGLUFFN if config.use_swiglu_ffn else Tipsv2VisionMLP)(config)
    last = theirs.down_proj if config.use_swiglu_ffn else theirs.fc2
    assert last.in_features == sizes["ffn_hidden"]  # pyright: ignore[reportAttributeAccessIssue]


def test_a_disk_that_is_full_is_an_error_of_the_system_and_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match=rf"{tmp_path}/folder cannot be written: .*No space left"):
        with new_folder(tmp_path / "folder"):
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyError), new_folder(tmp_path / "folder") as temporary:
        (temporary / "part").write_text("half")
        raise KeyError("disk")
    assert not any(tmp_path.iterdir())


def test_a_gated_width_that_transformers_cannot_express_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ffn_hidden \(90\) must be a multiple of 8 with ffn \(swiglu\)"):
        toy_model(ffn="swiglu", ffn_hidden=90).export_transformers(tmp_path / "folder")
    assert not any(tmp_path.iterdir())


def test_everyone_may_read_and_nothing_is_overwritten(folder):
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.iterdir())
    assert folder.stat().st_mode & 0o777 == 0o755
    assert os.listdir(folder.parent) == ["folder"]
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        toy_model().export_transformers(folder)
    (folder.parent / "empty").mkdir()
    toy_model().export_transformers(folder.parent / "empty")


def test_a_folder_without_tokenizer_loads_without(tmp_path):
    from transformers import AutoImageProcessor, AutoModel

    model = toy_model()
    model.tokenizer = None
    folder = model.export_transformers(tmp_path / "folder")
    assert load_transformers(folder).tokenizer is None
    assert AutoModel.from_pretrained(folder).config.temperature_init_value == model.temperature
    assert AutoImageProcessor.from_pretrained(folder).size["height"] == 56


def _change_weights(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def _change_config(folder, change) -> None:
    tree = json.loads((folder / "config.json").read_text())
    change(tree)
    (folder / "config.json").write_text(json.dumps(tree))


def test_a_missing_temperature_is_the_configs(folder):
    _change_weights(folder, lambda tensors: tensors.pop("temperature"))
    _change_config(folder, lambda tree: tree.update(temperature_init_value=0.25))
    assert load_transformers(folder).temperature == 0.25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("vision_encoder.norm.bias"), r"'vision_encoder\.norm\.bias' \(32,\) is missing"),
        (lambda tensors: tensors.update(head=torch.zeros(2)), r"'head' \(2,\) is unknown"),
        (
            lambda tensors: tensors.update({"text_encoder.ln_final.bias": torch.zeros(31)}),
            r"'text_encoder\.ln_final\.bias' has shape \(31,\) and must have \(32,\) \(an encoder of width 32",
        ),
        (
            lambda tensors: tensors.update({"vision_encoder.pos_embed": torch.zeros(1, 10, 32)}),
            r"'vision_encoder\.pos_embed' has shape \(1, 10, 32\) and must have \(1, 17, 32\)",
        ),
    ],
)
def test_wrong_weights_name_tensor_shapes_and_rule(folder, change, message):
    _change_weights(folder, change)
    with pytest.raises(ValueError, match=message):
        load_transformers(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.update(model_type="siglip"), r"model_type \('siglip'\) must be 'tipsv2'"),
        (lambda tree: tree["vision_config"].update(hidden_act="relu"), r"vision_config\.hidden_act \('relu'\) must be"),
        (lambda tree: tree["vision_config"].update(num_register_tokens=4), r"num_register_tokens \(4\) must be 1"),
        (lambda tree: tree["vision_config"].update(image_size=[56, 70]), r"image_size \(\[56, 70\]\) must be square"),
        (
            lambda tree: tree["text_config"].update(layer_norm_eps=1e-6),
            r"text_config\.layer_norm_eps \(1e-06\) must be",
        ),
        (lambda tree: tree.update(temperature_init_value=-1.0), r"config\.json: (.|\n)*must be strictly positive"),
    ],
)
def test_a_config_of_another_architecture_is_named(folder, change, message):
    _change_config(folder, change)
    with pytest.raises(ValueError, match=message):
        load_transformers(folder)


def test_the_flat_config_of_the_first_release_is_read(tmp_path):
    """The config has the form of google/tipsv2-g14 on the Hub."""
    tree = {"model_type": "tipsv2", "patch_size": 14, "img_size": 448, "init_values": 1.0, "num_register_tokens": 1}
    tree |= {"vocab_size": 32000, "max_len": 64, "vision_fn": "vit_giant2", "embed_dim": 1536, "ffn_layer": "swiglu"}
    tree |= {"text_hidden_size": 1536, "text_mlp_dim": 6144, "text_num_heads": 24, "text_num_layers": 12}
    (tmp_path / "config.json").write_text(json.dumps({**tree, "temperature": 0.0036}))
    image, text, temperature = read_config(tmp_path)
    assert image.model_dump() == ImageEncoderConfig(**image_sizes("g"), gelu="erf").model_dump()
    assert text.model_dump() == TextEncoderConfig(**text_sizes("g")).model_dump() and temperature == 0.0036
    for change, message in [({"vision_fn": "vit_huge"}, "must be one of vit_small"), ({}, "'temperature' is missing")]:
        (tmp_path / "config.json").write_text(json.dumps({**tree, **change}))
        with pytest.raises(ValueError, match=message):
            read_config(tmp_path)


def test_incomplete_folders_are_named(folder):
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load_transformers(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds neither model.safetensors nor model.safetensors.index.json"):
        load_transformers(folder)
    with pytest.raises(ValueError, match="it has no config.json"):
        load_transformers(folder.parent)


@pytest.mark.parametrize("kind", ["ema", "ema_heads", "frozen"])
def test_a_state_exports_the_teachers_image_encoder_by_default(kind):
    teacher = new_state(toy_config(seed=1)).teacher if kind == "frozen" else None
    state = new_state(toy_config(objective__teacher=kind), teacher)
    state.student.log_temperature.data.fill_(-2.0)
    by_default, on_request = (exported(state.student, state.teacher), exported(state.student, state.teacher, "student"))
    assert by_default.image is (state.teacher.image if kind == "ema" else state.student.image)
    assert on_request.image is state.student.image
    assert by_default.text is state.student.text
    assert by_default.temperature == pytest.approx(0.1353352832)  # exp(-2)
    with pytest.raises(ValueError, match=r"weights \('best'\) must be 'teacher' or 'student'"):
        exported(state.student, state.teacher, "best")  # pyright: ignore[reportArgumentType]
