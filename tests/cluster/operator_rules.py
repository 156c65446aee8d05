"""What KubeRay 1.7 checks in Go when it meets a RayJob or RayCluster (validation.go), as small functions in Python.

The API server accepts a manifest that breaks one of these rules; the operator then only writes an event and does
nothing. Each rule returns whether it is broken. docs/cluster.md lists them by name.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml
from manifests import ray_spec
from packaging.version import InvalidVersion, Version

DNS_1035 = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
LABEL_KEY = re.compile(rf"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?{LABEL_NAME}")
LONGEST = {"RayJob": 47, "RayCluster": 53}
V2_VARIABLE = "RAY_enable_autoscaler_v2"
GATED = {"networkPolicy", "tlsOptions", "historyServerOptions"}
"""Parts of a RayCluster behind feature gates that are off."""
MANAGED = "KUBERAY_GEN_AUTOSCALER_START_CMD"
FAULT_TOLERANCE = "ray.io/ft-enabled"
RESOURCE_PARAMETERS = ("num-cpus", "num-gpus", "memory", "resources")
Manifest = dict[str, Any]
Rule = Callable[[Manifest], bool]


def broken(manifest: Manifest) -> set[str]:
    """Names of the rules that a manifest breaks."""
    rules = {**CLUSTER_RULES, **(JOB_RULES if manifest["kind"] == "RayJob" else {})}
    return {name for name, is_broken in rules.items() if is_broken(manifest)}


def _parts(manifest: Manifest) -> list[Manifest]:
    """The head's part and those of the groups."""
    spec = ray_spec(manifest)
    return [spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])]


def _groups(manifest: Manifest) -> list[Manifest]:
    return ray_spec(manifest).get("workerGroupSpecs", [])


def _containers(part: Manifest) -> list[Manifest]:
    return part["template"]["spec"].get("containers") or []


def _head_env(manifest: Manifest) -> dict[str, str]:
    head = ray_spec(manifest)["headGroupSpec"]
    return {one["name"]: one.get("value", "") for one in next(iter(_containers(head)), {}).get("env", [])}


def _autoscales(manifest: Manifest) -> bool:
    return bool(ray_spec(manifest).get("enableInTreeAutoscaling"))


def _autoscales_v2(manifest: Manifest) -> bool:
    options = ray_spec(manifest).get("autoscalerOptions", {})
    by_variable = _head_env(manifest).get(V2_VARIABLE) in ("1", "true")
    return _autoscales(manifest) and (options.get("version") == "v2" or by_variable)


def _version(manifest: Manifest) -> Version:
    try:
        return Version(ray_spec(manifest).get("rayVersion", ""))
    except InvalidVersion:
        return Version("0")


def _parameters(manifest: Manifest) -> dict[str, str]:
    return ray_spec(manifest)["headGroupSpec"].get("rayStartParams", {})


def _auth(manifest: Manifest) -> dict[str, Any]:
    return ray_spec(manifest).get("authOptions", {})


def _fault_tolerance(manifest: Manifest) -> dict[str, Any] | None:
    return ray_spec(manifest).get("gcsFaultToleranceOptions")


def _has_wrong_name(manifest: Manifest) -> bool:
    name = manifest["metadata"]["name"]
    return len(name) > LONGEST[manifest["kind"]] or not DNS_1035.fullmatch(name)


def _says_resources_twice(part: Manifest) -> bool:
    return bool(part.get("resources")) and any(map(part.get("rayStartParams", {}).get, RESOURCE_PARAMETERS))


def _has_wrong_labels(part: Manifest) -> bool:
    labels = part.get("labels", {}).items()
    right = (LABEL_KEY.fullmatch(key) and re.fullmatch(f"({LABEL_NAME})?", value) for key, value in labels)
    return "labels" in part.get("rayStartParams", {}) or not all(right)


def _counts_are_wrong(manifest: Manifest) -> bool:
    bounds = [(group.get("minReplicas"), group.get("maxReplicas")) for group in _groups(manifest)]
    if any(None in pair for pair in bounds) and not _autoscales(manifest):
        return True
    return any((low or 0) < 0 or (high is not None and high < max(low or 0, 0)) for low, high in bounds)


def _needs_v2(manifest: Manifest, key: str) -> bool:
    return any(group.get(key) for group in _groups(manifest)) and not _autoscales_v2(manifest)


def _restarts_pods(manifest: Manifest) -> bool:
    policies = {part["template"]["spec"].get("restartPolicy", "Never") for part in _parts(manifest)}
    return _autoscales_v2(manifest) and policies != {"Never"}


def _token_needs_version(manifest: Manifest) -> bool:
    return _auth(manifest).get("mode") == "token" and _version(manifest) < Version("2.52.0")


def _kubernetes_token_is_wrong(manifest: Manifest) -> bool:
    auth = _auth(manifest)
    if not auth.get("enableK8sTokenAuth"):
        return False
    is_new = _version(manifest) >= Version("2.55.0")
    return auth.get("mode") != "token" or not is_new or bool(auth.get("secretName")) or manifest["kind"] == "RayJob"


def _fault_tolerance_is_mixed(manifest: Manifest) -> bool:
    options, env = _fault_tolerance(manifest), _head_env(manifest)
    annotations = manifest["metadata"].get("annotations", {})
    if options is None:
        return "RAY_REDIS_ADDRESS" in env and not annotations.get(FAULT_TOLERANCE)
    is_elsewhere = {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD"} & env.keys() or "redis-password" in _parameters(manifest)
    is_rocksdb = options.get("backend") == "rocksdb"  # its feature gate is off
    is_noted = annotations.get(FAULT_TOLERANCE) or annotations.get("ray.io/external-storage-namespace")
    return bool(is_elsewhere or is_noted or is_rocksdb or "storage" in options)


def _user_of_redis(manifest: Manifest) -> bool:
    return "redis-username" in _parameters(manifest) or "REDIS_USERNAME" in _head_env(manifest)


def _negative_idle(manifest: Manifest) -> bool:
    parts = [ray_spec(manifest).get("autoscalerOptions", {}), *_groups(manifest)]
    return any(part.get("idleTimeoutSeconds", 0) < 0 for part in parts)


def _variable_without_autoscaler(manifest: Manifest) -> bool:
    return not _autoscales(manifest) and _head_env(manifest).get(V2_VARIABLE) in ("1", "true")


def _version_twice(manifest: Manifest) -> bool:
    is_given = "version" in ray_spec(manifest).get("autoscalerOptions", {})
    return _autoscales(manifest) and is_given and V2_VARIABLE in _head_env(manifest)


def _managed_variable(manifest: Manifest) -> bool:
    env = ray_spec(manifest).get("autoscalerOptions", {}).get("env", [])
    return MANAGED in {one["name"] for one in env}


def _wrong_upgrade(manifest: Manifest) -> bool:
    return manifest["kind"] == "RayJob" and "type" in ray_spec(manifest).get("upgradeStrategy", {})


def _old_priority(manifest: Manifest) -> bool:
    return any(group.get("priority") for group in _groups(manifest)) and _version(manifest) < Version("2.56.0")


CLUSTER_RULES: dict[str, Rule] = {
    "name": _has_wrong_name,
    "containers": lambda manifest: not all(map(_containers, _parts(manifest))),
    "resources twice": lambda manifest: any(map(_says_resources_twice, _parts(manifest))),
    "labels": lambda manifest: any(map(_has_wrong_labels, _parts(manifest))),
    "replicas": _counts_are_wrong,
    "idle of a group": lambda manifest: _needs_v2(manifest, "idleTimeoutSeconds"),
    "idle below 0": _negative_idle,
    "priority": lambda manifest: _needs_v2(manifest, "priority") or _old_priority(manifest),
    "redis user": _user_of_redis,
    "fault tolerance": _fault_tolerance_is_mixed,
    "v2 variable": _variable_without_autoscaler,
    "v2 twice": _version_twice,
    "suspended group": lambda manifest: _autoscales(manifest) and any(one.get("suspend") for one in _groups(manifest)),
    "restart policy": _restarts_pods,
    "managed variable": _managed_variable,
    "upgrade": _wrong_upgrade,
    "token version": _token_needs_version,
    "kubernetes token": _kubernetes_token_is_wrong,
    "feature gates": lambda manifest: bool(GATED & ray_spec(manifest).keys()),
}


def _rules_of(manifest: Manifest) -> list[Manifest]:
    return manifest["spec"].get("deletionStrategy", {}).get("deletionRules", [])


def _ends_of(manifest: Manifest) -> Iterator[tuple[str, str, int]]:
    """End of the job, policy and seconds of each deletion rule."""
    for rule in _rules_of(manifest):
        when = rule["condition"]
        yield when.get("jobStatus") or when.get("jobDeploymentStatus", ""), rule["policy"], when.get("ttlSeconds", 0)


def _deletes_twice(manifest: Manifest) -> bool:
    found = [(end, policy) for end, policy, _ in _ends_of(manifest)]
    return len(found) > len(set(found))


def _deletes_out_of_order(manifest: Manifest) -> bool:
    """Workers leave before the cluster, the cluster before the job."""
    order = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
    seconds = {(end, policy): after for end, policy, after in _ends_of(manifest)}
    for end in {end for end, _ in seconds}:
        steps = [seconds[end, policy] for policy in order if (end, policy) in seconds]
        if steps != sorted(steps):
            return True
    return False


def _deletes_below_zero(manifest: Manifest) -> bool:
    return any(after < 0 for _, _, after in _ends_of(manifest))


def _condition_is_wrong(manifest: Manifest) -> bool:
    keys = {"jobStatus", "jobDeploymentStatus"}
    return any(len(keys & rule["condition"].keys()) != 1 for rule in _rules_of(manifest))


def _deletes_workers_that_scale(manifest: Manifest) -> bool:
    return _autoscales(manifest) and any(policy == "DeleteWorkers" for _, policy, _ in _ends_of(manifest))


def _is_suspended_for_ever(manifest: Manifest) -> bool:
    return bool(manifest["spec"].get("suspend")) and not manifest["spec"].get("shutdownAfterJobFinishes")


def _ttl_is_wrong(manifest: Manifest) -> bool:
    ttl = manifest["spec"].get("ttlSecondsAfterFinished", 0)
    return ttl < 0 or (ttl > 0 and not manifest["spec"].get("shutdownAfterJobFinishes"))


def _shuts_down_twice(manifest: Manifest) -> bool:
    return bool(_rules_of(manifest)) and bool(manifest["spec"].get("shutdownAfterJobFinishes"))


def _strategy_is_empty(manifest: Manifest) -> bool:
    strategy = manifest["spec"].get("deletionStrategy")
    return strategy is not None and not strategy.get("deletionRules") and not {"onSuccess", "onFailure"} <= {*strategy}


def _selector_is_wrong(manifest: Manifest) -> bool:
    spec = manifest["spec"]
    if "clusterSelector" not in spec:
        return False
    deletes = any(policy in ("DeleteCluster", "DeleteWorkers") for _, policy, _ in _ends_of(manifest))
    is_named = spec["clusterSelector"].get("ray.io/cluster")
    is_other = spec.get("suspend") or spec.get("submissionMode") == "SidecarMode" or spec.get("backoffLimit", 0) > 0
    return bool(deletes or not is_named or is_other)


def _sidecar_is_wrong(manifest: Manifest) -> bool:
    spec, head = manifest["spec"], ray_spec(manifest)["headGroupSpec"]["template"]["spec"]
    is_set = {"submitterPodTemplate", "submitterConfig"} & spec.keys()
    return spec.get("submissionMode") == "SidecarMode" and bool(is_set or head.get("restartPolicy", "Never") != "Never")


def _retries_a_person(manifest: Manifest) -> bool:
    spec = manifest["spec"]
    return spec.get("submissionMode") == "InteractiveMode" and spec.get("backoffLimit", 0) > 0


def _runtime_env_is_no_yaml(manifest: Manifest) -> bool:
    try:
        return not isinstance(yaml.safe_load(manifest["spec"].get("runtimeEnvYAML", "")), dict | None)
    except yaml.YAMLError:
        return True


def _number_is_wrong(manifest: Manifest) -> bool:
    spec = manifest["spec"]
    deadlines = [spec.get(key, 1) for key in ("activeDeadlineSeconds", "preRunningDeadlineSeconds")]
    return min(deadlines) <= 0 or spec.get("backoffLimit", 0) < 0


JOB_RULES: dict[str, Rule] = {
    "suspend": _is_suspended_for_ever,
    "ttl": _ttl_is_wrong,
    "shutdown and rules": _shuts_down_twice,
    "empty strategy": _strategy_is_empty,
    "rule below 0": _deletes_below_zero,
    "rule twice": _deletes_twice,
    "rule order": _deletes_out_of_order,
    "rule condition": _condition_is_wrong,
    "rule and autoscaler": _deletes_workers_that_scale,
    "selector": _selector_is_wrong,
    "interactive": _retries_a_person,
    "sidecar": _sidecar_is_wrong,
    "runtime environment": _runtime_env_is_no_yaml,
    "deadlines": _number_is_wrong,
}


def kueue_refuses(manifest: Manifest) -> bool:
    """What Kueue's webhooks refuse of a RayJob or RayCluster with a queue (ray*_webhook.go)."""
    if "kueue.x-k8s.io/queue-name" not in manifest["metadata"].get("labels", {}):
        return False
    is_job, groups = manifest["kind"] == "RayJob", _groups(manifest)
    stays = is_job and not manifest["spec"].get("shutdownAfterJobFinishes")
    return stays or _autoscales(manifest) or len(groups) > 7 or "head" in [one["groupName"] for one in groups]
