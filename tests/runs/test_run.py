"""A run keeps its data and its captioner, wherever they lie; refusals are by fingerprint."""

import json

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
