import re

import pytest

from tips_ray.config import (
    ImageEncoderConfig,
    ObjectiveConfig,
    ResourcesConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
    load_config,
    override,
)

SIZES = {"width": 32, "depth": 2, "num_heads": 2, "ffn_hidden": 64}


@pytest.mark.parametrize(("gpus", "dtype", "compiled"), [(0, "fp32", False), (0.5, "bf16", True), (1, "bf16", True)])
def test_auto_becomes_what_suits_the_device_of_a_worker_and_is_written_so(gpus, dtype, compiled):
    settled = ResourcesConfig(gpus_per_worker=gpus).model_dump()
    assert (settled["dtype"], settled["compile"]) == (dtype, compiled)
    given = ResourcesConfig(gpus_per_worker=gpus, dtype="fp32", compile=True)
    assert (given.dtype, given.compile) == ("fp32", True)


def test_overrides_are_read_as_yaml_and_reach_their_place(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("total_steps: 10\npeak_lr: 1e-3\n")
    config = load_config(ScheduleConfig, path, ["peak_lr=5e-4", "warmup=0"])
    assert (config.total_steps, config.peak_lr, config.warmup) == (10, 5e-4, 0)


def test_an_empty_file_is_the_default(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("")
    assert load_config(ObjectiveConfig, path) == ObjectiveConfig()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peak_Ir": 1}, "peak_Ir"),
        ({"peak_lr": "fast"}, "peak_lr"),
        ({"total_steps": 0}, "greater than 0"),
    ],
)
def test_a_wrong_key_or_value_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        override(ScheduleConfig, {}, values)


def test_an_override_without_equals_sign_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("{}")
    with pytest.raises(ValueError, match="override 'peak_lr' is not of the form dotted.key=value"):
        load_config(ScheduleConfig, path, ["peak_lr"])


@pytest.mark.parametrize(
    "override, cure",
    [
        (
            "schedule.total_steps.x=3",
            "schedule.total_steps is a int without keys; give it whole, as schedule.total_steps=",
        ),
        ("data.sources.0.uri=x", "give it whole, as data.sources=[...]"),
        ("data.sources=[{uri: shards/{00..12}.tar}]", "with braces once more: 'data.sources=[{uri: \"shards/"),
    ],
)
def test_the_cure_of_a_wrong_override_can_be_written_as_it_is(override, cure, tmp_path):
    (tmp_path / "run.yaml").write_text("schedule: {total_steps: 3}\ndata: {sources: [{uri: a}]}\n")
    with pytest.raises(ValueError, match=re.escape(cure)):
        load_config(RunConfig, tmp_path / "run.yaml", [override])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"contrastive_view": "masked", "beta": 0}, r"contrastive_view \(masked\) needs the masked pass"),
        ({"contrastive_view": "masked", "teacher": "ema_heads"}, "this teacher needs the clean pass"),
        ({"teacher": "frozen", "visible_weight": 1}, r"visible_weight \(1.0\) must be 0 with teacher \(frozen\)"),
    ],
)
def test_switches_that_contradict_each_other_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        override(ObjectiveConfig, {}, values)


def test_every_field_that_is_our_decision_says_so():
    """TIPS.md marks these D; their documentation must not present them as the paper's."""
    ours = [
        "student_temperature",
        "teacher_temperature",
        "teacher_temperature_start",
        "center_momentum",
        "center_start",
        "ema_momentum",
        "prototype_freeze",
        "initial_temperature",
        "contrastive_view",
        "teacher_temperature_warmup",
        "masked_student_temperature",
        "masked_teacher_temperature",
        "masked_teacher_temperature_start",
    ]
    for name in ours:
        assert (ObjectiveConfig.model_fields[name].description or "").startswith("(D)"), name
    assert (ImageEncoderConfig.model_fields["gelu"].description or "").startswith("(D)")


def test_a_variant_fills_the_sizes_and_single_fields_go_before():
    config = override(TrainConfig, {"variant": "B", "image": {"image_size_px": 224}}, {"text.vocab_size": 500})
    assert (config.image.width, config.image.depth, config.image.grid) == (768, 12, 16)
    assert (config.text.ffn_hidden, config.text.vocab_size) == (3072, 500)
    with pytest.raises(ValueError, match="variant"):
        override(TrainConfig, {"variant": "H"}, {})


@pytest.mark.parametrize(
    "values, message",
    [
        ({"schedule.total_steps": True}, "schedule: total_steps must be a number, not true"),
        ({"schedule.total_steps": 10**23}, "schedule: total_steps must be at most"),
        ({"schedule.total_steps": 10**15}, "schedule.total_steps: .* less than or equal to 1000000000000"),
        ({"optimizer.betas": [True, 0.9]}, "optimizer: betas must be a number, not true"),
        ({"schedule.peak_lr": float("inf")}, "schedule.peak_lr: .* finite number"),
        ({"objective.alpha": float("nan")}, "objective.alpha: .* finite number"),
        ({"text.vocab_size": 3}, "text.vocab_size: .* greater than or equal to 4"),
        ({"text.max_tokens": 1}, "text.max_tokens: .* greater than or equal to 2"),
    ],
)
def test_values_that_no_run_can_have_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        override(TrainConfig, {"image": SIZES, "text": SIZES}, values)


@pytest.mark.parametrize("name", ["index", "captions"])
def test_a_run_cannot_have_the_name_of_a_folder_of_the_storage(name):
    tree = {"image": SIZES, "text": SIZES, "name": name, "global_batch_images": 1, "data": {"sources": [{"uri": "a"}]}}
    with pytest.raises(ValueError, match="the storage keeps other things there"):
        override(RunConfig, tree, {})


@pytest.mark.parametrize("value", ["010", "1:30", "1:30.5", "-010"])
def test_numbers_that_yaml_reads_as_others_are_refused_with_their_line(value, tmp_path):
    (tmp_path / "run.yaml").write_text(f"seed: 1\nschedule: {{total_steps: {value}}}\n")
    with pytest.raises(ValueError, match=f"run.yaml line 2: {value} would be read as another number"):
        load_config(TrainConfig, tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("values", "readers"),
    [
        ({"workers": 8}, 0),
        ({"workers": 9}, 2),
        ({"workers": 2, "stream": "shared"}, 1),
        ({"workers": 2, "stream": "shared", "data_cpus": 20}, 3),
        ({"workers": 64, "stream": "split"}, 0),
    ],
)
def test_the_stream_of_a_run_follows_from_its_sizes(values, readers):
    assert ResourcesConfig(**values).stream_readers == readers
