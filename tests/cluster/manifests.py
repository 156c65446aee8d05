"""Configs and manifests for tests, and ways to take a manifest apart."""

from copy import deepcopy
from pathlib import Path
from typing import Any

from cluster.config import ClusterConfig
from cluster.kuberay import cluster_manifests, job_manifests
from tips_ray.config import RunConfig, load_config, override

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "cluster" / "configs"
PHOTOS = ROOT / "jobs" / "configs" / "photos.yaml"
ON_S3 = ("storage=s3://bucket/runs", "data.sources=[{uri: 's3://bucket/{000..099}.tar'}]")
GROUP = {"name": "gpu", "cpus": 8, "memory_gib": 32, "gpus": 1}
BASE = {"image": "tips-ray:0.1.0", "groups": [GROUP]}
SPOT = {"node.kubernetes.io/lifecycle": "spot"}
ALL_KEYS = {
    "image_pull_secret": "registry",
    "namespace": "team",
    "head": {"priority_class": "high", "labels": {"kind": "head"}, "node_labels": {"zone": "a"}},
    "groups": [
        {**GROUP, "gpu_kind": "NVIDIA-L4", "roles": {"train": 2, "caption": 1}, "labels": {"kind": "train"}},
        {**GROUP, "name": "data", "nodes": 3, "gpus": 0, "roles": {"data": 8}, "spot": True}
        | {"tolerations": [{"key": "spot", "value": "yes", "effect": "NoExecute"}, {"key": "any"}]},
    ],
    "spot_nodes": SPOT,
    "env": {"AWS_ENDPOINT_URL": "https://s3.example.com"},
    "secret": "storage-access",
    "service_account": "trainer",
    "volumes": [{"claim": "shared", "path": "/data"}, {"claim": "models", "path": "/models", "read_only": True}],
    "deadline_seconds": 86400,
}
"""Every key of a fixed-size cluster."""
KINDS = {
    "fixed": {},
    "every key": ALL_KEYS,
    "queue": {"queue": "team-queue"},
    "autoscaled": {"groups": [{**GROUP, "nodes": 4, "min_nodes": 0}], "retries": 0},
    "without token": {"token_auth": False},
}
"""What differs from `BASE`."""


def run_config(*overrides: str) -> RunConfig:
    return load_config(RunConfig, PHOTOS, [*ON_S3, *overrides])


def cluster_config(**changes: Any) -> ClusterConfig:
    return override(ClusterConfig, {**BASE, **changes}, {})


def job(**changes: Any) -> dict[str, Any]:
    """The RayJob of the photos, on `BASE` with changes."""
    return deepcopy(job_manifests(run_config(), cluster_config(**changes))[-1])


def every_manifest() -> list[tuple[str, dict[str, Any]]]:
    """All manifests of all kinds and of the published configs."""
    kinds = {name: cluster_config(**changes) for name, changes in KINDS.items()}
    kinds |= {path.name: load_config(ClusterConfig, path) for path in sorted(CONFIGS.glob("*.yaml"))}
    return [
        (f"{name}-{manifest['kind']}", manifest)
        for name, cluster in kinds.items()
        for manifest in [*job_manifests(run_config(), cluster), *cluster_manifests(cluster, "shared")]
    ]


def ray_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    """The part that describes the Ray cluster."""
    return manifest["spec"]["rayClusterSpec"] if manifest["kind"] == "RayJob" else manifest["spec"]


def templates(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Pod templates: the head's, then those of the groups."""
    spec = ray_spec(manifest)
    return [part["template"] for part in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
