"""No manifest breaks a rule that KubeRay checks in Go or Kueue in its webhook, and each rule finds a manifest."""

from collections.abc import Callable
from typing import Any

import pytest
from manifests import ALL_KEYS, GROUP, KINDS, ROOT, every_manifest, job, ray_spec, templates
from operator_rules import CLUSTER_RULES, JOB_RULES, broken, kueue_refuses

OF_RAY = {name: manifest for name, manifest in every_manifest() if manifest["kind"].startswith("Ray")}
QUEUED, SCALED = KINDS["queue"], KINDS["autoscaled"]


@pytest.mark.parametrize("name", OF_RAY)
def test_a_manifest_breaks_no_rule(name):
    assert broken(OF_RAY[name]) == set()
    assert not kueue_refuses(OF_RAY[name])


def _with(place: Callable[[dict[str, Any]], dict[str, Any]], base: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """The RayJob on `base`, with other values for some keys of the mapping at `place`."""
    made = job(**base)
    place(made).update(keys)
    return made


def _spec(made: dict[str, Any]) -> dict[str, Any]:
    return made["spec"]


def _group(made: dict[str, Any]) -> dict[str, Any]:
    return ray_spec(made)["workerGroupSpecs"][0]


def _head_pod(made: dict[str, Any]) -> dict[str, Any]:
    return templates(made)[0]["spec"]


def _group_pod(made: dict[str, Any]) -> dict[str, Any]:
    return templates(made)[1]["spec"]


def _head_env(name: str, value: str = "1", base: dict[str, Any] | None = None) -> dict[str, Any]:
    made = job(**base or {})
    templates(made)[0]["spec"]["containers"][0]["env"].append({"name": name, "value": value})
    return made


def _rule(policy: str, seconds: int = 0, base: dict[str, Any] | None = None, **condition: str) -> dict[str, Any]:
    """The RayJob with one more deletion rule."""
    made = job(**base or {})
    condition = condition or {"jobStatus": "FAILED"}
    made["spec"]["deletionStrategy"]["deletionRules"].append(
        {"policy": policy, "condition": {**condition, "ttlSeconds": seconds}}
    )
    return made


BREAKS: dict[str, list[dict[str, Any]]] = {
    "name": [_with(lambda made: made["metadata"], {}, name=name) for name in ("a" * 48, "1-run", "Run", "run-")],
    "containers": [_with(pod, {}, containers=[]) for pod in (_head_pod, _group_pod)],
    "resources twice": [_with(_group, ALL_KEYS, rayStartParams={"num-cpus": "1"})],
    "labels": [
        _with(_group, {}, labels={"kind": "of work"}),
        _with(_group, {}, labels={"/kind": "train"}),
        _with(_group, {}, rayStartParams={"labels": "kind=train"}),
    ],
    "replicas": [
        _with(_group, {}, minReplicas=2),
        _with(_group, {}, minReplicas=-1),
        _with(_group, {}, maxReplicas=None),
    ],
    "idle of a group": [_with(_group, {}, idleTimeoutSeconds=60)],
    "idle below 0": [_with(lambda made: ray_spec(made)["autoscalerOptions"], SCALED, idleTimeoutSeconds=-1)],
    "priority": [_with(_group, {}, priority=1)],
    "redis user": [_head_env("REDIS_USERNAME")],
    "fault tolerance": [
        _head_env("RAY_REDIS_ADDRESS"),
        _with(ray_spec, {}, gcsFaultToleranceOptions={"backend": "rocksdb"}),
        _with(ray_spec, {}, gcsFaultToleranceOptions={"redisAddress": "redis:6379", "storage": {}}),
    ],
    "v2 variable": [_head_env("RAY_enable_autoscaler_v2")],
    "v2 twice": [_head_env("RAY_enable_autoscaler_v2", base=SCALED)],
    "suspended group": [_with(_group, SCALED, suspend=True)],
    "restart policy": [_with(pod, SCALED, restartPolicy="Always") for pod in (_head_pod, _group_pod)],
    "managed variable": [
        _with(
            lambda made: ray_spec(made)["autoscalerOptions"],
            SCALED,
            env=[{"name": "KUBERAY_GEN_AUTOSCALER_START_CMD", "value": "x"}],
        )
    ],
    "upgrade": [_with(ray_spec, {}, upgradeStrategy={"type": "Recreate"})],
    "token version": [_with(ray_spec, {}, rayVersion=old) for old in ("2.51.9", "", "nightly")],
    "kubernetes token": [_with(lambda made: ray_spec(made)["authOptions"], {}, enableK8sTokenAuth=True)],
    "feature gates": [_with(ray_spec, {}, **{key: {}}) for key in ("networkPolicy", "tlsOptions")],
    "suspend": [_with(_spec, {}, suspend=True)],
    "ttl": [_with(_spec, {}, ttlSecondsAfterFinished=60), _with(_spec, QUEUED, ttlSecondsAfterFinished=-1)],
    "shutdown and rules": [_with(_spec, {}, shutdownAfterJobFinishes=True)],
    "empty strategy": [_with(_spec, {}, deletionStrategy={})],
    "rule below 0": [_rule("DeleteNone", -1)],
    "rule twice": [_rule("DeleteCluster", 3600)],
    "rule order": [_rule("DeleteSelf", 60)],
    "rule condition": [_rule("DeleteSelf", 7200, jobStatus="FAILED", jobDeploymentStatus="Failed")],
    "rule and autoscaler": [_rule("DeleteWorkers", base=SCALED)],
    "selector": [_with(_spec, {"retries": 0}, clusterSelector={"ray.io/cluster": "shared"})],
    "interactive": [_with(_spec, {}, submissionMode="InteractiveMode")],
    "sidecar": [_with(_spec, {}, submissionMode="SidecarMode")],
    "runtime environment": [_with(_spec, {}, runtimeEnvYAML=text) for text in ("a: b: c", "- a")],
    "deadlines": [
        _with(_spec, {}, activeDeadlineSeconds=0),
        _with(_spec, {}, preRunningDeadlineSeconds=0),
        _with(_spec, {}, backoffLimit=-1),
    ],
}


@pytest.mark.parametrize("rule", [*CLUSTER_RULES, *JOB_RULES])
def test_a_rule_finds_the_manifest_that_breaks_it_and_no_other_rule_does(rule):
    assert [broken(made) for made in BREAKS[rule]] == [{rule}] * len(BREAKS[rule])


def test_kueue_refuses_what_it_cannot_count_or_clear_away():
    many = [{**GROUP, "name": f"group-{number}"} for number in range(6)]
    assert not kueue_refuses(job(**QUEUED, groups=many))
    named = _with(_group, QUEUED, groupName="head")
    stays = _with(_spec, QUEUED, shutdownAfterJobFinishes=False)
    scales = _with(ray_spec, QUEUED, enableInTreeAutoscaling=True)
    assert all(map(kueue_refuses, (named, stays, scales)))


def test_the_docs_list_every_rule():
    text = (ROOT / "docs" / "cluster.md").read_text()
    assert [rule for rule in [*CLUSTER_RULES, *JOB_RULES] if f"| {rule} |" not in text] == []
