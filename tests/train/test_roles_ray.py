"""Nodes with roles: some train, some make views, some write captions beside training."""

from pathlib import Path

import pytest
import ray
import ray._private.state
from captioning.tiny import write_paligemma
from nodes import Nodes, events, nodes_of_cluster, running, wait_for_step, wait_until
from toy_captions import captioned_run, objects

from tips_ray.launch.captions import caption_store
from tips_ray.runs.folder import RunFolder

pytestmark = [pytest.mark.ray, pytest.mark.slow]
STEPS = 30


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_paligemma(tmp_path_factory.mktemp("paligemma"))


@pytest.fixture
def nodes(monkeypatch):
    with nodes_of_cluster(monkeypatch) as nodes:
        yield nodes


def test_everyone_keeps_to_nodes_of_his_role_and_another_captioning_node_takes_over(nodes: Nodes, model, tmp_path):
    roles = {"resources__roles": True, "resources__poll_seconds": 0.5, "resources__placement_seconds": 5}
    sizes = {"schedule__total_steps": STEPS, "checkpoint_every_steps": 10, "resources__workers": 1}
    config = captioned_run(tmp_path, model, rows=200, **roles, **sizes)
    folder, (store, _) = RunFolder(f"{tmp_path}/{config.name}"), caption_store(config)
    nodes.add(2, {"train": 1.0})
    nodes.add(2, {"data": 2.0})
    captioning = nodes.add(2, {"caption": 1.0})
    with running(config) as run:
        wait_for_step(folder, 2, run)
        assert _homes("CaptionActor") == {captioning.node_id} and len(_homes("RayTrainWorker")) == 1
        assert _homes("RayTrainWorker") != _homes("CaptionActor")
        assert _homes("CaptionCoordinator") == {ray.get_runtime_context().get_node_id()}
        before = objects(store)
        nodes.kill(captioning)
        other = nodes.add(2, {"caption": 1.0})
        wait_until(lambda: _homes("CaptionActor") == {other.node_id}, run)
        run.result()
    after = objects(store)
    assert {path: after[path] for path in before} == before and len(after) > len(before)
    assert not events(folder, "failure") and [line["step"] for line in folder.read_metrics()][-1] == STEPS


def _homes(actor: str) -> set[str]:
    """Nodes of the living actors of a class."""
    actors = ray._private.state.actors().values()
    return {
        found["Address"]["NodeID"] for found in actors if found["State"] == "ALIVE" and actor in found["ActorClassName"]
    }
