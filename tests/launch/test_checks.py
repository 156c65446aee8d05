"""Sizes and checks of a run before it starts."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml
from toy import toy_config
from toy_run import tiny_run, write_scenes
from toy_start import trained_run
from writers import write_pairs

from tips_ray import storage
from tips_ray.data.views import row_settings, training_rows
from tips_ray.errors import CheckWarning, Faults, check_results
from tips_ray.launch import cluster as ray_cluster
from tips_ray.launch import sizes
from tips_ray.launch.checks import can_compile, mfu_is_known, preflight
from tips_ray.launch.driver import pretrain
from tips_ray.launch.on_ranks import RankTrainer, shared_batches
from tips_ray.launch.sizes import (
    model_sizes,
    parameters,
    ready_bytes,
    row_bytes,
    schedule_sizes,
    shared_bytes,
    stream_sizes,
)
from tips_ray.models import train_tokenizer
from tips_ray.runs.checkpoint import VERSION
from tips_ray.runs.folder import RunFolder
from tips_ray.runs.run import claim_data, config_fingerprint
from tips_ray.train.state import new_state


@pytest.fixture
def config(tmp_path):
    return tiny_run(tmp_path / "runs", write_scenes(tmp_path / "scenes", 8))


def _levels(config) -> dict[str, str]:
    return {finding.check: finding.level for finding in preflight(config).results}


def test_a_good_run_has_an_index_and_no_fault(config):
    checked = preflight(config)
    assert checked.require().rows == 8 and checked.faults == []


def test_rows_without_captions_are_looked_for_before_a_run_begins_and_not_at_each_resume(tmp_path):
    uncaptioned = dict.fromkeys(range(6, 8), {"caption": ""})
    config = tiny_run(tmp_path / "runs", write_scenes(tmp_path / "scenes", 8, uncaptioned))
    assert "; 2 of 8 rows that were looked at have no web caption" in _text_of(config, "data")
    RunFolder(f"{config.storage}/{config.name}").claim(yaml.safe_dump(config.model_dump(mode="json")))
    assert _text_of(config, "data") == "8 rows in 1 shards, 0 known to be bad"


def test_a_first_chunk_that_is_all_bad_is_a_fault_in_any_source(tmp_path):
    good = write_scenes(tmp_path / "good", 8)
    bad = write_scenes(tmp_path / "bad", 8, dict.fromkeys(range(8), {"image": b""}))
    faults = preflight(tiny_run(tmp_path / "runs", good, bad)).faults
    assert len(faults) == 1 and faults[0].startswith(f"data.sources ({bad}): all ")
    assert " rows of the first chunk are bad, the first since " in faults[0]


def test_bytes_behind_damaged_tar_headers_are_a_doubt_and_above_the_bad_fraction_a_fault(tmp_path):
    for name in ("a.tar", "b.tar"):
        write_pairs(tmp_path / "tars" / name, rows=5)
    content = (tmp_path / "tars" / "b.tar").read_bytes()
    (tmp_path / "tars" / "b.tar").write_bytes(content.replace(b"00003.jpg", b"9.jpg\0\0\0\0"))
    config = tiny_run(tmp_path / "runs", str(tmp_path / "tars"), data__max_bad_fraction=0.5)
    text = _text_of(config, "shards")
    assert _levels(config)["shards"] == "warn" and "1 of 2 shards have a damaged tar header or are cut, " in text
    assert f"e.g. in {tmp_path}/tars/b.tar; write these shards again" in text
    (fault,) = preflight(tiny_run(tmp_path / "runs", str(tmp_path / "tars"))).faults
    assert fault == f"{text}, or raise data.max_bad_fraction (0.01) to go on without"


def test_a_tar_without_the_mark_of_its_end_is_a_doubt_and_no_row_of_it_is_bad(tmp_path):
    write_pairs(tmp_path / "tars" / "a.tar", rows=5)
    content = (tmp_path / "tars" / "a.tar").read_bytes().rstrip(b"\0")
    (tmp_path / "tars" / "a.tar").write_bytes(content + bytes(-len(content) % 512))
    config = tiny_run(tmp_path / "runs", str(tmp_path / "tars"))
    assert _levels(config)["shards"] == "warn" and "5 rows in 1 shards, 0 known to be bad" in _text_of(config, "data")
    assert (
        f"1 of 1 shards have no bytes or end without the mark of a tar's end, e.g. {tmp_path}/tars/a.tar"
        in _text_of(config, "shards")
    )


def test_parameters_are_those_of_the_networks_that_a_worker_builds(config):
    state = new_state(config)
    built = [sum(weight.numel() for weight in network.parameters()) for network in (state.student, state.teacher)]
    assert list(parameters(config)) == built


def test_bytes_per_worker_are_four_words_per_weight_and_one_of_the_teacher(config):
    student, teacher = parameters(config)
    text = model_sizes(config)
    assert f"{(16 * student + 4 * teacher) / 2 / 1000:.3g} kB" in text and "each of 2 workers" in text


def test_a_row_takes_the_bytes_of_its_columns(config):
    row = {"position": 0, "step": 0, "sample_id": 0, "sample_key": 0, "key": "", "error": "made up", "image": b""}
    row |= {"web_caption": "", "synthetic_captions": []}
    columns = training_rows([row], row_settings(config, 1), lambda texts, tokens: torch.zeros(len(texts), tokens))
    stored = sum(column.nbytes for name, column in columns.items() if name not in ("key", "reject"))
    assert row_bytes(config) == stored


def test_a_micro_batch_takes_whole_pages_of_shared_memory_for_each_column(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 4096)
    config = tiny_run(tmp_path, "a", micro_batch_images=2)
    # two rows: global crops 2 x 2,352 bytes take 2 pages; nine other columns, none above 4,096 bytes, one each
    assert shared_bytes(config) == 11 * 4096


def test_batches_in_shared_memory_are_those_ready_the_one_read_and_on_cpus_those_of_the_step(tmp_path):
    def count(**values) -> int:
        return shared_batches(tiny_run(tmp_path, "a", resources__workers=1, micro_batch_images=2, **values))

    assert count(data_prefetch_batches=3) == 3 + 1 + 4  # four passes of two images make a batch of eight
    assert count(data_prefetch_batches=3, resources__gpus_per_worker=1) == 3 + 1
    assert count(data_prefetch_batches=3, resources__data_cpus=2) == 4 + 1 + 4  # two for each data process


def _live(tmp_path, **values):
    captioner = {"model": "m", "prompts": ["caption en", "describe en"]}
    keys = {"captions__captioner": captioner, "captions__source": "live", "resources__gpus_per_captioner": 1}
    return tiny_run(tmp_path, "a", **{**keys, "resources__gpus_per_worker": 1, "resources__captioners": 4, **values})


def test_a_captioning_rate_that_cannot_keep_up_is_told_with_numbers(tmp_path, monkeypatch):
    # two images are counted: 1e12 operations each, 400 images/s on each of two GPUs; two captions an image, 25 images/s
    monkeypatch.setattr(sizes, "step_flops", lambda *of: 2e12)
    words = r"100 images/s from 4 captioners .*, 2 GPUs train up to 800; .* waits 88% of .* resources\.captioners=32$"
    with pytest.raises(CheckWarning, match=words):
        sizes.captions_keep_up(_live(tmp_path))
    assert sizes.captions_keep_up(_live(tmp_path, resources__captioners=32)).startswith("800 images/s by estimate")
    assert "nobody has measured" in sizes.captions_keep_up(_live(tmp_path, resources__gpus_per_captioner=0))
    with pytest.raises(CheckWarning, match="50 images/s from 4 captioners"):  # two share a GPU
        sizes.captions_keep_up(_live(tmp_path, resources__gpus_per_captioner=0.5))


def test_a_chunk_that_takes_longer_than_training_waits_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"captions.wait_seconds \(0.1\) is shorter than the 0.16 s that"):
        sizes.captions_keep_up(_live(tmp_path, captions__wait_seconds=0.1))  # 4 images of 2 captions, 50 a second


def test_the_operations_of_training_are_counted_for_the_check(tmp_path):
    with pytest.raises(CheckWarning, match="captioning cannot keep up, by estimate: 100 images/s"):
        sizes.captions_keep_up(_live(tmp_path))


def test_epochs_are_steps_times_batch_over_rows(config):
    assert "12 steps of 8 images; 4.0 steps an epoch, 3.00 epochs" in schedule_sizes(config, rows=32)


def test_a_second_source_of_weight_one_makes_an_epoch_twice_as_long(tmp_path):
    config = tiny_run(tmp_path, "a", "b")
    assert "8.0 steps an epoch, 1.50 epochs" in schedule_sizes(config, rows=32)


def test_the_fingerprint_keeps_what_a_run_computes_and_nothing_else(tmp_path):
    def of(**values) -> str:
        return config_fingerprint(tiny_run(tmp_path, "a", **values).model_dump(mode="json"))

    assert of() == of(resources__workers=4) == of(keep_last=9) == of(data__log_samples=True)
    assert len({of(), of(seed=1), of(schedule__peak_lr=1e-2), of(views__flip=0.25), of(resources__dtype="bf16")}) == 5
    tree = tiny_run(tmp_path, "a").model_dump(mode="json")
    assert config_fingerprint(yaml.safe_load(yaml.safe_dump(tree))) == of()


def test_a_known_name_resumes_and_other_workers_are_no_other_run(config, tmp_path):
    RunFolder(f"{config.storage}/tiny").claim(yaml.safe_dump(config.model_dump(mode="json")))
    again = tiny_run(tmp_path / "runs", str(tmp_path / "scenes"), resources__workers=1)
    texts = {finding.check: finding.text for finding in preflight(again).results}
    assert "tiny has the same config but for resources.workers and starts at step 0" in texts["run"]
    assert _levels(tiny_run(tmp_path / "runs", str(tmp_path / "scenes"), seed=1))["run"] == "fail"


def test_a_checkpoint_that_was_cut_off_is_not_where_a_run_would_resume(config, tmp_path):
    trained_run(folder := f"{config.storage}/tiny", 1)
    storage.write_text(f"{folder}/config.yaml", yaml.safe_dump(config.model_dump(mode="json")))
    assert "resumes from step 1" in _text_of(config, "run")
    storage.write_bytes(f"{folder}/checkpoints/step-00000001/__0_0.distcp", b"")
    assert "starts at step 0" in _text_of(config, "run")


def test_a_run_goes_on_with_its_data_at_another_place_and_with_no_others(config, tmp_path):
    RunFolder(f"{config.storage}/tiny").claim(yaml.safe_dump(config.model_dump(mode="json")))
    claim_data(f"{config.storage}/tiny", preflight(config).require().fingerprint)
    shutil.copytree(tmp_path / "scenes", tmp_path / "copy", copy_function=shutil.copy)
    moved = tiny_run(tmp_path / "runs", str(tmp_path / "copy"))
    assert _levels(moved)["run"] == "ok"
    others = tiny_run(tmp_path / "runs", write_scenes(tmp_path / "others", 9))
    assert _levels(others)["run"] == "fail" and "the data are not those that" in _text_of(others, "run")


def test_a_run_folder_that_holds_the_data_is_refused(tmp_path):
    config = tiny_run(tmp_path / "runs", write_scenes(tmp_path / "runs" / "scenes", 8), name="scenes")
    (fault,) = preflight(config).faults
    assert fault.startswith("the run's folder") and "choose a folder without data" in fault


def test_looking_at_a_run_writes_nothing_and_its_past_stays(config, tmp_path):
    def changed(from_step: int, **values):
        changes = [{"from_step": from_step, "peak_lr": 1e-4}]
        return tiny_run(tmp_path / "runs", str(tmp_path / "scenes"), schedule__changes=changes, **values)

    folder = f"{config.storage}/tiny"
    RunFolder(folder).claim(yaml.safe_dump(config.model_dump(mode="json")))
    manifest = json.dumps({"version": VERSION, "step": 6, "files": {}})
    storage.write_text(f"{folder}/checkpoints/step-00000006/manifest.json", manifest)
    before = storage.read_text(f"{folder}/config.yaml")
    assert _levels(changed(9, data__log_samples=True, keep_last=7))["run"] == "ok"
    fault = next(finding for finding in preflight(changed(3)).results if finding.check == "run")
    assert fault.level == "fail" and "schedule.changes" in fault.text
    assert storage.read_text(f"{folder}/config.yaml") == before and not RunFolder(folder).read_events()


def test_storage_that_cannot_be_written_is_one_fault(config, tmp_path):
    (tmp_path / "file").write_text("")
    checked = preflight(tiny_run(tmp_path / "file" / "runs", str(tmp_path / "scenes")))
    assert len(checked.faults) == 1
    with pytest.raises(Faults, match="cannot be written"):
        checked.require()


def test_nothing_is_left_in_the_storage(config, tmp_path):
    preflight(config)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["index"]


def test_a_finding_is_one_line_whatever_is_raised():
    def fail(error):
        raise error

    assert check_results("x", lambda: fail(CheckWarning("a\n  b"))) == [("x", "warn", "a b")]
    assert check_results("x", lambda: fail(Faults(["a", "b"]))) == [("x", "fail", "a"), ("x", "fail", "b")]
    assert check_results("x", lambda: fail(KeyError("k"))) == [("x", "fail", "KeyError: 'k'")]


def _text_of(config, check: str) -> str:
    return next(finding.text for finding in preflight(config).results if finding.check == check)


@pytest.mark.heavy
def test_what_a_run_begins_with_is_checked_ahead(tmp_path):
    trained_run(str(tmp_path / "first"), 1)
    train_tokenizer(["a red cube"], 40).save(tmp_path / "first")
    sizes = toy_config(image__image_size_px=112).model_dump(mode="json", include={"image", "text", "head"})
    tokenizer, data = str(tmp_path / "first" / "tokenizer.json"), write_scenes(tmp_path / "scenes", 8)

    def second(**values):
        start = {"start": {"uri": str(tmp_path / "first")}, "captions__tokenizer": tokenizer}
        return tiny_run(tmp_path / "runs", data, **{**sizes, **start, **values})

    assert _text_of(second(), "start") == f"{tmp_path}/first at step 1, positions 4 x 4 -> 8 x 8"
    assert preflight(second(head__hidden=8)).faults == [
        f"start.uri ({tmp_path}/first) has other sizes: head.hidden (8) must be 32, as it is there"
    ]
    assert "captions.tokenizer (None)" in preflight(second(captions__tokenizer=None)).faults[0]
    assert _text_of(second(start=None), "start") == "random weights"


@pytest.mark.heavy
def test_a_run_that_resumes_needs_nothing_of_what_it_began_with(config, tmp_path):
    gone = tiny_run(tmp_path / "runs", str(tmp_path / "scenes"), start__uri=str(tmp_path / "gone"))
    assert len(preflight(gone).faults) == 1
    trained_run(f"{gone.storage}/tiny", 1)
    assert _text_of(gone, "start") == "nothing is read but the run's own checkpoint"


@pytest.mark.heavy
def test_a_teacher_that_is_not_there_is_one_fault_and_one_that_is_counts(config, tmp_path):
    trained_run(str(tmp_path / "teacher"), 1, image__width=48, text__width=48)

    def distilled(teacher: str):
        frozen = {"objective__teacher": "frozen", "objective__frozen_teacher": str(tmp_path / teacher)}
        return tiny_run(tmp_path / "runs", str(tmp_path / "scenes"), **frozen)

    checked = preflight(distilled("teacher"))
    assert checked.faults == [] and _text_of(distilled("teacher"), "start").endswith("/teacher at step 1")
    assert parameters(distilled("teacher"))[1] > parameters(config)[1]
    shutil.rmtree(tmp_path / "teacher" / "checkpoints")
    (fault,) = preflight(distilled("teacher")).faults
    assert "teacher) is a run without a checkpoint; wait for its first one" in fault
    (fault,) = preflight(distilled("nowhere")).faults
    assert fault.startswith(f"objective.frozen_teacher ({tmp_path}/nowhere): there is neither")
    trained_run(str(tmp_path / "runs" / "tiny"), 1)
    assert _text_of(distilled("teacher"), "start").endswith("the run's own checkpoint and the sizes of its teacher")


def _elastic(tmp_path, monkeypatch, have: dict[str, float], **values) -> str:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray_cluster, "cluster_nodes", lambda: [have])
    keys = {"resources__workers": 4, "resources__min_workers": 2, "global_batch_images": 32, **values}
    return ray_cluster.resources_suffice(tiny_run(tmp_path, "data", **keys))


def test_an_elastic_run_starts_with_the_workers_that_there_is_room_for(tmp_path, monkeypatch):
    text = _elastic(tmp_path, monkeypatch, {"CPU": 4.0})
    assert text.startswith("2 to 4 workers (of 2, 4); the cluster at 10.0.0.1:6379 has room for 3 beside the data")


def test_an_elastic_run_below_its_fewest_workers_will_wait(tmp_path, monkeypatch):
    with pytest.raises(
        CheckWarning, match="room for 1 beside the data stream and captioning: the run waits for more nodes"
    ):
        _elastic(tmp_path, monkeypatch, {"CPU": 2.0})


def test_workers_only_have_room_on_nodes_of_their_role(tmp_path, monkeypatch):
    text = _elastic(tmp_path, monkeypatch, {"CPU": 9.0, "train": 2.0, "data": 4.0}, resources__roles=True)
    assert "has room for 2" in text


def test_a_role_that_no_node_has_is_named(tmp_path, monkeypatch):
    with pytest.raises(
        Faults, match=r"the data stream need 1 of data, the cluster .* offers 0: lower them or turn roles"
    ):
        keys = {"resources__roles": True, "resources__min_workers": None}
        _elastic(tmp_path, monkeypatch, {"CPU": 9.0, "train": 4.0}, **keys)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"resources__gpus_per_captioner": 1}, r"resources.gpus_per_captioner \(1\), and this machine offers 0 GPUs"),
        ({"resources__roles": True}, "a node of the role caption .*, and this machine offers 0 of caption"),
    ],
)
def test_captioning_without_room_for_a_captioner_is_refused(values, message, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_cluster, "gpus_here", lambda: 0)
    with pytest.raises(ValueError, match=f"a captioner needs {message}"):
        ray_cluster.require_room_for_captioner(tiny_run(tmp_path, "a", **values), 1)
    ray_cluster.require_room_for_captioner(tiny_run(tmp_path, "a"), 1)


def test_gpus_are_those_that_a_worker_can_take(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)  # such as Apple's MPS
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ray_cluster.gpus_here() == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert ray_cluster.gpus_here() == 2


def test_nodes_that_are_only_together_large_enough_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray_cluster, "cluster_nodes", lambda: [{"CPU": 4.0}] * 3 + [{"CPU": 1.0, "GPU": 2.0}])
    values = {"resources__cpus_per_captioner": 2, "resources__gpus_per_captioner": 1}
    with pytest.raises(ValueError, match="a captioner needs 2 CPUs and 1 GPUs on one node, and the cluster .* has no"):
        ray_cluster.require_room_for_captioner(tiny_run(tmp_path, "a", **values), 1)
    with pytest.raises(ValueError, match="a worker needs 5 CPUs on one node, and the cluster .* has no such node"):
        ray_cluster.resources_suffice(tiny_run(tmp_path, "a", resources__cpus_per_worker=5))
    with pytest.raises(CheckWarning, match="has them; it trains on CPUs, though the cluster .* has 2 free GPUs: set"):
        ray_cluster.resources_suffice(tiny_run(tmp_path, "a", resources__cpus_per_worker=4))
    monkeypatch.setattr(ray_cluster, "cluster_nodes", lambda: [{"CPU": 4.0}] * 3)
    assert "has them" in ray_cluster.resources_suffice(tiny_run(tmp_path, "a", resources__cpus_per_worker=4))


GIB = 1 << 30


@pytest.mark.parametrize(
    ("ready", "free", "store"), [(0, 100, 1), (0.2, 100, 1), (3, 100, 12), (3, 10, 8), (30, 0.05, 1)]
)
def test_the_object_store_of_a_ray_that_starts_here_follows_the_stream_and_the_shared_memory(
    tmp_path, monkeypatch, ready, free, store
):
    """In GiB: four times what is ready, at most 80 % of what is free, and at least 1."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free * GIB))
    assert ray_cluster.store_bytes(ready * GIB, str(tmp_path)) == store * GIB


def test_large_micro_batches_need_shared_memory(tmp_path, monkeypatch):
    """Eight workers with 256 images of 0.3 MB each keep 2 GB ready: too much for the smallest store."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    values = {"views__global_px": 224, "views__local_px": 98, "views__local_crops": 6, "global_batch_images": 2048}
    config = tiny_run(tmp_path, "a", resources__workers=8, **values)
    assert ready_bytes(config) == 3 * 8 * 256 * row_bytes(config)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000 * GIB))
    assert "ready in the object store for 8 workers" in stream_sizes(config)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * GIB))
    with pytest.raises(ValueError, match="keeps 1.* of crops ready .* Ray's object store here has 1.*--shm-size"):
        stream_sizes(config)
    auto = config.model_copy(update={"micro_batch_images": "auto", "global_batch_images": 8192})
    assert ready_bytes(auto) == 3 * 8 * (120 << 20)  # the most that a pass may have
    making = {"resources__stream": "shared", "resources__data_cpus": 12}  # views of two micro-batches a worker
    shared = tiny_run(tmp_path, "a", resources__workers=8, **values, **making)
    assert ready_bytes(shared) == 5 * 8 * 256 * row_bytes(config)
    with pytest.raises(ValueError, match=r"lower it or resources.data_cpus \(12\), set"):
        stream_sizes(shared)


def test_gpus_of_this_machine_that_training_leaves_idle_are_told(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_cluster, "gpus_here", lambda: 1)
    monkeypatch.setattr(ray_cluster, "cores", lambda: 4)
    captioned = {"captions__source": "live", "captions__captioner": {"model": "x"}, "resources__gpus_per_captioner": 1}
    assert "this machine has 4 cores" in ray_cluster.resources_suffice(tiny_run(tmp_path, "a", **captioned))
    with pytest.raises(CheckWarning, match="it trains on CPUs, though this machine has 1 free GPUs"):
        ray_cluster.resources_suffice(tiny_run(tmp_path, "a"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"resources__dtype": "fp32"}, r"no mfu is logged: with resources.dtype \(fp32\)"),
        ({"objective__teacher": "frozen", "objective__frozen_teacher": "x"}, r"objective.teacher \(frozen\)"),
    ],
)
def test_a_run_on_gpus_without_mfu_is_told_why(tmp_path, values, words):
    assert mfu_is_known(tiny_run(tmp_path, "a")) == "not logged on CPUs"
    assert mfu_is_known(tiny_run(tmp_path, "a", resources__gpus_per_worker=1)).startswith("logged on A100")
    with pytest.raises(CheckWarning, match=words):
        mfu_is_known(tiny_run(tmp_path, "a", resources__gpus_per_worker=1, **values))


@pytest.mark.parametrize(("gpus", "kind", "cure"), [(0, r"C\+\+", r"g\+\+"), (1, "C", "gcc")])
def test_compiled_blocks_need_a_compiler_of_this_machine(tmp_path, monkeypatch, gpus, kind, cure):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    config = tiny_run(tmp_path, "a", resources__gpus_per_worker=gpus, resources__compile=True)
    with pytest.raises(ValueError, match=f"needs a {kind} compiler, and there is none: install {cure} or"):
        can_compile(config)
    (tmp_path / {0: "g++", 1: "gcc"}[gpus]).touch(0o755)
    assert can_compile(config).startswith("every block is compiled")


def test_a_library_call_asks_no_proxy_for_loopback_and_drops_empty_variables_of_torchrun(tmp_path, monkeypatch):
    for name, value in {"http_proxy": "http://proxy:1", "no_proxy": "", "NO_PROXY": "", "WORLD_SIZE": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(RankTrainer, "follow", lambda self, config: True)
    pretrain(tiny_run(tmp_path, "a", resources__workers=1), RankTrainer())
    assert "127.0.0.1" in os.environ["no_proxy"].split(",") and "WORLD_SIZE" not in os.environ
