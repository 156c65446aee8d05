"""What `tips-ray index` reports about a folder of images."""

from pathlib import Path

import pytest
import ray
from writers import write_folder

from jobs.cli import main
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
    assert "1 of the first 2 rows have no synthetic caption: they are bad rows" in told
    assert "rows are bad; a run stops" not in told


def test_the_index_counts_rows_that_are_bad_already(tmp_path, capsys):
    write_folder(tmp_path / "photos", ["a.jpg"], ["image,text", "x.jpg,one", "y.jpg,two", "a.jpg,three"])
    told = _told(tmp_path, capsys)
    assert "2 bad rows: there is no such image file" in told and "row 0 x.jpg" in told
    assert "2 of 3 rows are bad; a run stops above data.max_bad_fraction (0.01)" in told


@pytest.mark.ray
def test_decoding_every_image_finds_the_bad_ones_ahead_and_keeps_them_in_the_index(tmp_path, capsys, cluster):
    write_folder(
        tmp_path / "photos", ["a.jpg", "b.jpg", "c.jpg"], ["image,text", "a.jpg,1", "b.jpg,2", "c.jpg,3", "x.jpg,4"]
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
