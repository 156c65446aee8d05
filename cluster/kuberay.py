"""Manifests of KubeRay 1.7: a RayCluster, or a RayJob that trains a run, with what belongs to it."""

from typing import Any

import yaml

from cluster.config import CONFIG_FOLDER, ClusterConfig, GroupConfig, PodConfig
from cluster.names import object_name
from tips_ray.config import RunConfig

Manifest = dict[str, Any]
CONFIG_FILE = "run.yaml"
RAY_CONTAINER = {"head": "ray-head", "worker": "ray-worker"}
GPU_KIND = "nvidia.com/gpu.product"
MOST_CONFIG_BYTES = 1_000_000
"""Kubernetes allows 1 MiB for the whole ConfigMap."""
QUEUE = "kueue.x-k8s.io/queue-name"


def job_manifests(run: RunConfig, cluster: ClusterConfig) -> list[Manifest]:
    """ConfigMap with the run's config, disruption budget of the head, and the RayJob that trains the run.

    The names depend on the run's name and storage alone, so that the same run cannot be there twice.

    Raises:
        ValueError: the run's config is too long.
    """
    name = object_name(run.name, run.storage)
    config = yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    if len(config.encode()) > MOST_CONFIG_BYTES:
        raise ValueError(
            f"the run's config has {len(config.encode()):,} bytes, a ConfigMap holds {MOST_CONFIG_BYTES:,}: name the "
            "sources by patterns"
        )
    config_map = {**_headed("v1", "ConfigMap", name, cluster), "immutable": True, "data": {CONFIG_FILE: config}}
    job = _headed("ray.io/v1", "RayJob", name, cluster)
    if cluster.queue:
        job["metadata"]["labels"] |= {QUEUE: cluster.queue}
    job["spec"] = {
        "submissionMode": "K8sJobMode",
        "entrypoint": f"tips-ray pretrain {CONFIG_FOLDER}/{CONFIG_FILE} --supervise",
        "backoffLimit": cluster.retries,
        "submitterConfig": {"backoffLimit": cluster.submit_retries},
        "preRunningDeadlineSeconds": cluster.start_seconds,
        **({"activeDeadlineSeconds": cluster.deadline_seconds} if cluster.deadline_seconds else {}),
        **_end(cluster),
        "rayClusterSpec": _cluster_spec(name, cluster, config_map=name),
    }
    return [config_map, _budget(name, cluster), job]


def cluster_manifests(cluster: ClusterConfig, name: str) -> list[Manifest]:
    """Disruption budget of the head and a RayCluster that stays until it is deleted."""
    name = object_name(name, "cluster")
    made = _headed("ray.io/v1", "RayCluster", name, cluster)
    if cluster.queue:
        made["metadata"]["labels"] |= {QUEUE: cluster.queue}
    return [_budget(name, cluster), {**made, "spec": _cluster_spec(name, cluster)}]


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as they are read."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def as_yaml(manifests: list[Manifest]) -> str:
    """The manifests as one YAML text of several documents."""
    return yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _labels(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": "tips-ray", "app.kubernetes.io/instance": name}


def _headed(version: str, kind: str, name: str, cluster: ClusterConfig) -> Manifest:
    space = {"namespace": cluster.namespace} if cluster.namespace else {}
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, **space, "labels": _labels(name)}}


def _budget(name: str, cluster: ClusterConfig) -> Manifest:
    """Whoever drains Kubernetes nodes waits for the head: with it, the driver and the whole cluster would be lost."""
    labels = {**_labels(name), "app.kubernetes.io/component": "head"}
    spec = {"minAvailable": 1, "selector": {"matchLabels": labels}}
    return {**_headed("policy/v1", "PodDisruptionBudget", name, cluster), "spec": spec}


def _end(cluster: ClusterConfig) -> dict[str, Any]:
    """What happens to the cluster after the end: Kueue knows one way, and autoscaled workers leave by themselves."""
    keep = cluster.keep_cluster_seconds
    if cluster.queue:
        return {"shutdownAfterJobFinishes": True, "ttlSecondsAfterFinished": keep}
    ends = [{"jobStatus": "SUCCEEDED"}, {"jobStatus": "FAILED"}, {"jobDeploymentStatus": "Failed"}]
    policies = {"DeleteCluster": keep} if cluster.autoscales else {"DeleteWorkers": 0, "DeleteCluster": keep}
    rules = [
        {"policy": policy, "condition": {**end, "ttlSeconds": seconds}}
        for end in ends
        for policy, seconds in policies.items()
    ]
    return {"deletionStrategy": {"deletionRules": rules}}


def _cluster_spec(name: str, cluster: ClusterConfig, config_map: str | None = None) -> dict[str, Any]:
    spec: dict[str, Any] = {"rayVersion": cluster.ray}
    if cluster.token_auth:
        spec["authOptions"] = {"mode": "token"}
    if cluster.autoscales:
        spec["enableInTreeAutoscaling"] = True
        spec["autoscalerOptions"] = {"version": "v2", "idleTimeoutSeconds": cluster.idle_seconds}
    spec["headGroupSpec"] = _head(name, cluster, config_map)
    spec["workerGroupSpecs"] = [_group(name, group, cluster) for group in cluster.groups]
    return spec


def _head(name: str, cluster: ClusterConfig, config_map: str | None) -> dict[str, Any]:
    """The head offers no CPUs, so only the driver runs there: Ray puts it on the head unless it asks for resources."""
    template = _template("head", name, cluster.head, cluster)
    pod = template["spec"]
    if cluster.head.priority_class:
        pod["priorityClassName"] = cluster.head.priority_class
    if config_map:
        mount = {"name": "run-config", "mountPath": CONFIG_FOLDER, "readOnly": True}
        pod["volumes"] = [*pod.get("volumes", []), {"name": "run-config", "configMap": {"name": config_map}}]
        pod["containers"][0]["volumeMounts"] = [*pod["containers"][0].get("volumeMounts", []), mount]
    labels = {"labels": dict(cluster.head.labels)} if cluster.head.labels else {}
    return {"rayStartParams": {"num-cpus": "0"}, **labels, "template": template}


def _group(name: str, group: GroupConfig, cluster: ClusterConfig) -> dict[str, Any]:
    made: dict[str, Any] = {"groupName": group.name, "replicas": group.fewest}
    made |= {"minReplicas": group.fewest, "maxReplicas": group.nodes, "rayStartParams": {}}
    if group.roles:
        made["resources"] = {role: str(count) for role, count in group.roles.items()}
    if group.labels:
        made["labels"] = dict(group.labels)
    template = _template("worker", name, group, cluster)
    if group.gpus:
        resources = template["spec"]["containers"][0]["resources"]
        for kind in ("requests", "limits"):
            resources[kind] |= {group.gpu_resource: str(group.gpus)}
    return {**made, "template": template}


def _template(part: str, name: str, pod: PodConfig, cluster: ClusterConfig) -> dict[str, Any]:
    """Pod template of the head or of a group, with its whole CPUs and memory reserved."""
    amounts = {"cpu": str(pod.cpus), "memory": f"{pod.memory_gib}Gi"}
    container: dict[str, Any] = {
        "name": RAY_CONTAINER[part],
        "image": cluster.image,
        "resources": {"requests": dict(amounts), "limits": dict(amounts)},
        "env": [{"name": key, "value": value} for key, value in _environment(cluster).items()],
        "securityContext": {"allowPrivilegeEscalation": False},
    }
    spec: dict[str, Any] = {"terminationGracePeriodSeconds": cluster.grace_seconds, "restartPolicy": "Never"}
    if cluster.service_account:
        spec["serviceAccountName"] = cluster.service_account
    if cluster.image_pull_secret:
        spec["imagePullSecrets"] = [{"name": cluster.image_pull_secret}]
    if cluster.secret:
        container["envFrom"] = [{"secretRef": {"name": cluster.secret}}]
    if cluster.volumes:
        spec["volumes"], container["volumeMounts"] = _volumes(cluster)
    labels = {**_labels(name), "app.kubernetes.io/component": part}
    return {"metadata": {"labels": labels}, "spec": {**spec, **_placement(pod, cluster), "containers": [container]}}


def _environment(cluster: ClusterConfig) -> dict[str, str]:
    seconds = str(cluster.drain_seconds)
    own = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": seconds, "RAY_JOB_STOP_WAIT_TIME_S": seconds}
    return {**cluster.env, **own}


def _volumes(cluster: ClusterConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes of a pod, and their mounts."""
    numbered = list(enumerate(cluster.volumes))
    volumes = [{"name": f"volume-{i}", "persistentVolumeClaim": {"claimName": one.claim}} for i, one in numbered]
    mounts = [{"name": f"volume-{i}", "mountPath": one.path, "readOnly": one.read_only} for i, one in numbered]
    return volumes, mounts


def _placement(pod: PodConfig, cluster: ClusterConfig) -> dict[str, Any]:
    """Which Kubernetes nodes a pod may use: a spot group those with all labels of spot nodes, others none of them."""
    group = pod if isinstance(pod, GroupConfig) else None
    wanted, tolerated = dict(pod.node_labels), [_toleration(one.model_dump()) for one in pod.tolerations]
    if group and group.gpus:
        wanted |= {GPU_KIND: group.gpu_kind} if group.gpu_kind else {}
        tolerated.append({"key": group.gpu_resource, "operator": "Exists", "effect": "NoSchedule"})
    placement: dict[str, Any] = {}
    if group and group.spot:
        wanted |= cluster.spot_nodes
    elif cluster.spot_nodes:
        placement["affinity"] = {"nodeAffinity": _off(cluster.spot_nodes)}
    return placement | {key: value for key, value in (("nodeSelector", wanted), ("tolerations", tolerated)) if value}


def _off(labels: dict[str, str]) -> dict[str, Any]:
    """Node affinity that keeps off nodes with all of these labels; one missing label is enough."""
    terms = [
        {"matchExpressions": [{"key": key, "operator": "NotIn", "values": [value]}]} for key, value in labels.items()
    ]
    return {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}


def _toleration(given: dict[str, str | None]) -> dict[str, str]:
    operator = "Exists" if given["value"] is None else "Equal"
    return {"operator": operator, **{key: value for key, value in given.items() if value is not None}}
