"""Counters of the kernel, written as Linux shows them."""

import pytest

from tips_ray import memory_kills as module
from tips_ray.memory_kills import memory_kills, memory_kills_since


@pytest.mark.parametrize(
    ("group", "place", "content"),
    [
        ("0::/pod/train", "sys/fs/cgroup/pod/train/memory.events", "low 0\noom 9\noom_kill 4\n"),
        ("0::/", "sys/fs/cgroup/memory.events", "oom 9\noom_kill 4\noom_group_kill 7\n"),
        ("4:memory:/docker/1", "sys/fs/cgroup/memory/docker/1/memory.oom_control", "under_oom 0\noom_kill 4\n"),
        ("4:memory:/of/the/host", "sys/fs/cgroup/memory/memory.oom_control", "under_oom 0\noom_kill 4\n"),
        ("0::/", "proc/vmstat", "nr_free_pages 77\noom_kill 4\n"),
    ],
)
def test_the_count_is_that_of_the_own_group_or_of_the_machine(tmp_path, group, place, content):
    for name, text in {
        "proc/self/cgroup": f"1:cpu:/\n{group}\n",
        "proc/vmstat": "oom_kill 99\n",
        place: content,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory_kills(tmp_path) == 4


def test_a_machine_without_counters_has_none(tmp_path):
    assert memory_kills(tmp_path) == 0


def test_only_what_was_ended_since_is_told(monkeypatch):
    monkeypatch.setattr(module, "memory_kills", lambda: 4)
    assert memory_kills_since(4) == ""
    assert memory_kills_since(3).endswith("its kernel ended a process")
