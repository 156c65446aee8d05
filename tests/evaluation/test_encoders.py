"""Every kind of MODEL has the same interface and gives the numbers of its own library."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional as F
from toy_model import CAPTIONS, toy_model
from toy_start import released, trained_run

from tips_ray.evaluation.encoder_place import EncoderPlace
from tips_ray.evaluation.encoders import Encoder, TipsEncoder, quarters
from tips_ray.evaluation.load_encoder import load_encoder, move, placed_encoder
from tips_ray.models import TipsModel, dense_features, load_official_text, train_tokenizer

TOLERANCE = {"atol": 1e-5, "rtol": 0}
CLIP = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def _images(encoder: Encoder) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(2, 3, encoder.image_size_px, encoder.image_size_px, generator=generator)


def _assert_has_the_features_of(model: TipsModel, encoder: Encoder, atol: float = 1e-5) -> None:
    images = _images(encoder)
    with torch.no_grad():
        expected = model.image(images)
    found = encoder.features(images)
    pairs = [(found.patches_BLD, expected.patches_BLD), (found.embeddings["cls_web"], expected.cls_web_BD)]
    pairs.append((found.embeddings["cls_synthetic"], expected.cls_synthetic_BD))
    assert encoder.embeddings == tuple(found.embeddings) == ("cls_web", "cls_synthetic")
    for one, other in pairs:
        torch.testing.assert_close(one, other, atol=atol, rtol=0)


def test_a_transformers_folder_of_ours_gives_features_texts_and_patches_that_meet_texts(tmp_path):
    model = toy_model()
    encoder = load_encoder(str(model.export_transformers(tmp_path / "folder")))
    _assert_has_the_features_of(model, encoder)
    assert encoder.text_embeddings == encoder.embeddings and encoder.has_text_patches
    assert (encoder.image_size_px, encoder.grid) == (56, 4) and model.tokenizer
    with torch.no_grad():
        expected = F.normalize(model.text(model.tokenizer(CAPTIONS, 20)), dim=-1)
        patches = dense_features(model.image, _images(encoder), "values").flatten(1, 2)
    torch.testing.assert_close(encoder.texts(CAPTIONS), expected, **TOLERANCE)
    torch.testing.assert_close(encoder.text_patches(_images(encoder)), patches, **TOLERANCE)


def test_layers_are_those_of_an_encoder_that_ends_there_but_for_its_norm():
    model = toy_model(depth=4)
    encoder = TipsEncoder.of_model(model)
    images, layers = _images(encoder).double(), encoder.layers(_images(encoder).double())
    for depth in (4, 3, 2, 1):
        model.image.blocks = model.image.blocks[:depth]
        with torch.no_grad():
            normed = model.image.norm(layers[depth - 1])
        torch.testing.assert_close(normed, encoder.features(images).patches_BLD)


@pytest.mark.parametrize(("depth", "places"), [(12, [2, 5, 8, 11]), (27, [6, 13, 19, 26]), (1, [0, 0, 0, 0])])
def test_quarters_end_with_the_last_block(depth, places):
    assert quarters(depth) == places


def test_another_image_size_is_taken_and_one_between_patches_refused(tmp_path):
    folder = str(toy_model().export_transformers(tmp_path / "folder"))
    encoder = load_encoder(folder, image_size_px=84)
    assert encoder.features(_images(encoder)).patches_BLD.shape == (2, 36, 32) and encoder.grid == 6
    with pytest.raises(ValueError, match=r"image_size_px \(60\) must be a multiple of the patch size \(14\)"):
        load_encoder(folder, image_size_px=60)


def test_code_in_a_transformers_folder_is_not_run_and_nothing_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda text: "yes")
    config = {"model_type": "odd", "auto_map": {"AutoConfig": "odd.Odd", "AutoModel": "odd.Odd"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    (tmp_path / "odd.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ValueError, match="cannot be loaded: its auto_map names Python code .* never run: give a model"):
        load_encoder(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_timm_folder_of_ours_has_both_cls_and_no_texts(tmp_path):
    model = toy_model()
    encoder = load_encoder(str(model.export_timm(tmp_path / "folder")))
    _assert_has_the_features_of(model, encoder)
    assert encoder.text_embeddings == () and not encoder.has_text_patches


@pytest.mark.heavy
@pytest.mark.parametrize("teacher", ["ema", "ema_heads"])
def test_a_run_gives_its_averaged_encoder_and_a_checkpoint_of_it_too(teacher, tmp_path):
    state = trained_run(str(tmp_path / "run"), 1, 3, objective__teacher=teacher)
    image = state.teacher.image or state.student.image
    expected = TipsModel(image, state.student.text, None, 1.0)
    encoder = load_encoder(str(tmp_path / "run"))
    _assert_has_the_features_of(expected, encoder)
    assert encoder.text_embeddings == ()  # the toy run has no vocabulary
    earlier = load_encoder(str(tmp_path / "run" / "checkpoints" / "step-00000001"))
    assert not torch.equal(earlier.features(_images(encoder))[0], encoder.features(_images(encoder))[0])


@pytest.mark.heavy
def test_a_run_that_goes_on_is_not_mixed_with_what_it_was(tmp_path, monkeypatch):
    uri = str(tmp_path / "run")
    trained_run(uri, 1)
    encoder = load_encoder(uri)
    place = EncoderPlace.of(uri, encoder)
    trained_run(uri, 2)
    assert placed_encoder(place, 1, 0).fingerprint == encoder.fingerprint != load_encoder(uri).fingerprint
    monkeypatch.setattr(encoder, "checkpoint_uri", None)
    with pytest.raises(ValueError, match=r"MODEL \(.*run\) has changed since this command began; run it again"):
        placed_encoder(EncoderPlace.of(uri, encoder), 1, 0)


def test_a_run_is_read_with_the_vocabulary_of_its_folder(tmp_path):
    state, tokenizer = trained_run(str(tmp_path / "run"), 1), train_tokenizer(CAPTIONS, 50)
    tokenizer.save(tmp_path / "run" / "tokenizer.json")
    encoder = load_encoder(str(tmp_path / "run"))
    with torch.no_grad():
        expected = F.normalize(state.student.eval().text(tokenizer(CAPTIONS, 12)), dim=-1)
    torch.testing.assert_close(encoder.texts(CAPTIONS), expected, **TOLERANCE)


def test_released_files_give_texts_only_with_a_vocabulary(tmp_path):
    model = released(tmp_path, width=384, depth=1, num_heads=6, gelu="erf")
    encoder = load_encoder(str(tmp_path))
    _assert_has_the_features_of(model, encoder, 1e-4)
    assert encoder.text_embeddings == ()
    assert model.tokenizer
    model.tokenizer.save(tmp_path / "tokenizer.json")
    encoder = load_encoder(str(tmp_path))
    with torch.no_grad():
        texts = F.normalize(load_official_text(tmp_path / "text.npz")(model.tokenizer(CAPTIONS)), dim=-1)
    torch.testing.assert_close(encoder.texts(CAPTIONS), texts, **TOLERANCE)
    assert load_encoder(str(tmp_path / "vision.npz")).embeddings == ("cls_web", "cls_synthetic")


def test_a_vit_of_timm_is_standardised_as_it_was_trained(tmp_path):
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}
    network: Any = timm.create_model("vit_base_patch16_224", num_classes=0, **sizes).eval()
    timm.models.save_for_hf(network, str(tmp_path), model_args=sizes)
    encoder = load_encoder(f"local-dir:{tmp_path}", 32)
    assert encoder.embeddings == ("cls",) and encoder.grid == 2
    found = encoder.features(_images(encoder))
    with torch.no_grad():
        tokens = network.forward_features((_images(encoder) - 0.5) / 0.5)
    torch.testing.assert_close(found.embeddings["cls"], tokens[:, 0], **TOLERANCE)
    torch.testing.assert_close(found.patches_BLD, tokens[:, 1:], **TOLERANCE)
    layers = encoder.layers(_images(encoder))
    assert len(layers) == 4
    with torch.no_grad():
        torch.testing.assert_close(network.norm(layers[3]), found.patches_BLD, **TOLERANCE)


def _save(network, folder, mean: float = 0.5, std: float = 0.25) -> None:
    network.eval().save_pretrained(folder)
    values = {"image_mean": [mean] * 3, "image_std": [std] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def test_dinov2_with_registers_gives_cls_and_patches_without_registers(tmp_path):
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "image_size": 28,
        "patch_size": 14,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    network = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes, num_register_tokens=3))
    _save(network, tmp_path)
    encoder = load_encoder(str(tmp_path))
    assert encoder.embeddings == ("cls",) and encoder.text_embeddings == ()
    found = encoder.features(_images(encoder))
    with torch.no_grad():
        tokens = network((_images(encoder) - 0.5) / 0.25).last_hidden_state
    torch.testing.assert_close(found.embeddings["cls"], tokens[:, 0], **TOLERANCE)
    torch.testing.assert_close(found.patches_BLD, tokens[:, 4:], **TOLERANCE)
    with torch.no_grad():
        normed = network.layernorm(encoder.layers(_images(encoder))[3])
    torch.testing.assert_close(normed, found.patches_BLD, **TOLERANCE)


def test_what_a_folder_lacks_is_the_same_in_every_process(tmp_path):
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        image_size=32,
        patch_size=16,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
    )
    _save(ViTModel(config, add_pooling_layer=False), tmp_path)
    assert load_encoder(str(tmp_path)).fingerprint == load_encoder(str(tmp_path)).fingerprint


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_clip_and_siglip_meet_their_texts(kind, tmp_path):
    import transformers

    torch.manual_seed(0)
    vision = {**CLIP, "image_size": 32, "patch_size": 16}
    text = {**CLIP, "vocab_size": 80, "max_position_embeddings": 12, "eos_token_id": 1}
    config = getattr(transformers, f"{kind}Config")(vision_config=vision, text_config=text)
    network = getattr(transformers, f"{kind}Model")(config)
    _save(network, tmp_path)
    tokenizer = toy_model().tokenizer
    assert tokenizer
    backend = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer.save(tmp_path / "tokenizer.json")), pad_token="<pad>"
    )
    backend.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    assert encoder.embeddings == encoder.text_embeddings == ("pooled",) and not encoder.has_text_patches
    found, images = encoder.features(_images(encoder)), (_images(encoder) - 0.5) / 0.25
    inputs = backend(CAPTIONS, padding="max_length", max_length=12, truncation=True, return_tensors="pt")
    with torch.no_grad():
        logits = network(pixel_values=images, **inputs).logits_per_image
    cosine = F.normalize(found.embeddings["pooled"], dim=-1) @ encoder.texts(CAPTIONS).T
    scale = network.logit_scale.exp()
    bias = network.logit_bias if kind == "Siglip" else 0
    torch.testing.assert_close(cosine * scale + bias, logits, atol=1e-4, rtol=0)
    assert found.patches_BLD.shape == (2, 4, 32)
    assert [tuple(layer.shape) for layer in encoder.layers(_images(encoder))] == [(2, 4, 32)] * 4
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    otherwise_prepared = load_encoder(str(tmp_path))
    backend.add_tokens(["another"])
    backend.save_pretrained(tmp_path)
    fingerprints = {one.fingerprint for one in (encoder, otherwise_prepared, load_encoder(str(tmp_path)))}
    assert len(fingerprints) == 3
    larger = load_encoder(str(tmp_path), 48)
    assert larger.features(_images(larger)).patches_BLD.shape == (2, 9, 32)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "there is neither a run folder"),
        ({"config.json": "{}"}, "has neither model_type .* nor architecture"),
        ({"config.json": '{"model_type": "dinov2"}'}, "image_mean and image_std must be in one of"),
    ],
)
def test_what_cannot_be_evaluated_is_named(files, message, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_encoder(str(tmp_path))


def test_features_come_without_gradient():
    model = toy_model()
    found = TipsEncoder.of_model(model).features(torch.rand(1, 3, 56, 56))
    assert not found.patches_BLD.requires_grad


@pytest.mark.parametrize(("model", "why"), [("timm:vit_tinyy", "Unknown model"), ("timm:resnet18", "img_size")])
def test_what_a_library_cannot_load_is_one_sentence(model, why):
    with pytest.raises(ValueError, match=rf"^MODEL \({model[5:]}\) cannot be loaded: .*{why}"):
        load_encoder(model, 112)


@pytest.mark.parametrize(("device", "precision"), [("cuda", "high"), ("cpu", "highest")])
def test_an_encoder_on_a_gpu_multiplies_in_tf32(device, precision):
    moved = []
    encoder: Any = SimpleNamespace(networks=[SimpleNamespace(to=moved.append)])
    try:
        move(encoder, device)
        assert (moved, torch.get_float32_matmul_precision()) == ([device], precision)
    finally:
        torch.set_float32_matmul_precision("highest")
