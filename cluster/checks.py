"""Checks of a run that is sent to a cluster, made here without it. Each fault is a sentence with its cure."""

import re
from collections.abc import Callable, Iterator

from cluster.config import ClusterConfig
from tips_ray import storage
from tips_ray.config import RunConfig, override
from tips_ray.errors import Faults, listed, sentences
from tips_ray.launch.cluster import require_nodes

IN_URL = re.compile(r"://[^/@\s]*:[^/@\s]+@")
"""User and password in a URL."""


def require_fit(run: RunConfig, cluster: ClusterConfig) -> None:
    """
    Raises:
        Faults: the run cannot work on the cluster.
    """
    checks = (_fits, _uses_roles, _is_reachable, _has_no_secret, _has_time_to_save)
    faults = [sentence for check in checks for sentence in _faults(lambda check=check: check(run, cluster))]
    if faults:
        raise Faults(faults)


def _faults(check: Callable[[], None]) -> list[str]:
    try:
        check()
    except ValueError as fault:
        return sentences(fault)
    return []


def _fits(run: RunConfig, cluster: ClusterConfig) -> None:
    """Room for the fewest workers with all that runs beside them, by sums and then by whole nodes."""
    nodes = [group.ray_resources for group in cluster.groups for _ in range(group.nodes)]
    require_nodes(_smallest(run), nodes, "the cluster's config")
    for who, count, own in _processes(_smallest(run)):
        room = sum(_copies(node, own) for node in nodes)
        if room < count:
            wanted = " and ".join(f"{need:g} {kind}" for kind, need in own.items() if need)
            raise ValueError(
                f"{count} {who} need {wanted} each, and the cluster's config has room for {room}: a process cannot be "
                "spread over nodes; use larger nodes or more of them"
            )


def _uses_roles(run: RunConfig, cluster: ClusterConfig) -> None:
    with_roles = [group.name for group in cluster.groups if group.roles]
    if with_roles and not run.resources.roles:
        raise ValueError(
            f"groups ({listed(with_roles)}) have roles, and the run would use all nodes alike: set "
            "resources.roles=true, or leave the roles out"
        )


def _smallest(run: RunConfig) -> RunConfig:
    """The run with the fewest workers that it may train with."""
    fewest = {"resources.workers": run.worker_counts[0], "resources.min_workers": None}
    return override(RunConfig, run.model_dump(mode="json"), fewest)


def _processes(run: RunConfig) -> Iterator[tuple[str, int, dict[str, float]]]:
    """Name, number and Ray resources of each kind of process that needs a place on one node."""
    resources, evaluation = run.resources, run.evaluation
    yield "workers", resources.workers, resources.of_worker
    if run.captions.source == "live":
        own = {"CPU": resources.cpus_per_captioner, "GPU": resources.gpus_per_captioner, **resources.role("caption")}
        yield "captioners", resources.captioners, own
    if evaluation:
        yield "evaluations", 1, {"CPU": evaluation.cpus, "GPU": evaluation.gpus}


def _copies(node: dict[str, float], own: dict[str, float]) -> int:
    """How many processes with `own` resources a node holds."""
    return min(int(node.get(kind, 0) / need + 1e-9) for kind, need in own.items() if need) if any(own.values()) else 1


def _is_reachable(run: RunConfig, cluster: ClusterConfig) -> None:
    """All nodes reach what the config names: it lies in an object store or on a volume of the cluster."""
    places = {"storage": run.storage, "data.index": run.data.index, "captions.store": run.captions.store}
    places |= {f"data.sources.{i}.uri": source.uri for i, source in enumerate(run.data.sources)}
    places |= {"captions.tokenizer": run.captions.tokenizer, "start.uri": run.start.uri if run.start else None}
    places |= {"objective.frozen_teacher": run.objective.frozen_teacher}
    mounts = [volume.path for volume in cluster.volumes]
    lost = [
        f"{key} ({uri}) is a path that the pods do not have: use s3://, or a path below a volume of the cluster"
        for key, uri in places.items()
        if uri and storage.is_local(uri) and not any(f"{uri}/".startswith(f"{path}/") for path in mounts)
    ]
    if lost:
        raise Faults(lost)
    read_only = [volume.path for volume in cluster.volumes if volume.read_only]
    if any(f"{run.storage}/".startswith(f"{path}/") for path in read_only):
        raise ValueError(f"storage ({run.storage}) is on a volume with read_only; leave read_only out, or use another")


def _has_no_secret(run: RunConfig, _: ClusterConfig) -> None:
    """The config is stored in the cluster as plain text, which more people may read than a secret."""
    for key, text in texts(run.model_dump(mode="json")):
        if IN_URL.search(text):
            raise ValueError(f"{key} holds a user and a password; leave them out and put them into a Kubernetes secret")


def texts(tree: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a tree with its dotted key."""
    if isinstance(tree, str):
        yield key, tree
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, below in pairs:
        yield from texts(below, f"{key}.{name}".lstrip("."))


def _has_time_to_save(run: RunConfig, cluster: ClusterConfig) -> None:
    if cluster.drain_seconds < run.resources.leave_seconds:
        least = round(run.resources.leave_seconds) + cluster.grace_seconds - cluster.drain_seconds
        raise ValueError(
            f"grace_seconds ({cluster.grace_seconds}) ends a pod before resources.leave_seconds "
            f"({run.resources.leave_seconds:g}): raise it to {least}, or lower leave_seconds"
        )
