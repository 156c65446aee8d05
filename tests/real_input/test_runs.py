"""Whole runs of `tips-ray pretrain` on the photos: jobs/configs/photos.yaml with a tiny model."""

import math
from itertools import product
from pathlib import Path

import pytest
from photos import photos, upload_layouts, write_layouts

from jobs.cli import main
from tips_ray import storage
from tips_ray.runs.folder import RunFolder

CONFIG = Path(__file__).parents[2] / "jobs" / "configs" / "photos.yaml"
STEPS, BATCH = 6, 16
TINY = [
    "image={width: 32, depth: 2, num_heads: 2, ffn_hidden: 64, image_size_px: 28}",
    "text={width: 32, depth: 1, num_heads: 2, ffn_hidden: 64, vocab_size: 400, max_tokens: 32}",
    "head={num_prototypes: 64, hidden: 64, bottleneck: 32}",
    "views={global_px: 28, local_px: 14, local_crops: 2}",
    f"global_batch_images={BATCH}",
    f"schedule.total_steps={STEPS}",
    "log_every_steps=1",
    f"checkpoint_every_steps={STEPS}",
]

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def places(s3_of_file, cluster, tmp_path_factory) -> dict[str, str]:
    """All photos, once."""
    root = tmp_path_factory.mktemp("photos")
    write_layouts(root, photos())
    bucket = s3_of_file.make_bucket("runs")
    upload_layouts(root, bucket)
    return {"local": str(root), "s3": bucket}


def _pretrain(storage_uri: str, sources: str) -> str:
    """The folder of a run that finished, with its report."""
    overrides = [f"storage={storage_uri}", f"data.sources={sources}", *TINY]
    assert main(["pretrain", str(CONFIG), *overrides]) == 0
    uri = storage.join(storage_uri, "photos")
    assert main(["report", uri]) == 0
    return uri


def _assert_whole(uri: str) -> None:
    """Every step logged finite losses, no row was bad, and the report shows the run."""
    folder = RunFolder(uri)
    metrics = list(folder.read_metrics())
    assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))
    losses = [value for line in metrics for name, value in line.items() if name.startswith("loss/")]
    assert len(losses) >= 4 * STEPS and all(map(math.isfinite, losses))
    assert list(folder.read_rejects()) == []
    assert "loss/total" in storage.read_text(storage.join(uri, "report.html"))


IN_CI = ("tars", "s3")
OF_TWO_SOURCES = [("folder", "local"), ("parquet", "s3")]
RUNS = [
    pytest.param(layout, place, marks=pytest.mark.slow if (layout, place) == IN_CI else pytest.mark.variant)
    for layout, place in product(("tars", "folder", "parquet", "hugging_face"), ("s3", "local"))
    if (layout, place) not in OF_TWO_SOURCES
]
"""With the run of two sources below, every format in every place."""


@pytest.mark.parametrize(("layout", "place"), RUNS)
def test_a_run_finishes_on_every_format_in_every_place(layout, place, places, tmp_path):
    _assert_whole(_pretrain(str(tmp_path), f"[{{uri: {places[place]}/{layout}}}]"))


@pytest.mark.variant
def test_two_sources_of_other_formats_and_places_are_one_run_whose_folder_is_on_s3(places):
    sources = f"[{{uri: {places['local']}/folder}}, {{uri: {places['s3']}/parquet, weight: 0.5}}]"
    _assert_whole(_pretrain(f"{places['s3']}/storage", sources))
