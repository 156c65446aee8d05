"""`tips-ray curate` and `tips-ray data verify` through real Ray Data, on rendered scenes with planted faults."""

import contextlib
import io
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from planted import planted
from processes import command_of, family
from toy_captions import until
from toy_embedding import write_model
from toy_run import scene_row
from writers import write_parquet, write_tar

from jobs.cli import main
from tips_ray.config import DataConfig, SourceConfig
from tips_ray.data.index import Index, build_index

SCENES = 24
pytestmark = pytest.mark.ray


def _pixels(number: int) -> np.ndarray:
    with Image.open(io.BytesIO(scene_row(number)["image"])) as image:
        return np.array(image.convert("RGB"))


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _rows() -> list[tuple[str, bytes, str, dict[str, Any]]]:
    """Key, image, caption, fields; what is planted stands in the key."""
    scenes = [(f"{n:03d}-scene", scene_row(n)["image"], scene_row(n)["synthetic_caption"], {}) for n in range(SCENES)]
    german = "Eine rote Kugel liegt vor einem grünen Würfel auf dem grauen Boden"
    return [
        *scenes,
        ("100-copy", _jpeg(planted(_pixels(1), "recompressed")), "a copy of a picture of things on the ground", {}),
        ("101-mirror", _jpeg(planted(_pixels(2), "flipped")), "a mirrored picture of things on the ground", {}),
        ("102-german", scene_row(30)["image"], german, {}),
        ("103-unsafe", scene_row(31)["image"], "a picture of things on the grey ground", {"punsafe": 0.9}),
        ("104-blocked", scene_row(32)["image"], "a picture of things on the ground", {"url": "http://a.bad.com/x.jpg"}),
        ("105-tiny", _jpeg(_pixels(33)[:20, :20]), "a tiny picture of the grey ground", {}),
        ("106-broken", b"no image", "a picture that is none", {}),
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Raw tars, a sealed copy of scene 0, curated scenes and a model."""
    place = tmp_path_factory.mktemp("curate")
    rows = _rows()
    for start in range(0, len(rows), 10):
        members = []
        for key, image, caption, fields in rows[start : start + 10]:
            metadata = {"punsafe": 0.01, "url": f"http://x.org/{key}", **fields}
            members += [(f"{key}.jpg", image), (f"{key}.txt", caption.encode())]
            members += [(f"{key}.json", json.dumps(metadata).encode())]
        write_tar(place / "raw" / f"{start:05d}.tar", members)
    for name, number in (("sealed", 0), ("curated", 5)):
        (place / name).mkdir()
        (place / name / "x.jpg").write_bytes(_jpeg(planted(_pixels(number), "squashed")))
    write_model(place / "model")
    return place


def _config(place: Path, name: str, **keys: Any) -> str:
    config = {"source": {"uri": f"{place}/raw"}, "out": f"{place}/{name}", "chunk_rows": 4}
    config |= {"images": {"min_side_px": 32}, "fields": {"punsafe": {"max": 0.1}}, "url_field": "url"}
    config |= {"blocked_domains": ["bad.com"], "sealed": {"sets": {"test": {"uri": f"{place}/sealed"}}}}
    (place / f"{name}.yaml").write_text(yaml.safe_dump(config | keys))
    return str(place / f"{name}.yaml")


def _curated(place: Path, name: str, **keys: Any) -> tuple[Path, str]:
    """The selection, and what the command told."""
    with contextlib.redirect_stdout(io.StringIO()) as told:
        assert main(["curate", _config(place, name, **keys)]) == 0
    line = next(line for line in told.getvalue().splitlines() if line.startswith("selection"))
    return Path(line.split()[1].rstrip(":")), told.getvalue()


def _index(folder: Path) -> Index:
    return build_index(DataConfig(sources=(SourceConfig(uri=str(folder)),)))


def _keys(index: Index) -> list[str]:
    rows = [row for chunk in range(len(index.chunks.rows)) for row in index.read(chunk)]
    assert not any(row["error"] for row in rows)
    return [row["key"] for row in rows]


@pytest.fixture(scope="module")
def curated(place, cluster) -> tuple[Path, str]:
    return _curated(place, "plain", rewrite_below=0)


def test_every_planted_fault_goes_and_every_other_row_stays(curated):
    selection, told = curated
    assert _keys(_index(selection)) == [f"{n:03d}-scene" for n in range(1, SCENES)]
    (decisions,) = (selection.parents[1] / "reports").glob("*/decisions.parquet")
    stages = {row["key"]: row["stage"] for row in pq.read_table(decisions).to_pylist()}
    wrong = {key: stage for key, stage in stages.items() if stage != "kept"}
    assert wrong == {
        "000-scene": "sealed test", "100-copy": "duplicate", "101-mirror": "duplicate", "102-german": "not English",
        "103-unsafe": "field punsafe", "104-blocked": "blocked domain", "105-tiny": "too small",
        "106-broken": "unreadable",
    }  # fmt: skip
    assert "23 kept, 1 unreadable, 1 too small" in told
    page = decisions.with_name("report.html").read_text()
    assert "23 of 31 rows are kept" in page and page.count("<svg") == 4 and "kept instead: 001-scene" in page


def test_images_in_new_shards_are_the_same_data_in_the_same_order(place, curated):
    selection, told = _curated(place, "shards", rewrite_below=1)
    first, second = _index(curated[0]), _index(selection)
    assert "images are in new shards" in told and first.fingerprint == second.fingerprint
    assert [first.read(0)[n]["image"] for n in range(23)] == [second.read(0)[n]["image"] for n in range(23)]
    (shard,) = (place / "shards" / "shards").glob("*/*.parquet")
    metadata = json.loads(pq.read_table(shard)["metadata"][0].as_py())
    assert metadata == {"punsafe": 0.01, "url": "http://x.org/001-scene"}


@pytest.mark.slow
def test_an_encoder_judges_captions_and_distance_to_curated_images(place, curated):
    keys = {"encoder": f"{place}/model", "similarity": {"min": -1}, "rewrite_below": 0, "sealed": None}
    keys |= {"near": {"sets": {"one": {"uri": f"{place}/curated"}}, "min": -1, "per_query": 3}}
    selection, told = _curated(place, "encoder", **keys)
    assert "3 kept" in told and "not among the nearest" in told
    base = _keys(_index(selection))
    assert "005-scene" in base
    rows = [scene_row(number) for number in (40, 41)]
    write_parquet(place / "validation" / "x.parquet", {name: [row[name] for row in rows] for name in rows[0]})
    del keys["near"], keys["encoder"]
    keys |= {"weakest": {"validation": {"uri": f"{place}/validation"}, "share": 0.5, "per_query": 2}}
    with contextlib.redirect_stdout(io.StringIO()) as told_of_more:
        words = [_config(place, "encoder", **keys, base=str(selection)), "--for", f"{place}/model"]
        assert main(["curate", *words]) == 0
    line = next(line for line in told_of_more.getvalue().splitlines() if line.startswith("selection"))
    more = _keys(_index(Path(line.split()[1].rstrip(":"))))
    assert "1 of 2 validation pairs" in told_of_more.getvalue()
    assert len(more) == 5 and {*base} < {*more}


def _verify(*words: str) -> tuple[int, str]:
    with contextlib.redirect_stdout(io.StringIO()) as told:
        code = main(["data", "verify", *words])
    return code, told.getvalue()


def test_a_lock_tells_what_another_site_has(place, curated, monkeypatch):
    """The other site has its rows in reverse, without row 3, and row 4 with another caption."""
    monkeypatch.chdir(place)
    selection = curated[0]
    code, told = _verify(str(selection))
    assert (code, told.splitlines()[-1]) == (0, "23 rows: 23 there")
    rows = [row for row in reversed(_rows()) if row[0] != "003-scene"]
    captions = ["another caption" if key == "004-scene" else caption for key, _, caption, _ in rows]
    write_parquet(place / "site" / "x.parquet", {"image": [row[1] for row in rows], "caption": captions})
    code, told = _verify(str(selection), "--at", f"{place}/site", "--out", f"{place}/here")
    assert code == 1 and "23 rows: 21 there" in told and "1 missing" in told and "1 caption changed" in told
    here = build_index(DataConfig(sources=(SourceConfig(uri=f"{place}/here/selection"),)))
    assert here.fingerprint == _index(selection).fingerprint
    bad = [row["key"] for row in here.read(0) if row["error"]]
    assert bad == ["003-scene", "004-scene"]
    problems = pq.read_table(place / "here" / "problems.parquet").to_pylist()
    assert [(row["key"], row["state"]) for row in problems] == [
        ("003-scene", "missing"),
        ("004-scene", "caption changed"),
    ]


def test_mistakes_are_one_sentence(place, cluster, capsys):
    assert main(["curate", _config(place, "wrong", images={"min_side_px": 5000})]) == 2
    assert "error: no row was kept" in capsys.readouterr().err
    assert main(["data", "verify", f"{place}/raw"]) == 2
    assert "there is no lock.json of a selection" in capsys.readouterr().err
    assert main(["data", "verify", f"{place}/raw", "--at", "x"]) == 2
    assert "--at and --out belong together" in capsys.readouterr().err
    assert main(["curate", _config(place, "wrong"), "--for", "out/runs/x"]) == 2
    assert "--for needs weakest.validation" in capsys.readouterr().err
    assert main(["curate", _config(place, "wrong", fields={"nsfw": {"max": 1}})]) == 2
    assert "fields.nsfw: none of the first 4 rows has 'nsfw'; they have punsafe, url" in capsys.readouterr().err
    assert main(["curate", _config(place, "wrong", encoder=f"{place}/nowhere", similarity={"min": 0})]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert main(["curate", _config(place, "wrong", sealed={"sets": {"x": {"uri": f"{place}/nowhere"}}})]) == 2
    assert "nowhere: no file is there" in capsys.readouterr().err
    assert main(["curate", _config(place, "wrong", url_field=None)]) == 2
    assert "blocked_domains: the key holds no URL in any row" in capsys.readouterr().err
    assert main(["curate", _config(place, "raw")]) == 2
    assert "holds data of" in capsys.readouterr().err


def _bytes(out: Path) -> dict[str, bytes]:
    """Signals and selections by name."""
    files = [*out.glob("signals/*/signals/*.parquet"), *out.glob("selections/*/*.*")]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_killed_anywhere_and_run_again_it_writes_the_same_bytes(place, curated):
    config, out = _config(place, "killed", rewrite_below=0), place / "killed"
    command = [sys.executable, "-m", "jobs.cli", "curate", config]
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: len(list(out.glob("signals/*/signals/*.parquet"))) >= 1)
    time.sleep(random.uniform(0, 1))
    workers = [pid for pid in family(job.pid) if "Agent" not in command_of(pid)]  # Ray's agents stay a minute
    job.kill()
    job.wait()
    until(lambda: not any(map(command_of, workers)), 60)
    assert subprocess.run(command, capture_output=True).returncode == 0
    whole, again = _bytes(curated[0].parents[1]), _bytes(out)
    lock = next(name for name in whole if name.endswith("lock.json"))
    assert whole.keys() == again.keys() and len(whole) > 10
    assert whole == again, [name for name in whole if whole[name] != again[name]]
    assert json.loads(again[lock])["rows"] == 23
