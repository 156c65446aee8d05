"""The plain step equals ours, and the benchmark counts what it claims to count."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toy import toy_batch, toy_config

from benchmarks import gpu
from benchmarks.counts import Cost, Counted, step_costs
from benchmarks.measure import kernel_seconds, peak_bytes
from benchmarks.plain_step import plain_state, plain_step
from benchmarks.train_step import main, random_batch, split, train_config
from tips_ray.objective import Temperatures
from tips_ray.train.flops import datasheet_flops, step_flops
from tips_ray.train.state import TrainState, new_state
from tips_ray.train.step import train_step

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _float64_state(config) -> TrainState:
    state = new_state(config)
    for network in (state.student, state.teacher, state.centers):
        network.double()
    return state


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_two_plain_steps_give_the_losses_and_weights_of_two_packed_ones(micro_batches):
    config = toy_config()  # its first step freezes the prototypes, its second moves them
    packed = _float64_state(config)
    plain = plain_state(packed, config)
    for seed in (0, 1):
        batch = toy_batch(8, seed, invalid=(2, 5))
        ours = train_step(packed, split(batch, micro_batches), config)
        torch.testing.assert_close(plain_step(plain, batch, config), ours, atol=1e-9, rtol=1e-9)
    for name in ("student", "teacher", "centers"):
        expected, found = getattr(plain, name).state_dict(), getattr(packed, name).state_dict()
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def test_the_plain_step_refuses_what_it_does_not_know():
    for switch in ({"objective__teacher": "ema_heads"}, {"image__drop_path_rate": 0.1}, {"objective__alpha": 0}):
        config = toy_config(**switch)
        with pytest.raises(ValueError, match=next(iter(switch)).replace("__", ".")):
            plain_state(new_state(config), config)


@pytest.mark.heavy
def test_the_count_of_operations_is_the_sum_by_hand():
    config, images, crops = train_config("tiny"), 3, 2
    batch = random_batch(config, images, crops)
    width, ffn, depth, tokens = config.image.width, config.image.ffn_hidden, config.image.depth, config.text.max_tokens
    head, patches, local_patches, masked = config.head, 16, 4, 12

    def blocks(samples: int, length: int) -> int:
        linears = 2 * samples * length * (4 * width * width + 2 * width * ffn)
        return depth * (linears + 4 * samples * length * length * width)

    def heads(rows: int) -> int:
        wide = head.hidden * (width + head.hidden + head.bottleneck) + head.bottleneck * head.num_prototypes
        return 2 * rows * wide

    embedding = 2 * 3 * 14 * 14 * width
    student = blocks(2 * images, 2 + patches) + blocks(crops * images, 2 + local_patches) + blocks(2 * images, tokens)
    student += heads(crops * images) + heads(masked * images)
    contrastive = 4 * 2 * images * images * width
    teacher = blocks(images, 2 + patches) + heads(images) + heads(masked * images) + embedding * images * patches
    seen_patches = images * (2 * patches + crops * local_patches)
    # Twice forward's cost for backward, except that pixels need no gradient.
    assert step_flops(config, batch) == 3 * (student + contrastive) + 2 * embedding * seen_patches + teacher
    costs, scores = step_costs(config, [batch]), 2 * head.bottleneck * head.num_prototypes  # losses make the scores
    student_scores, teacher_scores = (crops + masked) * images * scores, (1 + masked) * images * scores
    assert costs["student"].flops == student + embedding * seen_patches - student_scores
    assert costs["teacher"].flops == teacher - teacher_scores
    assert costs["losses"].flops == 3 * contrastive + 3 * student_scores + teacher_scores
    # The averages: a teacher's weight and a student's are read, the first is written.
    teacher_weights = [p.numel() for p in new_state(config, device="meta").teacher.parameters()]
    assert costs["ema"].bytes >= 3 * 4 * sum(teacher_weights)


def test_a_kernel_pays_for_what_it_reads_and_writes_and_a_view_for_nothing():
    left, right = torch.ones(8, 4), torch.ones(4, 2)
    with Counted() as counted, torch.no_grad():
        with torch.profiler.record_function("teacher"):
            assert left.T.unsqueeze(0).ndim == 3
            assert (left @ right).shape == (8, 2)
        torch._foreach_mul_([left, right], 2.0)  # pyright: ignore[reportPrivateImportUsage] (has no result)
        torch.empty(100)
    assert counted.costs["teacher"] == Cost(flops=2 * 8 * 4 * 2, bytes=4 * (32 + 8 + 16), kernels=1)
    assert counted.costs["rest"] == Cost(bytes=4 * 2 * (32 + 8), kernels=1)


@pytest.mark.heavy
@pytest.mark.variant
def test_a_case_that_fails_or_takes_too_long_costs_its_own_rows(tmp_path, capsys):
    options = "--device cpu --dtype fp32 --no-compile --steps 1 --out".split()
    gpu.main(["--cases", "tiny:2:99", "tiny:2:1", *options, str(tmp_path)])
    page = (tmp_path / "CPU.md").read_text()
    assert "failed: " in page
    assert "must be divisible by micro-batches (99)" in page
    assert "images/s" in page
    gpu.main(["--cases", "tiny:2:1", "--minutes", "0", *options, str(tmp_path)])
    assert "no time was left" in (tmp_path / "CPU.md").read_text()


def test_a_kernel_counts_for_the_part_that_launched_it_from_any_thread():
    def event(name, start, end, *kernels):
        pairs = [SimpleNamespace(name=kernel, duration=microseconds) for kernel, microseconds in kernels]
        return SimpleNamespace(name=name, kernels=pairs, time_range=SimpleNamespace(start=start, end=end))

    events = [
        event("student", 0, 10, ("student", 99.0)),  # the device's copy of the range itself
        event("aten::mm", 2, 3, ("gemm", 5e6)),
        event("backward", 10, 20),
        event("MmBackward0", 12, 40, ("gemm", 7e6), ("gemm", 1e6)),  # on autograd's thread
        event("aten::add", 25, 26, ("add", 2e6)),
    ]
    spent = {name: seconds for name, seconds in kernel_seconds(events).items() if seconds}
    assert spent == {"student": 5.0, "backward": 8.0, "rest": 2.0}


def test_peak_memory_is_that_of_the_networks_and_the_highest_moment_of_the_step():
    state = new_state(toy_config())
    networks = (state.student, state.teacher)
    numbers = (
        sum(p.numel() for network in networks for p in network.parameters()) + state.centers.distillation_K.numel() * 2
    )

    def step():
        for megabytes in (4, 9, 2):
            del_me = torch.empty(megabytes * 2**20, dtype=torch.uint8)
            del del_me

    assert peak_bytes(state, step, CPU) == 4 * numbers + 9 * 2**20


def test_the_datasheet_is_known_for_the_boards_it_was_read_from(monkeypatch):
    names = {
        "NVIDIA H200": 989e12,
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA H100 PCIe": None,
        "NVIDIA H200 NVL": None,
        "NVIDIA L4": None,
    }
    for name, expected in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert datasheet_flops(torch.device("cuda"), torch.bfloat16) == expected
        assert datasheet_flops(torch.device("cuda"), torch.float32) is None


@pytest.mark.heavy
@pytest.mark.parametrize(
    "options", ["", pytest.param("--dtype bf16 --micro-batches 2 --recompute selective", marks=pytest.mark.variant)]
)
def test_the_benchmark_runs_and_finds_both_ways_equal(options, capsys):
    main(["--variant", "tiny", "--batch", "2", "--steps", "1", "--threads", "1", *options.split()])
    printed = capsys.readouterr().out
    assert "MFU (datasheet peak)         unknown     unknown" in printed
    assert "packed is " in printed


def test_the_benchmark_stops_where_the_losses_differ(monkeypatch):
    others = dict.fromkeys(("distillation", "masked_image"), Temperatures(0.1, 0.05))
    monkeypatch.setattr("benchmarks.plain_step.prototype_temperatures", lambda *_: others)
    with pytest.raises(AssertionError, match="losses of the first step differ"):
        main(["--variant", "tiny", "--batch", "2", "--steps", "1", "--threads", "1"])


@pytest.mark.slow
def test_model_step_and_benchmark_need_neither_ray_nor_mlflow_nor_pyarrow():
    code = "import sys, benchmarks.train_step; print({'torch', 'ray', 'mlflow', 'pyarrow'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert shown == "{'torch'}\n"
