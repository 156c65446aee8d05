"""`tips-ray compare` on run folders with known metrics."""

import csv
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from toy_run import tiny_run

from jobs.cli import main
from tips_ray import storage
from tips_ray.runs import RunFolder
from tips_ray.runs.run import claim_data

NOISE = (0.3, -0.1, 0.2, -0.4, 0.0, 0.25)
"""What a seed adds to the loss in every setting."""


def _run(root: Path, name: str, losses: Sequence[float], data: str = "aa", **values) -> str:
    """A run folder whose steps 1, 2, ... have these losses."""
    folder = RunFolder(f"{root}/{name}")
    folder.claim(yaml.safe_dump(tiny_run(root, "a", name=name, **values).model_dump(mode="json")))
    claim_data(folder.uri, data)
    storage.write_text(f"{folder.uri}/tokenizer.json", "vocabulary")
    for step, loss in enumerate(losses, start=1):
        folder.log_metrics(step, {"loss/total": loss, "hits": -loss})
    return folder.uri


def _seeds(root: Path, name: str, gain: float, count: int = 6, **values) -> list[str]:
    noise = NOISE[:count]
    return [
        _run(root, f"{name}-{n}", [9, 5 + add - gain * (1 + n / 10)], seed=n, **values) for n, add in enumerate(noise)
    ]


def _compare(capsys, *words: str) -> tuple[int, str]:
    code = main(["compare", *words])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_six_seeds_on_the_same_batches_give_a_claim_and_say_what_pairs_save(tmp_path, capsys):
    """Gains of .1, .11, ..., .15 with a mean of .125; seeds alone differ by .7, so that without pairs nothing shows."""
    plain = _seeds(tmp_path, "plain", 0)
    alpha = _seeds(tmp_path, "alpha", 0.1, objective__alpha=2.0, resources__workers=1)
    code, said = _compare(capsys, *plain, *alpha)
    assert (
        code == 0 and "differ in: objective.alpha\nnote: loss/total sums the losses by objective.alpha, which " in said
    )
    assert "objective.alpha=1.0 (baseline): 6 runs, seeds 0, 1, 2, 3, 4, 5\n" in said
    assert (
        "against objective.alpha=1.0, loss/total at step 2: better\n  0.125 lower (0.105 to 0.145), p 0.031, " in said
    )
    assert "6 pairs on the same batches; pairs correlate by 1.00 and save 100% of the variance" in said
    code, said = _compare(capsys, *plain, *alpha, "--metric", "loss/total", "--metric", "hits")
    assert (
        "no claim" in said and "p 0.062 as one of 2 comparisons\n  a claim needs at least 1 more seed of both\n" in said
    )
    code, said = _compare(capsys, *alpha, *plain, "--metric", "hits")
    assert code == 0 and "hits at step 2: worse\n  0.125 lower (0.105 to 0.145), p 0.031" in said


def test_fewer_pairs_and_other_batches_give_no_claim_and_say_why(tmp_path, capsys):
    plain, alpha = (_seeds(tmp_path, name, gain, 3, objective__alpha=1 + gain) for name, gain in (("a", 0), ("b", 1)))
    assert "no claim\n" in (said := _compare(capsys, *plain, *alpha)[1])
    assert said.endswith("\n  a claim needs at least 3 more seeds of both\n")
    others = _seeds(tmp_path, "c", 1, 3, data="bb")
    said = _compare(capsys, *others, "--baseline", plain[0], *plain[1:])[1]
    assert said.startswith("differ in: data\ndata=bb: 3 runs, seeds 0, 1, 2\n") and "data=aa (baseline): 3 runs" in said
    assert "no pairs: the runs saw other batches\n  a claim needs at least 3 more seeds of both" in said


def test_runs_are_compared_at_the_last_step_that_all_have_and_with_what_they_reached(tmp_path, capsys):
    first, second = _run(tmp_path, "a", [4, 2, 3]), _run(tmp_path, "b", [4, 3.5], objective__beta=1.0)
    said = _compare(capsys, first, second, "--csv", str(tmp_path / "runs.csv"))[1]
    assert (
        "no claim\n  1.5 higher, one seed has no interval, 1 pair on the same batches\n  a claim needs at least 5 more"
        in said
        and "  loss/total: final 3, best 2, at step 2 2\n" in said
        and "  loss/total: final 3.5, best 3.5, at step 2 3.5\n" in said
    )
    with (tmp_path / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["final"], row["best"], row["at step 2"]) for row in rows] == [
        (first, "3.0", "2.0", "2.0"),
        (second, "3.5", "3.5", "3.5"),
    ]
    assert len(rows[0]["batch_fingerprint"]) == 64 and rows[0]["batch_fingerprint"] == rows[1]["batch_fingerprint"]


def test_hours_of_a_run_folder_follow_its_attempts_and_its_workers(tmp_path, capsys, monkeypatch):
    """Two workers take 36 s for each of steps 1 to 4; after a rest of an hour, one worker takes 72 s for 5 and 6.

    By step 4 these are 4 x 72 worker-seconds, .08 hours. Step 5 follows the start and counts at the median pace, 36 s;
    step 6 takes its own 72 s: .01 and .02 hours more. The plain run has .01 hours a step: two workers of 18 s.
    """
    seconds = iter(range(0, 1000, 18))
    monkeypatch.setattr(
        "tips_ray.runs.folder._now", lambda: f"{datetime.fromtimestamp(next(seconds), UTC):%FT%T}+00:00"
    )
    plain = _run(tmp_path, "plain", range(12, 0, -1))
    uri = _run(tmp_path, "elastic", [], objective__alpha=2.0)
    folder = RunFolder(uri)
    clock = ["10:00:00", "10:01:00", "10:01:36", "10:02:12", "10:02:48", "11:02:50", "11:10:00", "11:11:12"]
    times = (f"2026-01-01T{time}+00:00" for time in clock)
    monkeypatch.setattr("tips_ray.runs.folder._now", lambda: next(times))
    folder.log_event("start", 0, workers=2)
    for step in range(1, 5):
        folder.log_metrics(step, {"loss/total": 9.0 - step})
    folder.log_event("resume", 4, workers=1)
    for step in (5, 6):
        folder.log_metrics(step, {"loss/total": 9.0 - step})
    code, said = _compare(capsys, uri, plain, "--at", "gpu-hours", "--json", str(tmp_path / "out" / "runs.json"))
    assert code == 0, said
    assert "  loss/total: final 3, best 3, at 0.11 worker-hours 3\n" in said
    assert "  loss/total: final 1, best 1, at 0.11 worker-hours 2\n" in said
    found = json.loads((tmp_path / "out" / "runs.json").read_text())
    assert found["compared_at"] == {"by": "gpu-hours", "unit": "worker-hours", "value": pytest.approx(0.11)}


def test_a_run_folder_that_diverged_is_told(tmp_path, capsys):
    first = _run(tmp_path, "a", [4, 2, 3])
    second = _run(tmp_path, "b", [4, float("nan"), float("inf")], objective__beta=1.0)
    said = _compare(capsys, first, second)[1]
    assert "  loss/total: final diverged, best diverged, at step 3 diverged\n" in said
    assert f"\n  {second}, seed 0: loss/total diverged at step 2\n" in said
    assert said.endswith(
        "at step 3: no claim\n  on one side every run had diverged by step 3\n  1 of 1 run of objective.beta=1.0 had "
        "diverged by then: not in the numbers\n  a claim needs at least 6 more seeds of both\n"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("{a}", "/a is the only run: give another one to compare it with"),
        ("{a} {a}/none", "/a/none is no run folder: it has no config.yaml"),
        ("{a} {same}", "have one config and the seed 0: leave one out"),
        ("{a} {b} --metric loss/none", "has no finite value of loss/none up to step 1; it has hits, loss/total"),
        ("{a} {late} --metric loss/late", "/a has no finite value of loss/late up to step 1"),
        ("{late} {a} --metric loss/late", "has no finite value of loss/late up to step 1"),
        ("{a} {b} --metric grad", "metric grad: say which values are better, as grad:higher or grad:lower"),
        ("{a} {b} --metric loss/total:more", "metric loss/total:more: say which values are better"),
        ("{a} {b} --baseline {a}/none", "/a/none) is no run folder and none of these runs: a, b"),
        ("{a} {b} --mlflow-uri x", "--mlflow-uri (x) is about runs of MLflow: give --experiment or --sweep beside it"),
        ("{a} {b} --at gpu-hours", "/a has logged no two steps in one go: leave it out, or wait"),
        ("{a} {silent}", "/silent has logged no step yet: wait for its first one, or leave it out"),
    ],
)
def test_what_cannot_be_compared_is_a_sentence(tmp_path, capsys, words, told):
    runs = {"a": _run(tmp_path, "a", [1]), "same": _run(tmp_path, "same", [1])}
    runs |= {"b": _run(tmp_path, "b", [1], seed=1), "silent": _run(tmp_path, "silent", [], seed=2)}
    runs["late"] = _run(tmp_path, "late", [1, 2], seed=3)
    late = RunFolder(runs["late"])
    late.log_metrics(3, {"loss/late": 1.0})
    late.flush()
    code, said = _compare(capsys, *words.format(**runs).split())
    assert code == 2 and said.startswith("error: ") and told in said and said.count("\n") == 1
