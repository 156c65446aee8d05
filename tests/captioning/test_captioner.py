import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from captioning.tiny import write_paligemma
from tips_ray import storage
from tips_ray.captioning.captioner import Captioned, Captioner
from tips_ray.captioning.decoding import Row
from tips_ray.captioning.model_folder import fingerprint, model_folder
from tips_ray.config import override
from tips_ray.config.captions import CaptionerConfig

MOST = 24


@pytest.fixture(scope="module", params=[1, 2])
def folder(request, tmp_path_factory):
    return write_paligemma(tmp_path_factory.mktemp("models") / f"v{request.param}", request.param)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_paligemma(tmp_path_factory.mktemp("models") / "v1")


def _config(folder, **settings) -> CaptionerConfig:
    fixed = {"model": str(folder), "dtype": "fp32", "device": "cpu", "batch_images": 4, "max_new_tokens": MOST}
    return CaptionerConfig.model_validate({**fixed, **settings})


def _images(count: int) -> list[np.ndarray]:
    numbers = np.random.default_rng(0)
    return [numbers.integers(0, 256, (20 + number, 30, 3), np.uint8) for number in range(count)]


def _generated(captioner: Captioner, row: Row) -> list[int]:
    """The text that transformers' own loop writes for the row alone."""
    ids = row.prompt[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    model = captioner._model
    found = model.generate(**inputs, pixel_values=row.pixels()[None], max_new_tokens=MOST, do_sample=False)
    tokens = found[0, ids.shape[1] :].tolist()
    return tokens[:-1] if tokens[-1] in model.generation_config.eos_token_id else tokens


@pytest.mark.heavy
def test_rows_that_come_and_go_get_the_text_that_generate_gives_each_alone(folder):
    captioner = Captioner(_config(folder, prompts=("caption en", "describe en two dogs")))
    rows = [row for image in _images(5) for row in captioner._rows(image, 0)]
    captioner._decoder.write(rows)
    assert [row.tokens for row in rows] == [_generated(captioner, row) for row in rows]
    lengths = {len(row.tokens) for row in rows}
    assert len(lengths) > 3 and max(lengths) <= MOST  # they did not all end together
    assert len({tuple(row.tokens) for row in rows}) > 8


@pytest.mark.heavy
def test_captions_do_not_depend_on_batch_or_order(folder):
    images, captioners = _images(6), [Captioner(_config(folder, batch_images=number)) for number in (1, 4)]
    alone = [captioners[0]([image])[0] for image in images]
    for captioner in captioners:
        assert captioner(images) == alone
        assert captioner(images[::-1]) == alone[::-1]


@pytest.mark.heavy
def test_drawn_captions_depend_on_the_key_and_on_nothing_else(tiny):
    settings = {"temperature": 1.0, "captions_per_prompt": 2, "prompts": ("caption en", "describe en")}
    captioner, single = (Captioner(_config(tiny, batch_images=number, **settings)) for number in (5, 1))
    images, keys = _images(4), [11, 12, 13, -14]
    drawn = captioner(images, keys)
    assert single(images[::-1], keys[::-1]) == drawn[::-1]
    texts = [text for image in drawn for text in image.captions]
    assert len(set(texts)) == len(texts) >= 12  # some end before their first word
    assert captioner(images, [key + 1 for key in keys])[3] != drawn[3]


@pytest.mark.heavy
def test_a_drawn_token_is_as_frequent_as_its_probability(tiny):
    captioner = Captioner(_config(tiny, temperature=0.05, batch_images=256, max_new_tokens=1))
    (image,) = _images(1)
    rows = [row for key in range(600) for row in captioner._rows(image, key)]
    captioner._decoder.write(rows)
    ids = rows[0].prompt[None]
    zeros = torch.zeros_like(ids)
    inputs = {"input_ids": ids, "token_type_ids": zeros, "pixel_values": rows[0].pixels()[None]}
    likeliest = torch.softmax(captioner._model(**inputs).logits[0, -1] / 0.05, -1).detach().topk(5)
    drawn = [row.tokens[0] if row.tokens else -1 for row in rows]
    for share, token in zip(*likeliest, strict=True):
        if int(token) not in captioner._model.generation_config.eos_token_id:
            assert drawn.count(int(token)) / 600 == pytest.approx(float(share), abs=4 * (float(share) / 600) ** 0.5)


def test_a_bad_image_has_an_error_and_disturbs_no_other(tiny):
    captioner, good = Captioner(_config(tiny, batch_images=2)), _images(3)
    bad = [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8), None]
    expected = [Captioned([], "not an image: uint8 [4, 4] instead of uint8 [H, W, 3]")]
    expected += [Captioned([], "not an image: float32 [4, 4, 3] instead of uint8 [H, W, 3]")]
    expected += [Captioned([], "not an image: 0 x 4 pixels")]
    expected += [Captioned([], "not an image: NoneType instead of uint8 [H, W, 3]")]
    mixed = [good[0], bad[0], bad[1], good[1], bad[2], bad[3], good[2]]
    alone = captioner(good)
    assert captioner(mixed) == [alone[0], *expected[:2], alone[1], *expected[2:], alone[2]]  # pyright: ignore
    assert captioner(bad) == expected  # pyright: ignore
    assert captioner([]) == []


@pytest.mark.heavy
def test_out_of_memory_halves_the_batch_for_good_and_changes_no_text(tiny, monkeypatch):
    captioner, images = Captioner(_config(tiny, batch_images=8)), _images(8)
    expected, forward, sizes = captioner(images), captioner._model.forward, []

    def forward_with_room_for_three(*, input_ids, **inputs):
        if input_ids.shape[1] > 1:  # next come the images, for which there is room
            return forward(input_ids=input_ids, **inputs)
        sizes.append(len(input_ids))
        if len(input_ids) > 6:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        if len(input_ids) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids=input_ids, **inputs)

    monkeypatch.setattr(captioner._model, "forward", forward_with_room_for_three)
    assert captioner(images) == expected
    assert captioner.batch_images == 2 and sizes[:3] == [8, 4, 2]
    assert captioner(images) == expected and sizes.count(8) == 1
    monkeypatch.setattr(captioner._model, "forward", _raise_out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        captioner(images)


def _raise_out_of_memory(**inputs):
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_the_fingerprint_is_that_of_all_that_can_change_a_text(tiny, tmp_path):
    copy = write_paligemma(tmp_path / "copy")
    base = fingerprint(_config(tiny), tiny)
    assert fingerprint(_config(copy, batch_images=9, device="auto"), copy) == base
    other = write_paligemma(tmp_path / "other", seed=1)
    changed = {"prompts": ("caption de",), "temperature": 0.5, "max_new_tokens": 7, "dtype": "bf16"}
    found = [fingerprint(_config(tiny, **{key: value}), tiny) for key, value in changed.items()]
    assert len({base, fingerprint(_config(other), other), *found}) == 6


def test_a_model_on_s3_is_fetched_once_and_is_the_same_captioner(tiny, tmp_path, s3, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    uri = f"{s3.make_bucket('models')}/tiny"
    for file in tiny.iterdir():
        storage.upload(file, f"{uri}/{file.name}")
    config = _config(uri)
    assert fingerprint(config, model_folder(config)) == fingerprint(_config(tiny), tiny)
    weights = model_folder(config) / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert Captioner(config)(_images(1)) == Captioner(_config(tiny))(_images(1))
    assert weights.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "transformers does not know it"),
        (
            {
                "config.json": '{"model_type": "odd", "auto_map": {"AutoConfig": "odd.Odd"}}',
                "odd.py": "raise SystemExit",
            },
            r"transformers does not know it \(its auto_map names Python code .* never run: give a model",
        ),
        ({"config.json": '{"model_type": "siglip"}'}, "it is a siglip, and must be a paligemma"),
        ({"config.json": '{"model_type": "paligemma"}'}, "it cannot be loaded"),
    ],
)
def test_a_folder_that_is_no_captioner_is_refused_in_a_sentence(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        Captioner(_config(tmp_path))


def test_a_folder_whose_weights_are_incomplete_is_refused(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if "multi_modal_projector" in name)
    save_file({other: value for other, value in weights.items() if other != name}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="weights are missing .*multi_modal_projector.*; give a folder"):
        Captioner(_config(tmp_path))


def test_a_model_that_is_nowhere_is_refused_with_the_cure(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="the hub does not give it .*; correct the name"):
        model_folder(_config("nobody/no-such-model"))
    with pytest.raises(ValueError, match="there is no such folder; give a folder"):
        model_folder(_config("/no/such/folder"))


def test_equal_prompts_and_draws_without_chance_are_refused():
    for key, value in (("prompts", ["a", "a"]), ("captions_per_prompt", 2)):
        with pytest.raises(ValueError, match=key):
            override(CaptionerConfig, {"model": "m"}, {key: value})
