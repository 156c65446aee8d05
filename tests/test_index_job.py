"""What `tips-ray index` reports about a folder of images."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
import ray
from writers import jpeg, pair, write_folder, write_tar

from jobs.cli import main
from tips_ray import storage
from tips_ray.launch.failure import root_causes_raised

CONFIG = str(Path(__file__).parents[1] / "jobs" / "configs" / "photos.yaml")


def _told(folder: Path, capsys, *overrides: str) -> str:
    source = f"data.sources=[{{uri: {folder / 'photos'}}}]"
    assert main(["index", CONFIG, f"storage={folder / 'out'}", source, *overrides]) == 0
    return capsys.readouterr().out


def test_the_index_shows_columns_an_example_and_rows_without_a_caption(tmp_path, capsys):
    write_folder(tmp_path / "photos", ["a.jpg", "b.jpg"], ["image,text", "a.jpg,one", "a.jpg,two", "b.jpg,three"])
    told = _told(tmp_path, capsys, "captions.missing=invalid")
    assert "2 rows in 1 shards" in told and "image: image; web_caption: text" in told
    assert "web 'one'; synthetic 'two'" in told
    assert "1 of 2 rows that were looked at have no synthetic caption, e.g. b.jpg: they are bad rows" in told
    assert "rows are bad; a run stops" not in told


def test_what_tips_ray_writes_below_the_data_is_no_data(tmp_path, capsys):
    write_folder(photos := tmp_path / "photos", ["a.jpg", "b.jpg"], ["image,text", "a.jpg,one", "b.jpg,three"])
    told = ""
    for overrides in ((), (f"data.index={photos / 'mine'}",)):
        for _ in range(2):
            told = _told(tmp_path, capsys, f"storage={photos}", *overrides)
            assert "2 rows in 1 shards" in told
    assert "left out as hidden, kept by a system or written by tips_ray" in told
    assert main(["index", CONFIG, f"data.sources=[{{uri: {photos}}}]", f"data.index={photos}"]) == 2
    assert "data.index" in (error := capsys.readouterr().err) and "choose a folder without data" in error


def test_names_that_are_no_utf8_are_read_and_printed_where_the_output_is_strict(tmp_path, monkeypatch):
    write_folder(photos := tmp_path / "photos", ["caf\udce9.jpg", "b.jpg"], ["image,text", "b.jpg,two"])
    (photos / "broken\udce9.jpg").symlink_to("nothing")
    out, config = io.TextIOWrapper(io.BytesIO(), "utf-8"), ["index", CONFIG, f"storage={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "stdout", out)
    assert main([*config, f"data.sources=[{{uri: {photos}}}]"]) == 0
    out.seek(0)
    told = out.read()
    assert "3 rows" in told and "captions.csv row 1 broken\\udce9.jpg" in told
    storage.write_bytes(str(tmp_path / "tars" / "\udce9.tar"), b"")
    err = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr(sys, "stderr", err)
    assert main([*config, f"data.sources=[{{uri: {tmp_path / 'tars'}}}]"]) == 2
    err.seek(0)
    assert "\\udce9.tar': the name is no UTF-8" in err.read()


def test_pipes_and_sockets_with_names_of_images_are_left_out_and_told(tmp_path, capsys):
    write_folder(photos := tmp_path / "photos", ["a.jpg", "b.jpg"], ["image,text", "a.jpg,one", "pipe.jpg,two"])
    os.mkfifo(photos / "pipe.jpg")
    os.mkfifo(photos / "captions.tsv")
    (photos / "link.jpg").symlink_to(photos / "pipe.jpg")
    told = _told(tmp_path, capsys)
    assert "3 names are left out, as pipes, sockets or devices and no regular files: 1 " in told
    assert "3 rows in 1 shards" in told and "1 bad rows: there is no such image file" in told


def test_the_index_counts_rows_that_are_bad_already(tmp_path, capsys):
    write_folder(tmp_path / "photos", ["a.jpg"], ["image,text", "x.jpg,one", "y.jpg,two", "a.jpg,three"])
    told = _told(tmp_path, capsys)
    assert "2 bad rows: there is no such image file" in told and "row 0 x.jpg" in told
    assert "2 of 3 rows are bad; a run stops above data.max_bad_fraction (0.01)" in told


def test_images_without_any_caption_are_told_as_bad_rows(tmp_path, capsys):
    write_folder(tmp_path / "photos", ["images/a.jpg", "masks/a.png"], ["image,caption", "a.jpg,one"])
    told = _told(tmp_path, capsys, "captions.missing=other")
    words = (
        "1 of 2 rows that were looked at have no captions at all, e.g. masks/a.png: they are bad rows; give them some,"
    )
    assert f"{words} or move" in told
    words = "1 of 2 rows that were looked at have no synthetic caption, e.g. a.jpg: the other"
    assert "no web caption" not in told and words in told
    assert "no captions at all" not in _told(tmp_path, capsys, "captions.missing=empty")


def test_rows_without_captions_are_counted_behind_the_first_chunk_too(tmp_path, capsys):
    names = [f"{n:02d}.jpg" for n in range(20)]
    write_folder(tmp_path / "photos", names, ["image,caption", *(f"{name},dog {name}" for name in names[:10])])
    told = _told(tmp_path, capsys, "captions.missing=other", "data.chunk_rows=4")
    assert "    10 of 20 rows that were looked at have no captions at all, e.g. 10.jpg: they are bad rows; " in told
    captioner = ("captions.source=live", "captions.captioner={model: google/paligemma}", "data.chunk_rows=4")
    told = _told(tmp_path, capsys, "captions.missing=invalid", *captioner)
    assert "    10 of 20 rows that were looked at have no web caption, e.g. 10.jpg: they are bad rows; " in told
    assert "no synthetic" not in told


def test_three_examples_are_shown_of_the_beginning_the_middle_and_the_end(tmp_path, capsys):
    for shard in range(3):
        rows = (
            pair(f"{n:03d}", n, f"dog {shard} {n}", re_caption=[f"made {shard} {n}", f"{shard}{n}x"]) for n in range(5)
        )
        write_tar(tmp_path / "photos" / f"{shard}.tar", [member for row in rows for member in row])
    told = _told(tmp_path, capsys)
    assert f"    0.tar/000: {len(jpeg(0))} bytes; web 'dog 0 0'; synthetic 'made 0 0' and 1 more\n" in told
    assert "    1.tar/002: web 'dog 1 2'; synthetic 'made 1 2' and 1 more\n" in told
    assert "    2.tar/004: web 'dog 2 4'; " in told and told.count("web 'dog") == 3 and "warning" not in told


def test_an_example_is_a_row_with_a_caption_and_a_long_one_is_shortened(tmp_path, capsys):
    lines = ["image,caption", "a.jpg,one", "b.jpg," + "dog " * 100, "c.jpg,"]
    write_folder(tmp_path / "photos", ["a.jpg", "b.jpg", "c.jpg"], lines)
    told = _told(tmp_path, capsys)
    assert "    a.jpg: " in told and "    b.jpg: web 'dog dog" in told and "dog...; synthetic none" in told
    assert "    c.jpg" not in told


ODD = {
    "<p>a <b>dog</b></p>": "hold markup such as HTML",
    "def draw(dog): return dog": "look like code or JSON",
    "17": "are numbers or signs without a word",
    "IMG_1234.jpg": "look like file names or addresses",
    "собака бежит по траве": "are of another script than most (4 Cyrillic; most are Latin)",
}


@pytest.mark.parametrize("text", ODD)
def test_captions_that_look_like_something_else_are_a_warning_and_no_refusal(tmp_path, capsys, text):
    names = [f"{n:02d}.jpg" for n in range(20)]
    texts = [text if n >= 16 else f"a dog of the {n}. house" for n in range(20)]
    texts[17:] = (
        [f"{text}{n}" if text == "17" else f"{n} {text}" for n in range(3)] if text[:3] != "IMG" else [text] * 3
    )
    lines = (f"{name}\t{text}" for name, text in zip(names, texts, strict=True))
    write_folder(tmp_path / "photos", names, ["image\tcaption", *lines], "x.tsv")
    told = _told(tmp_path, capsys)
    assert f"    warning: 4 of 20 sampled web captions {ODD[text]}, e.g. {text!r} of 16.jpg; " in told


def test_the_splits_of_karpathys_json_are_told(tmp_path, capsys):
    splits = ["train", "train", "restval", "test"]
    images = [
        {"filename": f"{n}.jpg", "split": split, "sentences": [{"raw": "a dog"}]} for n, split in enumerate(splits)
    ]
    write_folder(
        tmp_path / "photos", [f"{n}.jpg" for n in range(4)], [json.dumps({"images": images})], "dataset_coco.json"
    )
    assert (
        "    images of all splits are read: train 2, restval 1, test 1; take the images of test out of the JSON if "
        "scores are measured on them\n" in _told(tmp_path, capsys)
    )


def test_lines_of_a_metadata_jsonl_without_a_file_name_are_counted_with_their_lines(tmp_path, capsys):
    lines = [
        '{"file_name": "a.jpg", "text": "a dog"}',
        '{"text": "lost"}',
        "",
        '{"file_name": null, "text": "x"}',
        "{}",
    ]
    write_folder(tmp_path / "photos", ["a.jpg"], lines, "metadata.jsonl")
    told = _told(tmp_path, capsys)
    assert "4 rows in 1 shards" in told and "3 bad rows: the line names no image" in told
    assert "row 1 line 2\n" in told and "row 2 line 4\n" in told and "row 3 line 5\n" in told


@pytest.mark.ray
def test_decoding_every_image_finds_the_bad_ones_ahead_and_keeps_them_in_the_index(tmp_path, capsys, cluster):
    write_folder(
        tmp_path / "photos", ["a.jpg", "b.jpg", "c.jpg"], ["image,text", "a.jpg,w", "b.jpg,x", "c.jpg,y", "x.jpg,z"]
    )
    whole = (tmp_path / "photos" / "b.jpg").read_bytes()
    (tmp_path / "photos" / "b.jpg").write_bytes(whole[: len(whole) // 2])
    told = _told(tmp_path, capsys, "--decode")
    assert "decoded 4 of 4 rows" in told and "row 1 b.jpg" in told and "row 3 x.jpg" in told
    again = _told(tmp_path, capsys)
    assert "2 of 4 rows are bad" in again and "row 1 b.jpg" in again


@pytest.mark.ray
def test_what_a_task_says_is_told_without_rays_words_around_it(cluster):
    def fail() -> None:
        raise ValueError("the shard is no tar")

    with pytest.raises(ValueError, match="^the shard is no tar$") as error, root_causes_raised():
        ray.get(ray.remote(fail).remote())
    assert type(error.value) is ValueError
