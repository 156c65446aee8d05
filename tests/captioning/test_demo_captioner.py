"""The checkpoint of the demo, loaded as an ordinary PaliGemma, on scenes that it was not trained on."""

import socket
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, PaliGemmaForConditionalGeneration

from tips_ray.scenes import render_scenes
from tips_ray.scenes.caption_scores import score_captions

FOLDER = Path(__file__).parents[2] / "jobs" / "scene_captioner"
SCENES = render_scenes(seed=7, indices=range(48))


def _captions(scenes, processor, model):
    images, texts = [scene.image_HWC for scene in scenes], ["<image>caption en"] * len(scenes)
    inputs = processor(images=images, text=texts, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    return processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.fixture(scope="module")
def loaded():
    processor = AutoProcessor.from_pretrained(FOLDER, local_files_only=True)
    return processor, PaliGemmaForConditionalGeneration.from_pretrained(FOLDER, local_files_only=True).eval()


@pytest.fixture(scope="module")
def captions(loaded):
    return _captions(SCENES, *loaded)


@pytest.mark.heavy
def test_unseen_scenes_are_described_as_the_readme_promises(captions):
    scores = score_captions(captions, [scene.objects for scene in SCENES])
    assert min(scores["thing_precision"], scores["thing_recall"]) >= 0.9
    assert min(scores["side_precision"], scores["depth_precision"]) >= 0.8
    assert min(scores["side_recall"], scores["depth_recall"]) >= 0.7  # another true relation may be stated instead


@pytest.mark.heavy
def test_the_same_pictures_have_the_same_captions_every_time(loaded):
    assert _captions(SCENES[:8], *loaded) == _captions(SCENES[:8], *loaded)


def test_a_picture_of_another_size_is_understood(loaded):
    scenes = render_scenes(seed=7, indices=range(16), image_size_px=224)
    assert score_captions(_captions(scenes, *loaded), [scene.objects for scene in scenes])["thing_recall"] >= 0.85


def test_every_caption_ends_by_itself(captions):
    assert all(caption.endswith(".") for caption in captions)


def test_weights_are_small_on_disk_and_single_precision_in_memory(loaded):
    assert (FOLDER / "model.safetensors").stat().st_size <= 4_000_000
    assert {value.dtype for value in loaded[1].parameters()} == {torch.float32}


def test_the_folder_loads_without_a_network(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection"))
    AutoProcessor.from_pretrained(FOLDER)
    PaliGemmaForConditionalGeneration.from_pretrained(FOLDER)
