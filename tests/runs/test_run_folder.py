"""The run folder on a local disk and on a real S3 server: two kinds of file, one behaviour."""

import errno
import io
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from toy_run import tiny_run

from tips_ray import storage
from tips_ray.runs import jsonl
from tips_ray.runs.folder import RunFolder
from tips_ray.storage import StorageError

CONFIG = "name: small\nschedule: {peak_lr: 0.001}\nresources: {workers: 2}\ndata: {sources: [{uri: a}]}\n"


@pytest.fixture
def uri(folder):
    """URI of an empty run folder."""
    return folder


def _steps(folder: RunFolder) -> list[int]:
    return [line["step"] for line in folder.read_metrics()]


def _attempt(uri: str, steps: range, restored_step: int | None = None) -> RunFolder:
    folder = RunFolder(uri)
    if restored_step is not None:
        folder.drop_after(restored_step)
    for step in steps:
        folder.log_metrics(step, {"loss/total": float(step)})
    folder.flush()
    return folder


def test_a_part_on_an_object_store_is_read_once_and_a_growing_file_again(uri, monkeypatch):
    reads: list[str] = []
    folder, read_bytes = _attempt(uri, range(1, 3)), storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda place: reads.append(place) or read_bytes(place))
    assert _steps(folder) == [1, 2] and len(reads) == 1
    folder.log_metrics(3, {"loss/total": 3.0})
    folder.flush()
    assert _steps(folder) == [1, 2, 3] and _steps(folder) == [1, 2, 3]
    assert len(reads) == (3 if storage.is_local(uri) else 2)


def test_the_first_claim_is_new_and_the_second_resumes(uri):
    assert RunFolder(uri).claim(CONFIG) == "new"
    assert RunFolder(uri).claim(CONFIG) == "resumed"
    assert storage.read_text(f"{uri}/config.yaml") == CONFIG


def test_passwords_of_urls_are_in_no_config_and_a_resume_needs_none(uri):
    secret = (
        f"{CONFIG}tracking: {{mlflow_uri: 'http://me:SECRET@host:5000'}}\ncaptions: {{tokenizer: 's3://A:B@c/d'}}\n"
    )
    plain = secret.replace("me:SECRET@", "").replace("A:B@", "")
    assert RunFolder(uri).claim(secret) == "new"
    assert storage.read_text(f"{uri}/config.yaml") == plain
    storage.write_text(f"{uri}/config.yaml", secret)  # as an earlier version wrote it
    assert RunFolder(uri).config_changes(secret, 0) == RunFolder(uri).config_changes(plain, 0) == {}
    assert RunFolder(uri).claim(secret) == "resumed"
    assert storage.read_text(f"{uri}/config.yaml") == plain and RunFolder(uri).read_events() == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "it is empty"),
        ("name: small\nschedule: {peak_lr", "it is no YAML: while"),
        ("[]", "it holds no keys"),
    ],
)
def test_a_config_that_a_crash_cut_off_is_named(tmp_path, text, told):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(StorageError, match=f"{tmp_path}/config.yaml is not the config of a run .{told}"):
        RunFolder(str(tmp_path)).claim(CONFIG)


def test_another_config_is_refused_and_every_differing_key_is_named(uri):
    RunFolder(uri).claim(CONFIG)
    other = CONFIG.replace("0.001", "0.002").replace("uri: a", "uri: a, weight: 2").replace("workers: 2", "workers: 4")
    with pytest.raises(ValueError) as error:
        RunFolder(uri).claim(other)
    assert str(error.value).splitlines()[1:] == [
        "  data.sources.0.weight: absent -> 2",
        "  schedule.peak_lr: 0.001 -> 0.002",
    ]
    assert storage.read_text(f"{uri}/config.yaml") == CONFIG


def test_a_run_written_before_a_key_existed_has_its_default(tmp_path):
    config = tiny_run(tmp_path, "a").model_dump(mode="json")
    before = {**config, "objective": {k: v for k, v in config["objective"].items() if not k.startswith("masked_")}}
    RunFolder(str(tmp_path)).claim(yaml.safe_dump(before))
    assert RunFolder(str(tmp_path)).claim(yaml.safe_dump(config)) == "resumed"
    config["objective"]["masked_student_temperature"] = 0.2
    with pytest.raises(ValueError, match="objective.masked_student_temperature: null -> 0.2"):
        RunFolder(str(tmp_path)).claim(yaml.safe_dump(config))


def test_another_number_of_workers_and_another_place_of_the_data_are_allowed_and_noted(uri):
    RunFolder(uri).claim(CONFIG)
    other = CONFIG.replace("workers: 2", "workers: 4").replace("uri: a", "uri: b")
    assert RunFolder(uri).claim(other) == "resumed"
    assert [(event["kind"], event["changes"]) for event in RunFolder(uri).read_events()] == [
        ("config", {"data.sources.0.uri": '"a" -> "b"', "resources.workers": "2 -> 4"})
    ]
    assert storage.read_text(f"{uri}/config.yaml") == other


def test_captions_may_be_made_before_or_meanwhile_and_micro_batches_change_but_not_the_data_type(uri):
    config = CONFIG.replace("workers: 2", "dtype: fp32") + "captions: {source: live}\nmicro_batch_images: 4\n"
    RunFolder(uri).claim(config)
    other = config.replace("live", "store").replace("images: 4", "images: auto")
    assert RunFolder(uri).claim(other) == "resumed"
    with pytest.raises(ValueError, match='another config.*\n  resources.dtype: "fp32" -> "bf16"$'):
        RunFolder(uri).claim(other.replace("fp32", "bf16"))
    with pytest.raises(ValueError, match='another config.*\n  captions.source: "store" -> "column"$'):
        RunFolder(uri).claim(other.replace("store", "column"))


def test_a_run_keeps_its_data_type_on_a_machine_whose_own_would_be_another(tmp_path):
    """Both starts leave `resources.dtype` out: `auto`."""
    began, elsewhere = (
        yaml.safe_dump(tiny_run(tmp_path, "a", resources__gpus_per_worker=gpus).model_dump(mode="json"))
        for gpus in (0, 1)
    )
    RunFolder(str(tmp_path)).claim(began)
    with pytest.raises(ValueError, match='another config.*\n  resources.dtype: "fp32" -> "bf16"$'):
        RunFolder(str(tmp_path)).claim(elsewhere)
    kept = tiny_run(tmp_path, "a", resources__gpus_per_worker=1, resources__dtype="fp32").model_dump(mode="json")
    assert RunFolder(str(tmp_path)).claim(yaml.safe_dump(kept)) == "resumed"


CHANGED = CONFIG.replace("0.001", "0.001, changes: [{from_step: 5, beta: 1}, {from_step: 9, beta: 2}]")


@pytest.mark.parametrize(
    "other",
    [
        CHANGED.replace("beta: 2", "beta: 3"),
        CHANGED.replace("from_step: 9", "from_step: 7"),
        CHANGED.replace(", {from_step: 9, beta: 2}", ""),
        CHANGED.replace("beta: 2}", "beta: 2}, {from_step: 11, beta: 2}"),
    ],
)
def test_changes_of_the_schedule_from_the_step_it_resumes_at_are_allowed_and_noted(uri, other):
    RunFolder(uri).claim(CHANGED)
    assert RunFolder(uri).claim(other, step=7) == "resumed"
    (event,) = RunFolder(uri).read_events()
    assert event["kind"] == "config" and all(key.startswith("schedule.changes.") for key in event["changes"])
    assert storage.read_text(f"{uri}/config.yaml") == other


@pytest.mark.parametrize(
    "other",
    [
        CHANGED.replace("beta: 1", "beta: 2"),
        CHANGED.replace("from_step: 9", "from_step: 6"),
        CHANGED.replace("{from_step: 5, beta: 1}, ", ""),
        CHANGED.replace("from_step: 5", "from_step: 8"),
        CONFIG,
    ],
)
def test_a_change_of_the_past_is_refused(uri, other):
    RunFolder(uri).claim(CHANGED)
    with pytest.raises(ValueError, match=r"another config.*\n  schedule.changes"):
        RunFolder(uri).claim(other, step=7)
    assert storage.read_text(f"{uri}/config.yaml") == CHANGED


def test_an_empty_folder_reads_as_nothing(uri):
    folder = RunFolder(uri)
    folder.flush()
    assert folder.read_metrics() == folder.read_events() == folder.read_rejects() == []


def test_metrics_come_back_as_they_went_in(uri):
    folder = _attempt(uri, range(1, 3))
    folder.log_metrics(3, {"loss/total": math.nan, "images_per_second": 2.5, "count": 4})
    folder.flush()
    *_, last = folder.read_metrics()
    assert _steps(folder) == [1, 2, 3]
    assert math.isnan(last["loss/total"]) and last["images_per_second"] == 2.5 and last["count"] == 4
    assert last["time"].endswith("+00:00")


def test_a_restart_replaces_the_steps_beyond_the_restored_one(uri):
    _attempt(uri, range(1, 8))
    _attempt(uri, range(5, 7), restored_step=4)
    folder = _attempt(uri, range(7, 10), restored_step=6)
    assert _steps(folder) == list(range(1, 10))


def test_the_restored_step_counts_and_not_the_first_that_was_logged_again(uri):
    _attempt(uri, range(1, 8))
    assert _steps(_attempt(uri, range(6, 10, 2), restored_step=4)) == [1, 2, 3, 4, 6, 8]


def test_a_restart_from_nothing_replaces_everything(uri):
    _attempt(uri, range(1, 4))
    assert _steps(_attempt(uri, range(1, 3))) == [1, 2]


def test_parts_of_one_attempt_add_up(uri):
    folder = _attempt(uri, range(1, 3), restored_step=0)
    for step in range(3, 6):
        folder.log_metrics(step, {})
        folder.flush()
    assert _steps(folder) == [1, 2, 3, 4, 5]


def test_two_writers_never_share_a_file(uri):
    writers = [RunFolder(uri), RunFolder(uri)]
    for index, writer in enumerate(writers):
        writer.log_event("start", 0, writer=index)
        writer.flush()
    for index, writer in enumerate(writers):
        writer.log_event("end", 9, writer=index)
        writer.flush()
    assert sorted((event["kind"], event["writer"]) for event in writers[0].read_events()) == [
        ("end", 0),
        ("end", 1),
        ("start", 0),
        ("start", 1),
    ]


def test_a_writer_that_saw_no_other_takes_the_next_number_all_the_same(uri, monkeypatch):
    for index in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(storage, "list_names", lambda uri: [])  # as if all three had looked at the same time
            writer = RunFolder(uri)
            writer.log_event("start", 0, writer=index)
            writer.flush()
    assert sorted(event["writer"] for event in RunFolder(uri).read_events()) == [0, 1, 2]


def test_events_are_in_order_of_time_and_take_any_value(uri):
    first, second = RunFolder(uri), RunFolder(uri)
    first.log_event("start", 0, path=Path("a"), loss=math.inf)
    second.log_event("resume", 4, rows=np.int64(64))
    first.log_event("end", 9)
    second.flush()
    first.flush()
    events = first.read_events()
    assert [(event["kind"], event["step"]) for event in events] == [("start", 0), ("resume", 4), ("end", 9)]
    assert events[0]["path"] == "a" and events[0]["loss"] == "inf" and events[1]["rows"] == 64


def test_rejects_of_all_ranks_are_read_once_each(uri):
    for rank in (0, 1, 1):  # rank 1 meets its row again after a restart
        folder = RunFolder(uri, rank)
        folder.log_rejects(
            [{"step": 5 - rank, "sample_id": np.int64(7), "key": f"a.tar#{rank}", "reason": "truncated"}]
        )
        folder.flush()
    assert [row["key"] for row in RunFolder(uri).read_rejects()] == ["a.tar#1", "a.tar#0"]


def test_a_line_torn_by_a_crash_is_skipped(tmp_path):
    folder = _attempt(str(tmp_path), range(1, 4))
    (path,) = tmp_path.joinpath("metrics").iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    assert _steps(folder) == [1, 2]


def test_a_broken_line_that_no_crash_explains_is_an_error(tmp_path):
    folder = _attempt(str(tmp_path), range(1, 4))
    (path,) = tmp_path.joinpath("metrics").iterdir()
    path.write_text("not json\n" + path.read_text())
    with pytest.raises(ValueError, match=r"attempt-0001-from-00000000\.jsonl, line 1"):
        folder.read_metrics()


@pytest.mark.parametrize("line", ["[]", "3", '{"step": 1}', "null", "\x00"])
def test_a_line_without_its_fields_is_named_with_its_file(tmp_path, line):
    folder = _attempt(str(tmp_path), range(1, 4))
    (path,) = tmp_path.joinpath("metrics").iterdir()
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(
        ValueError, match=r"attempt-0001-from-00000000\.jsonl, line 4 is no line that a run has written"
    ):
        folder.read_metrics()


def test_a_line_that_a_full_disk_has_cut_is_taken_back_and_written_whole_by_the_next_try(tmp_path, monkeypatch):
    folder = _attempt(str(tmp_path), range(1, 3))
    path = next((tmp_path / "metrics").iterdir())
    before, size = path.read_bytes(), path.stat().st_size

    class Full(io.FileIO):
        def write(self, content: Any, /) -> int:
            if self.tell() > size:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(content[:7])

    with monkeypatch.context() as patch:
        patch.setattr(jsonl, "open", lambda path, *_, **__: Full(path, "ab"), raising=False)
        with pytest.raises(StorageError, match="no space is left on the device"):
            folder.log_metrics(3, {"loss": 1.0})
    assert path.read_bytes() == before
    folder.flush()
    assert _steps(folder) == [1, 2, 3]


def test_local_lines_wait_while_their_disk_is_away(tmp_path, monkeypatch):
    folder = RunFolder(str(tmp_path))
    folder.log_metrics(1, {"loss/total": 1.0})
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ESTALE, "Stale handle")))
        folder.log_metrics(2, {"loss/total": 2.0})
        with pytest.raises(storage.StorageError):
            folder.flush()
    folder.log_metrics(3, {"loss/total": 3.0})
    assert [line["step"] for line in folder.read_metrics()] == [1, 2, 3]


def test_a_local_line_is_there_before_any_flush(tmp_path):
    folder = RunFolder(str(tmp_path))
    folder.log_metrics(1, {"loss/total": 1.0})
    folder.log_metrics(2, {"loss/total": 1.0})
    assert _steps(RunFolder(str(tmp_path))) == [1, 2]


def test_a_part_of_an_object_store_grows_until_it_is_sealed(s3):
    s3.make_bucket("grown")
    folder, reader = RunFolder("s3://grown/run"), RunFolder("s3://grown/run")
    for step in range(1, 7):
        folder.log_metrics(step, {"loss/total": 1.0})
        folder.seal() if step == 4 else folder.flush()
        assert _steps(reader) == list(range(1, step + 1)), "one who has read the part before sees it grow"
        assert reader.last_metrics() == reader.read_metrics()[-1]
    folder.seal()
    folder.seal()  # nothing waits
    found = s3.client().list_objects_v2(Bucket="grown", Prefix="run/metrics/")["Contents"]
    bodies = [s3.client().get_object(Bucket="grown", Key=item["Key"])["Body"].read() for item in found]
    assert [[json.loads(line)["step"] for line in body.splitlines()] for body in bodies] == [[1, 2, 3, 4], [5, 6]]


def test_a_large_part_is_followed_by_another(s3, monkeypatch):
    monkeypatch.setattr(jsonl, "PART_BYTES", 100)
    s3.make_bucket("large")
    folder = RunFolder("s3://large/run")
    for step in range(1, 5):
        folder.log_metrics(step, {"a metric of some length": float(step)})  # 80 bytes
        folder.flush()
    found = s3.client().list_objects_v2(Bucket="large", Prefix="run/metrics/")["Contents"]
    assert len(found) == 2 and _steps(folder) == [1, 2, 3, 4]


def test_parts_that_have_not_changed_are_read_once(s3, monkeypatch):
    s3.make_bucket("once")
    folder = _attempt("s3://once/run", range(1, 5), restored_step=0)
    folder.seal()
    folder.log_metrics(5, {"loss/total": 1.0})
    folder.flush()
    reader, read, read_bytes = RunFolder("s3://once/run"), [], storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda uri, *of: read.append(uri) or read_bytes(uri, *of))
    assert _steps(reader) == [1, 2, 3, 4, 5] and len(read) == 2
    folder.log_metrics(6, {"loss/total": 1.0})
    folder.flush()
    assert _steps(reader) == [1, 2, 3, 4, 5, 6] and len(read) == 3


def test_a_patient_folder_writes_only_when_it_is_told(tmp_path):
    folder = RunFolder(str(tmp_path), is_patient=True)
    folder.log_metrics(1, {"loss/total": 1.0})
    folder.log_event("start", 0)
    assert list(tmp_path.rglob("*.jsonl")) == []
    folder.flush()
    assert _steps(RunFolder(str(tmp_path))) == [1] and len(folder.read_events()) == 1


def test_a_folder_travels_to_another_process(tmp_path):
    folder = pickle.loads(pickle.dumps(RunFolder(str(tmp_path))))
    folder.log_metrics(1, {"loss/total": 1.0})
    assert _steps(folder) == [1]


def test_each_attempt_has_parts_of_its_own(s3):
    s3.make_bucket("runs")
    folder = _attempt("s3://runs/parts", range(1, 5), restored_step=0)
    _attempt("s3://runs/parts", range(5, 7), restored_step=4)
    folder.log_metrics(9, {})
    found = s3.client().list_objects_v2(Bucket="runs", Prefix="parts/metrics/")["Contents"]
    assert [item["Key"].rpartition("/")[2] for item in found] == [
        "attempt-0001-from-00000000.part-000000.jsonl",
        "attempt-0002-from-00000004.part-000000.jsonl",
    ]
    body = s3.client().get_object(Bucket="runs", Key=found[0]["Key"])["Body"].read()
    assert [json.loads(line)["step"] for line in body.splitlines()] == [1, 2, 3, 4]


def _sampled(uri: str, steps: range, restored_step: int, ranks: int) -> RunFolder:
    folder = RunFolder(uri)
    folder.drop_after(restored_step)
    for step in steps:
        folder.log_samples({"step": step, "rank": rank, "sample_ids": [step, ranks]} for rank in range(ranks))
    folder.flush()
    return folder


def test_samples_of_a_step_that_a_restart_took_again_count_once(uri):
    _sampled(uri, range(7), restored_step=0, ranks=2)  # restored at 4: four steps, 0 to 3, are done
    folder = _sampled(uri, range(4, 6), restored_step=4, ranks=1)
    found = [(line["step"], line["rank"], line["sample_ids"][1]) for line in folder.read_samples()]
    assert found == [(step, rank, 2) for step in range(4) for rank in (0, 1)] + [(4, 0, 1), (5, 0, 1)]


def test_rejects_are_described_by_their_commonest_reasons(uri):
    folder = RunFolder(uri)
    reasons = ["too large: 9 bytes", "no caption: web", "too large: 8 bytes", "truncated", "no caption: synthetic"]
    reasons += ["too large: 7 bytes", "corrupt"]
    folder.log_rejects(
        {"step": 0, "sample_id": number, "key": f"k{number}", "reason": reason} for number, reason in enumerate(reasons)
    )
    folder.flush()
    common = "too large (3, e.g. k0), no caption (2, e.g. k1), truncated (1, e.g. k3)"
    assert folder.described_rejects() == f"commonest reasons: {common}; all of them: {uri}/rejects"


def test_the_limit_of_bad_rows_may_be_raised_on_the_way(uri):
    folder = RunFolder(uri)
    folder.claim("data: {max_bad_fraction: 0.01, max_image_bytes: 5}\n")
    assert folder.claim("data: {max_bad_fraction: 0.05, max_image_bytes: 5}\n") == "resumed"
    with pytest.raises(ValueError, match="data.max_image_bytes: 5 -> 6"):
        folder.claim("data: {max_bad_fraction: 0.05, max_image_bytes: 6}\n")
