"""A run keeps its data and its captioner, wherever they lie; refusals are by fingerprint."""

import json
from typing import Any

import pytest
from toy_run import tiny_run

from tips_ray import storage
from tips_ray.runs import Run
from tips_ray.runs.checkpoint import VERSION
from tips_ray.runs.run import claim_data, require_data


def _checkpoint(uri: str, **fingerprints: str) -> None:
    manifest = {"version": VERSION, "step": 4, "files": {}, **fingerprints}
    storage.write_text(f"{uri}/checkpoints/step-00000004/manifest.json", json.dumps(manifest))


def test_a_run_without_a_checkpoint_keeps_the_data_that_it_began_with(folder):
    require_data(folder, "any")
    claim_data(folder, "aa")
    claim_data(folder, "bb")  # the first note stays
    require_data(folder, "aa")
    require_data(folder, "cc", earlier="aa")
    with pytest.raises(ValueError, match=r"not those that .* began with \(fingerprint aa -> bb\): restore"):
        require_data(folder, "bb")


@pytest.mark.parametrize("note", [None, b"", b"[]", b'{"fingerprint"'])
def test_without_a_whole_note_the_newest_checkpoint_tells_the_data(folder, note):
    _checkpoint(folder, data_fingerprint="aa")
    if note is not None:
        storage.write_bytes(f"{folder}/data.json", note)
    require_data(folder, "aa")
    with pytest.raises(ValueError, match=r"\(fingerprint aa -> bb\)"):
        require_data(folder, "bb")


def test_captions_of_another_captioner_are_refused(tmp_path):
    uri = f"{tmp_path}/tiny"
    _checkpoint(uri, data_fingerprint="aa", captioner_fingerprint="one")

    def resumed(captioner: str) -> int:
        return Run(tiny_run(tmp_path, "a"), uri, "index", "tokenizer", "aa", "", captioner).resumed_step()

    assert resumed("one") == resumed("") == 4
    with pytest.raises(ValueError, match="trained on captions of the captioner one until step 4, and now there is two"):
        resumed("two")


def test_runs_have_one_batch_fingerprint_if_their_batches_are_the_same(tmp_path):
    def fingerprint(vocabulary: str = "a", data: str = "aa", captioner: str = "", **values: Any) -> str:
        config = tiny_run(tmp_path / "runs", "a", **values)
        storage.write_text(f"{tmp_path}/tokenizer.json", vocabulary)
        return Run(config, "unused", "unused", f"{tmp_path}/tokenizer.json", data, "", captioner).batch_fingerprint()

    first = fingerprint()
    learned = {"objective__alpha": 3, "schedule__peak_lr": 0.5, "image__depth": 3, "name": "other"}
    assert fingerprint(**learned, resources__workers=1, micro_batch_images=2, schedule__total_steps=50) == first
    others = [
        {"seed": 1},
        {"global_batch_images": 16},
        {"views__mask_ratio": 0.5},
        {"data__window_chunks": 4},
        {"data.sources": [{"uri": "a", "weight": 2}]},
        {"captions__missing": "other"},
        {"text__max_tokens": 16},
        {"vocabulary": "b"},
        {"data": "bb"},
        {"captioner": "one"},
    ]
    assert len({first, *(fingerprint(**values) for values in others)}) == 11
