"""Configs of clusters: what is refused, in one sentence with its cure."""

import pytest
import yaml
from manifests import ALL_KEYS, CONFIGS, GROUP, ROOT, SPOT, cluster_config

from cluster.config import ClusterConfig
from tips_ray.config import load_config
from tips_ray.errors import Faults

MISTAKES = {
    "image without a tag": ({"image": "tips-ray"}, "image: (tips-ray): a retry may get another image"),
    "image that changes": ({"image": "host:5000/tips-ray:latest"}, "a retry may get another image"),
    "no group": ({"groups": []}, "groups"),
    "two of a name": ({"groups": [GROUP, GROUP]}, "groups (gpu): two groups have this name"),
    "name of a group": ({"groups": [{**GROUP, "name": "GPU_nodes"}]}, "groups.0.name"),
    "fewest above most": ({"groups": [{**GROUP, "min_nodes": 2}]}, "min_nodes (2) must be at most nodes (1)"),
    "kind without GPUs": ({"groups": [{**GROUP, "gpus": 0, "gpu_kind": "NVIDIA-L4"}]}, "gpu_kind (NVIDIA-L4) needs"),
    "spot without labels": ({"groups": [{**GROUP, "spot": True}]}, "spot needs spot_nodes"),
    "Ray's own label": ({"groups": [{**GROUP, "labels": {"ray.io/kind": "a"}}]}, "which Ray keeps for itself"),
    "label": ({"groups": [{**GROUP, "node_labels": {"a b": "c"}}]}, "node_labels"),
    "role": ({"groups": [{**GROUP, "roles": {"training": 1}}]}, "roles"),
    "secret as a value": ({"env": {"AWS_SECRET_ACCESS_KEY": "abc"}}, "looks like a secret"),
    "own variable": ({"env": {"RAY_JOB_STOP_WAIT_TIME_S": "3"}}, "is set from other keys"),
    "refused variable": ({"env": {"RAY_enable_autoscaler_v2": "1"}}, "is refused by KubeRay"),
    "another Ray": ({"ray_version": "2.50.0"}, "this tips_ray is made for Ray"),
    "no version": ({"ray_version": "nightly"}, "is no version"),
    "queue that scales": ({"queue": "team", "groups": [{**GROUP, "min_nodes": 0}]}, "leave out min_nodes"),
    "queue of seven": (
        {"queue": "team", "groups": [{**GROUP, "name": f"group-{number}"} for number in range(7)]},
        "groups (7): Kueue takes at most 6",
    ),
    "queue with head": ({"queue": "team", "groups": [{**GROUP, "name": "head"}]}, "groups (head): Kueue keeps"),
    "volume on the config": ({"volumes": [{"claim": "data", "path": "/config/more"}]}, "volumes (/config/more)"),
    "two volumes": ({"volumes": [{"claim": name, "path": "/data"} for name in "ab"]}, "volumes (/data)"),
    "no grace": ({"grace_seconds": 10}, "grace_seconds"),
    "misspelt": ({"grase_seconds": 60}, "did you mean grace_seconds"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(name):
    changes, says = MISTAKES[name]
    with pytest.raises(Faults) as raised:
        cluster_config(**changes)
    assert len(raised.value.sentences) == 1 and says in raised.value.sentences[0], raised.value.sentences


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_published_configs_load(path):
    assert load_config(ClusterConfig, path).ray.startswith("2.")


def test_the_config_of_the_docs_loads():
    block = (ROOT / "docs" / "cluster.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    assert ClusterConfig.model_validate(yaml.safe_load(block)).autoscales


def test_a_pod_outlives_ray_by_ten_seconds():
    assert cluster_config(grace_seconds=100).drain_seconds == 90


def test_a_cluster_scales_if_one_of_its_groups_does():
    assert not cluster_config(**ALL_KEYS).autoscales
    groups = [GROUP, {**GROUP, "name": "more", "nodes": 2, "min_nodes": 1, "spot": True}]
    assert cluster_config(groups=groups, spot_nodes=SPOT).autoscales


def test_a_digest_is_an_image_that_stays():
    assert cluster_config(image="host:5000/tips-ray@sha256:abc").image.endswith("abc")
