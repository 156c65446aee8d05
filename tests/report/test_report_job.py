"""`tips-ray report RUN_FOLDER` makes a report from the folder alone."""

import argparse

import pytest

from jobs.report import add_arguments, run
from tips_ray.report.of_folder import report_of
from tips_ray.runs.folder import RunFolder

CONFIG = "name: small\nschedule: {total_steps: 30}\nglobal_batch_images: 8\ndata: {sources: [{uri: photos}]}\n"


@pytest.fixture
def folder(tmp_path):
    run = RunFolder(str(tmp_path / "small"))
    run.claim(CONFIG)
    run.log_event("start", 0, machine={"cpus": 2}, versions={"torch": "2.15"})
    for step, speed in ((10, 1.0), (20, 5.0), (30, 6.0)):
        run.log_metrics(step, {"loss/total": 40.0 / step, "images_per_second": speed})
    run.log_rejects([{"step": 3, "sample_id": 7, "key": "a.tar#7", "reason": "truncated"}])
    run.flush()
    return run.uri


def test_the_headline_says_how_far_and_how_well(folder):
    report = report_of(folder)
    assert report.headline == "All 30 steps are done; the loss went from 4 to 1.333."
    assert report.images_per_second == {"training": 5.0}
    assert report.run["data"] == "photos" and report.run["images per step"] == 8
    assert report.machine == {"cpus": 2} and report.versions == {"torch": "2.15"}


def test_the_report_is_written_into_the_folder_or_where_told(folder, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    run(parser.parse_args([folder]))
    run(parser.parse_args([folder, "--output", str(tmp_path / "there" / "x.html")]))
    assert capsys.readouterr().out.split() == [f"{folder}/report.html", str(tmp_path / "there" / "x.html")]
    page = (tmp_path / "there" / "x.html").read_text()
    assert "truncated" in page and "loss/total" in page and "global_batch_images" in page


def test_a_run_that_has_only_begun_has_a_report(tmp_path):
    RunFolder(str(tmp_path)).claim(CONFIG)
    report = report_of(str(tmp_path))
    assert report.headline == "No step has been logged yet."
    assert list(report.next_commands) == [f"tips-ray pretrain {tmp_path}/config.yaml"]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config\.yaml: there is no such file"):
        report_of(str(tmp_path))
