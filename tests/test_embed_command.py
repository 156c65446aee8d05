"""`tips-ray embed` up to Ray: mistakes are one sentence, and a finished folder needs no Ray."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import ray
from toy_embedding import embedding_config, write_place, write_source
from toy_start import trained_run
from writers import jpeg, write_parquet, write_tar

from jobs.cli import main
from tips_ray.embedding import embed_pipeline
from tips_ray.embedding.decoded import decoded_chunk
from tips_ray.embedding.embed_pipeline import EmbedActor
from tips_ray.launch.embedding import embed_inputs
from tips_ray.storage import StorageError

ROWS = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A source, and its embeddings made by the stages of the pipeline, one after the other."""
    folder = write_place(tmp_path_factory.mktemp("embed"), ROWS)
    inputs, index = embed_inputs(str(folder / "model"), embedding_config(f"{folder}/data"), str(folder / "out"))
    actor = EmbedActor(inputs)
    for chunks in inputs.folder.missing(index, inputs.layout.row_bytes):
        decoded = embed_pipeline._decoded({"chunk": np.array(chunks)}, inputs)
        embed_pipeline._written(pa.concat_tables(map(actor, decoded)), inputs)
    return folder


def _embed(place: Path, *words: str, source: str = "data", model: str = "model", out: str = "out") -> int:
    return main(["embed", f"{place}/{model}", f"{place}/{source}", f"{place}/{out}", "chunk_rows=4", *words])


def test_a_finished_folder_is_found_without_ray(place, capsys, monkeypatch):
    monkeypatch.setattr(ray, "init", None)
    assert _embed(place) == 0
    shown = capsys.readouterr().out
    assert f"{ROWS} rows; {ROWS} have their embeddings" in shown and "cls_web, cls_synthetic" in shown


def test_what_the_docs_say_of_reading_holds(place):
    rows = ds.dataset(f"{place}/out/embeddings")
    table = rows.to_table(columns=["key", "cls_web"], filter=ds.field("error") == "")
    embeddings_ND = np.stack(table["cls_web"].to_numpy())
    assert embeddings_ND.shape == (ROWS - 2, 32) and embeddings_ND.dtype == np.float32
    manifest = json.loads((place / "out" / "embedding.json").read_text())
    assert manifest["columns"] == {"cls_web": [32], "cls_synthetic": [32]}


@pytest.mark.parametrize(
    ("words", "names", "message"),
    [
        (["dtype=float16"], {}, "holds embeddings with dtype float32, not float16; choose another OUT"),
        (["image_size_px=84"], {}, "holds embeddings with image_size_px 56, not 84; choose another OUT"),
        (["image_size_px=60"], {"out": "new"}, "image_size_px (60) must be a multiple of the patch size (14)"),
        (["actor=3"], {}, "actor"),
        (["patches=some"], {}, "patches"),
        ([], {"model": "nothing"}, "MODEL"),
        ([], {"source": "nothing"}, "no file is there"),
        (["source.columns.image=photo"], {"out": "new"}, "columns.image is 'photo', which is not there"),
        ([], {"out": "data/0000.parquet/out"}, "must not lie in SOURCE"),
        ([], {"source": "data/**/*.parquet", "out": "data/out"}, "must not lie in SOURCE"),
        ([], {"out": "model/config.json/out"}, "model/config.json"),
        (["gpus_per_actor=99"], {"out": "gpus"}, "an actor needs gpus_per_actor (99), and this machine offers"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_ends_in_one_sentence(words, names, message, place, capsys, monkeypatch):
    monkeypatch.setattr(ray, "init", None)
    assert _embed(place, *words, **names) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"decides": 3}'])
def test_a_damaged_manifest_is_named(place, tmp_path, content):
    (tmp_path / "embedding.json").write_text(content)
    with pytest.raises(ValueError, match=rf"{tmp_path}/embedding.json is damaged; choose another OUT"):
        embed_inputs(str(place / "model"), embedding_config(f"{place}/data"), str(tmp_path))


@pytest.mark.heavy
def test_a_run_that_trains_on_is_embedded_with_the_checkpoint_that_it_was_begun_with(place, tmp_path):
    run, config = tmp_path / "run", embedding_config(f"{place}/data")
    trained_run(str(run), 1)
    first, _ = embed_inputs(str(run), config, str(tmp_path / "out"))
    trained_run(str(run), 1, 2)
    again, _ = embed_inputs(str(run), config, str(tmp_path / "out"))
    assert again.encoder == first.encoder and again.encoder.model.endswith("step-00000001")
    other, _ = embed_inputs(str(run), config, str(tmp_path / "new"))
    assert other.encoder.model.endswith("step-00000002")
    shutil.rmtree(first.encoder.model)
    with pytest.raises(ValueError, match=r"holds embeddings by .*/step-00000001, which is there no more"):
        embed_inputs(str(run), config, str(tmp_path / "out"))


def test_a_file_is_not_written_while_its_images_are_away(place, tmp_path):
    inputs, index = embed_inputs(str(place / "model"), embedding_config(f"{place}/data"), str(tmp_path / "out"))
    file = next(
        file for file in inputs.folder.missing(index, inputs.layout.row_bytes) if 0 in file
    )  # row 3 is no image
    rows = pa.concat_tables(map(EmbedActor(inputs), embed_pipeline._decoded({"chunk": np.array(file)}, inputs)))
    strict = replace(inputs, config=inputs.config.model_copy(update={"max_bad_fraction": 0.0}))
    with pytest.raises(StorageError, match=r"rows of a file have no image, e.g. .*or raise max_bad_fraction \(0\)"):
        embed_pipeline._written(rows, strict)
    assert file in inputs.folder.missing(index, inputs.layout.row_bytes)
    embed_pipeline._written(rows, inputs)
    assert file not in inputs.folder.missing(index, inputs.layout.row_bytes)


def test_a_mistake_about_columns_leaves_the_folder_free(place, tmp_path):
    model, source, out = str(place / "model"), str(place / "data"), str(tmp_path / "out")
    with pytest.raises(ValueError, match="not there"):
        embed_inputs(model, embedding_config(source, source__columns__image="photo"), out)
    embed_inputs(model, embedding_config(source), out)


def test_data_that_changed_are_not_mixed_with_what_they_were(place, tmp_path, capsys):
    write_source(tmp_path / "data", 8)
    model, source = str(place / "model"), str(tmp_path / "data")
    embed_inputs(model, embedding_config(source), str(tmp_path / "out"))
    (tmp_path / "data" / "0000.parquet").touch()
    embed_inputs(model, embedding_config(source), str(tmp_path / "out"))  # the same content
    shutil.rmtree(tmp_path / "data")
    write_source(tmp_path / "data", 9)
    with pytest.raises(ValueError, match="or the data have changed since"):
        embed_inputs(model, embedding_config(source), str(tmp_path / "out"))


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_images_need_no_captions_to_be_embedded(kind, place, tmp_path):
    if kind == "tar":
        write_tar(tmp_path / "data" / "0.tar", [(f"{number}.jpg", jpeg(number)) for number in range(3)])
    else:
        write_parquet(tmp_path / "data" / "0.parquet", {"image": [jpeg(number) for number in range(3)]})
    inputs, index = embed_inputs(str(place / "model"), embedding_config(f"{tmp_path}/data"), str(tmp_path / "out"))
    chunk = decoded_chunk(index, 0, inputs.encoder.image_size_px, inputs.config)
    assert (index.rows, len(chunk.pixels_GSS3), chunk.web_captions) == (3, 3, [""] * 3)
    with pytest.raises(ValueError, match="no column has a common name for columns.web_caption"):
        embed_inputs(str(place / "model"), embedding_config(f"{tmp_path}/data", captions=True), str(tmp_path / "new"))


def test_chunks_that_are_no_file_get_no_name():
    embed_pipeline._require_file([4, 5], step=2, total=7)
    embed_pipeline._require_file([6], step=2, total=7)
    for chunks in ([5, 6], [4], [4, 6], [4, 5, 6]):
        with pytest.raises(RuntimeError, match="are no file"):
            embed_pipeline._require_file(chunks, step=2, total=7)
