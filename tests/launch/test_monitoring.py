"""What a run shows to Prometheus, and that rules and board ask for nothing else."""

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from captioning.tiny import write_paligemma
from nodes import running, wait_until
from toy_captions import captioned_run
from toy_run import tiny_run

from tips_ray.launch.monitoring import LeaseWatch, show_events, show_limits
from tips_ray.runs import lease
from tips_ray.runs.stop import ask_to_stop
from tips_ray.train.monitoring import DEFINITIONS, RunMetrics
from tips_ray.train.worker import shown_steps

FILES = Path(__file__).parents[2] / "cluster" / "monitoring"
NEEDS_GPU = "ray_tips_ray_mfu_ratio"
NAME = re.compile(r"\bray_[a-z_]+")


class Noted(RunMetrics):
    """Keeps what is set by name and labels."""

    def __init__(self) -> None:
        super().__init__("small")
        self.there: dict[str, float] = {}

    def set(self, name: str, value: float, **labels: str) -> None:
        assert tuple(labels) == DEFINITIONS[name].labels and DEFINITIONS[name].kind == "gauge"
        self.there["/".join([name.removeprefix("tips_ray_"), *labels.values()])] = value


def _event(kind: str, second: int, **what: Any) -> dict[str, Any]:
    return {"kind": kind, "time": f"1970-01-01T00:00:{second:02d}.000000+00:00", "step": None, **what}


def test_events_tell_waits_restarts_and_the_newest_checkpoint():
    shown = Noted()
    show_events(shown, [])
    assert shown.there["events/stop"] == shown.there["waiting_for_nodes"] == 0, "so that the first one is an increase"
    assert "workers" not in shown.there
    began = [_event("start", 1, workers=4), _event("checkpoint", 20, seconds=2.5), _event("stop", 30)]
    waits = _event("waiting", 40, room=1, min_workers=2)
    show_events(shown, [*began, waits])
    assert shown.there["waiting_for_nodes"] == 1 and shown.there["workers"] == 4
    show_events(shown, [*began, waits, _event("resume", 50, workers=2), _event("stop", 51), _event("taken_over", 59)])
    assert shown.there["waiting_for_nodes"] == 0 and shown.there["workers"] == 2
    assert (shown.there["events/stop"], shown.there["events/taken_over"]) == (2, 1)
    assert shown.there["last_checkpoint_timestamp_seconds"] == 20 and shown.there["checkpoint_seconds"] == 2.5


def test_a_logged_step_is_shown_in_the_units_of_prometheus(tmp_path):
    shown, config = Noted(), tiny_run(tmp_path, "unused", schedule__total_steps=50)  # 10 of them are warm-up
    show_limits(shown, config)
    assert (shown.there["total_steps"], shown.there["bad_rows_limit_ratio"]) == (50, config.data.max_bad_fraction)
    show = shown_steps(shown, config)
    line = {"loss/total": 3.0, "loss/distillation": 1.0, "checkpoint_stall_ms": 250.0, "health/memory_peak_gib": 0.5}
    collapsed = {"health/cls_web/cosine": 1.0, "health/cls_web/effective_rank": 1.0}
    show(10, {**line, **collapsed})
    assert (shown.there["loss/total"], shown.there["loss/distillation"]) == (3, 1)
    assert (shown.there["checkpoint_stall_seconds"], shown.there["memory_peak_bytes"]) == (0.25, 2**29)
    assert (shown.there["step"], shown.there["collapse_signs"]) == (10, 0), "the rate still rises"
    show(11, {**line, **collapsed})
    assert shown.there["collapse_signs"] == 2


def test_a_lease_that_is_no_longer_renewed_tells_that_nothing_can_be_written(tmp_path):
    watch, own = LeaseWatch(str(tmp_path)), lease._own()
    assert watch.is_written(0) and watch.is_written(1000), "nothing holds the run"
    lease._write(str(tmp_path), 1, own)
    assert watch.is_written(1000) and watch.is_written(1029) and not watch.is_written(1030)
    lease._write(str(tmp_path), 1, replace(own, beat=1))
    assert watch.is_written(1031) and watch.is_written(1060) and not watch.is_written(1061)


def _board() -> dict[str, Any]:
    return json.loads(FILES.joinpath("tips_ray.json").read_text())


def _queries() -> list[str]:
    """All of the board, for the run `watched`."""
    found = [target["expr"] for panel in _board()["panels"] for target in panel["targets"]]
    return [query.replace("$run", "watched") for query in found]


def _rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(FILES.joinpath("rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _asked() -> set[str]:
    """Metrics that rules and board name."""
    texts = [*_queries(), *(rule["expr"] for rule in _rules())]
    return {name for text in texts for name in NAME.findall(text)}


def test_rules_and_board_ask_for_what_the_code_defines_and_for_all_of_it():
    own = {name for name in _asked() if name.startswith("ray_tips_ray_")}
    assert own == {f"ray_{name}" for name in DEFINITIONS}
    assert _asked() - own == {"ray_data_iter_prefetched_bytes"}, "Ray's own"
    for name, found in DEFINITIONS.items():
        assert (found.kind == "counter") == name.endswith("_total") and found.what


def test_every_alert_says_what_it_is_and_what_to_do():
    rules = _rules()
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert "{{ $labels.run }}" in rule["annotations"]["summary"] and len(rule["annotations"]["description"]) > 80


def test_the_board_is_one_that_grafana_imports():
    board = _board()
    variables = {one["name"]: one["type"] for one in board["templating"]["list"]}
    assert variables == {"datasource": "datasource", "run": "query"}
    places, ids = set(), [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids) and board["schemaVersion"] >= 36 and board["title"] == "tips_ray"
    for panel in board["panels"]:
        assert panel["type"] in ("stat", "timeseries") and panel["title"] and panel["description"] and panel["targets"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(part["datasource"]["uid"] == "${datasource}" for part in (panel, *panel["targets"]))
        x, y, w, h = (panel["gridPos"][key] for key in "xywh")
        cells = {(column, row) for column in range(x, x + w) for row in range(y, y + h)}
        assert not cells & places and x + w <= 24, panel["title"]
        places |= cells


@pytest.mark.ray
def test_ray_exports_every_metric_under_the_name_that_the_rules_have(cluster):
    shown = RunMetrics("exported")
    with shown.repeated():
        for name, found in DEFINITIONS.items():
            change = shown.set if found.kind == "gauge" else shown.add
            change(name, 1, **{label: "any" for label in found.labels})
        wanted, deadline = {f"ray_{name}" for name in DEFINITIONS}, time.monotonic() + 60
        while missing := wanted - _exported("exported"):
            assert time.monotonic() < deadline, missing
            time.sleep(1)


def _exported(run: str) -> set[str]:
    """Metrics with this run that Ray's agents export now."""
    found = set()
    for target in _targets():
        with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        found |= {line.partition("{")[0] for line in lines if f'run="{run}"' in line}
    return found


def _targets() -> list[str]:
    import ray

    return [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes() if node["Alive"]]


class Prometheus:
    """A real one, started by `prometheus`."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, path: str, **arguments: str) -> Any:
        """Data of its HTTP API; None while it starts."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except OSError:
            return None

    def answers(self, queries: set[str]) -> bool:
        """Remove those that have data now; True once none is left."""
        found = {query: self.ask("query", query=query) for query in queries}
        queries -= {query for query, data in found.items() if data and data["result"]}
        return not queries


@contextmanager
def prometheus(folder: Path) -> Iterator[Prometheus]:
    """Prometheus with our configuration on the nodes of this Ray, which has no dashboard that would list them."""
    listed = folder / "nodes.json"
    listed.write_text(json.dumps([{"labels": {"job": "ray"}, "targets": _targets()}]))
    text = FILES.joinpath("prometheus.yaml").read_text()
    for given, own in (("/tmp/ray/prom_metrics_service_discovery.json", str(listed)), (": 15s", ": 1s")):
        assert given in text
        text = text.replace(given, own)
    folder.joinpath("prometheus.yaml").write_text(text)
    shutil.copy(FILES / "rules.yaml", folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"]
    options += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    process = subprocess.Popen(["prometheus", *options], cwd=folder)
    try:
        yield Prometheus(port)
    finally:
        process.terminate()
        process.wait()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.variant
@pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed: apt-get install prometheus")
def test_a_real_prometheus_has_data_for_every_query_of_rules_and_board(cluster, tmp_path):
    for check in (["config", "--syntax-only", "prometheus.yaml"], ["rules", "rules.yaml"]):
        subprocess.run(["promtool", "check", *check], cwd=FILES, check=True)
    model = write_paligemma(tmp_path / "paligemma")
    keys = {"resources__workers": 1, "schedule__total_steps": 100_000, "checkpoint_every_steps": 100}
    config = captioned_run(tmp_path / "runs", model, rows=600, name="watched", **keys)
    uri = f"{config.storage}/watched"
    tmp_path.joinpath("prometheus").mkdir()
    queries = {query for query in _queries() if NEEDS_GPU not in query}
    queries |= {f'{name}{{run="watched"}}' for rule in _rules() for name in NAME.findall(rule["expr"])}
    with prometheus(tmp_path / "prometheus") as server, running(config) as run, _stopped_at_last(uri):
        wait_until(lambda: server.answers(queries), run, 400)
        time.sleep(25)  # longer than the agent keeps a gauge that nobody sets again
        found = server.ask("query", query='ray_tips_ray_total_steps{run="watched"}')["result"]
        assert [one["value"][1] for one in found] == ["100000"]
        rules = server.ask("rules")["groups"][0]["rules"]
        assert len(rules) == len(_rules()) and {rule["health"] for rule in rules} == {"ok"}, rules
        alerts = [alert for rule in rules for alert in rule["alerts"] if alert["labels"]["run"] == "watched"]
        assert not [alert for alert in alerts if alert["state"] == "firing"], alerts
    assert "stopped by the test" in str(run.exception())


@contextmanager
def _stopped_at_last(uri: str) -> Iterator[None]:
    """End the run however the block ends: its thread would go on."""
    try:
        yield
    finally:
        with suppress(ValueError):  # it has ended
            ask_to_stop(uri, "the test")
