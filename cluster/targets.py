"""Where a run can be sent: what each target is made of, and which keys of a cluster's config it cannot express."""

from collections.abc import Callable, Iterator

from cluster.checks import require_fit
from cluster.config import ClusterConfig
from cluster.kuberay import as_yaml, cluster_manifests, job_manifests
from cluster.tasks import dstack_name, dstack_task, secret_names, skypilot_task
from tips_ray.config import RunConfig, override
from tips_ray.config.schema import Schema
from tips_ray.errors import Faults, sentences

NAMES = {"skypilot": "SkyPilot", "dstack": "dstack"}
KUBERNETES_ONLY = "belongs to Kubernetes; leave it out"
REFUSED = {
    "namespace": KUBERNETES_ONLY,
    "image_pull_secret": "belongs to Kubernetes; leave it out and log in to the registry where {name} is set up",
    "secret": "is a secret of Kubernetes; name the variables themselves: secret_names",
    "service_account": "belongs to Kubernetes; leave it out and give the nodes access to the storage in {name}'s cloud",
    "volumes": "are claims of Kubernetes; leave them out and keep data and runs on s3://",
    "queue": "is a queue of Kueue; leave it out",
    "submit_retries": KUBERNETES_ONLY,
    "idle_seconds": "needs an autoscaler, which {name} has not; leave it out",
    "keep_cluster_seconds": "has no meaning, because {name} ends the nodes with the run; leave it out",
    "head.node_labels": KUBERNETES_ONLY,
    "head.tolerations": KUBERNETES_ONLY,
    "head.priority_class": KUBERNETES_ONLY,
    "groups.node_labels": KUBERNETES_ONLY,
    "groups.tolerations": KUBERNETES_ONLY,
    "groups.gpu_resource": KUBERNETES_ONLY,
    "groups.min_nodes": "needs an autoscaler, which {name} has not; leave it out",
}
"""What neither SkyPilot nor dstack can express, and what to do."""
REFUSED_BY = {
    "skypilot": REFUSED
    | {
        "deadline_seconds": "is unknown to SkyPilot; leave it out",
        "head.labels": "cannot be given, because the first node of the group is the head; leave them out",
    },
    "dstack": REFUSED,
}


def written(target: str, run: RunConfig, cluster: ClusterConfig, standing: bool) -> tuple[str, str]:
    """What `target` needs to train the run.

    Args:
        target: kuberay, skypilot or dstack.
        standing: make a cluster that stays, without the run.

    Returns:
        YAML text, and a sentence about what to do with it.

    Raises:
        ValueError: the run does not fit on the cluster, or the target cannot express a key of its config.
    """
    return {"kuberay": _kuberay, "skypilot": _skypilot, "dstack": _dstack}[target](run, cluster, standing)


def _kuberay(run: RunConfig, cluster: ClusterConfig, standing: bool) -> tuple[str, str]:
    require_fit(run, cluster)
    if cluster.secret_names and not cluster.secret:
        raise ValueError(f"secret_names ({cluster.secret_names[0]}): KubeRay takes them from a secret; name it: secret")
    manifests = cluster_manifests(cluster, run.name) if standing else job_manifests(run, cluster)
    kind, name = manifests[-1]["kind"].lower(), manifests[-1]["metadata"]["name"]
    return as_yaml(manifests), f"pipe it into `kubectl create -f -`, then `kubectl get {kind} {name}`"


def _skypilot(run: RunConfig, cluster: ClusterConfig, standing: bool) -> tuple[str, str]:
    _require_expressed("skypilot", cluster, standing, _equal_nodes)
    require_fit(run, cluster)
    _require_room_beside_head(run, cluster)
    task = skypilot_task(run, cluster)
    options = "".join(f" --secret {name}" for name in secret_names(cluster))
    token = "export RAY_AUTH_TOKEN=$(openssl rand -hex 32)`, then `" if cluster.token_auth else ""
    return as_yaml([task]), f"save it as task.yaml, `{token}sky jobs launch task.yaml{options}`"


def _dstack(run: RunConfig, cluster: ClusterConfig, standing: bool) -> tuple[str, str]:
    _require_expressed("dstack", cluster, standing, _one_spot_policy)
    require_fit(run, cluster)
    task = dstack_task(run, cluster)
    secrets = [f"`dstack secret set {name} VALUE`" for name in secret_names(cluster)]
    steps = ["save it as task.dstack.yml", *secrets, "`dstack apply -f task.dstack.yml`"]
    return as_yaml([task]), f"{', '.join(steps)}, then `dstack logs {dstack_name(run)}`"


def _require_expressed(
    target: str, cluster: ClusterConfig, standing: bool, own: Callable[[ClusterConfig], Iterator[str]]
) -> None:
    """
    Raises:
        Faults: keys are given that the target cannot express, one sentence for each.
    """
    if standing:
        raise ValueError(f"--standing is for kuberay; {NAMES[target]} ends the nodes with the run: leave it out")
    refused = REFUSED_BY[target]
    faults = [
        f"{key} {refused[key].format(name=NAMES[target])}" for key in given_keys(cluster) if key in refused
    ] + list(own(cluster))
    if faults:
        raise Faults(faults)


def given_keys(cluster: ClusterConfig) -> list[str]:
    """Keys that the config itself gives, such as `groups.gpus`, each once, without those that say nothing."""
    parts: list[tuple[str, Schema]] = [("", cluster), ("head.", cluster.head)]
    parts += [("groups.", group) for group in cluster.groups]
    keys = [
        f"{prefix}{key}"
        for prefix, part in parts
        for key in type(part).model_fields
        if key in part.model_fields_set and getattr(part, key) not in (None, {}, ())
    ]
    return list(dict.fromkeys(keys))


def _equal_nodes(cluster: ClusterConfig) -> Iterator[str]:
    first = cluster.groups[0]
    if len(cluster.groups) > 1:
        yield f"groups ({len(cluster.groups)}): SkyPilot makes equal nodes; keep one group, or use kuberay or dstack"
    if first.gpus and not first.gpu_kind:
        yield f"groups ({first.name}): SkyPilot asks for GPUs by kind; set gpu_kind, such as H100"
    if first.cpus <= cluster.head.cpus:
        yield (
            f"groups ({first.name}): the first node is the head too; give more cpus than head.cpus "
            f"({cluster.head.cpus})"
        )
    if first.memory_gib <= cluster.head.memory_gib:
        yield (
            f"groups ({first.name}): the first node is the head too; give more memory_gib than head.memory_gib "
            f"({cluster.head.memory_gib})"
        )


def _require_room_beside_head(run: RunConfig, cluster: ClusterConfig) -> None:
    """
    Raises:
        ValueError: without the CPUs of the head there is too little room.
    """
    (group,) = cluster.groups
    first = {**group.model_dump(), "name": "first", "nodes": 1, "cpus": group.cpus - cluster.head.cpus}
    rest = [{**group.model_dump(), "nodes": group.nodes - 1}] if group.nodes > 1 else []
    left = override(ClusterConfig, cluster.model_dump(), {"groups": [first, *rest]})
    try:
        require_fit(run, left)
    except ValueError as fault:
        head = f"; on SkyPilot head.cpus ({cluster.head.cpus}) are taken from the first node"
        raise Faults([f"{sentence}{head}" for sentence in sentences(fault)]) from None


def _one_spot_policy(cluster: ClusterConfig) -> Iterator[str]:
    kinds = {group.spot for group in cluster.groups}
    if len(kinds) > 1:
        yield "groups: dstack has one spot policy for all nodes of a run; set spot alike in all groups"
    if "retries" in cluster.model_fields_set and cluster.retries:
        yield (
            f"retries ({cluster.retries}): dstack counts no retries; leave it out to try again after interruptions "
            "alone, or set 0"
        )
    if any(group.name == "head" for group in cluster.groups):
        yield "groups (head): on dstack this is the name of the head's group; give the group another one"
