"""Send a run to a cluster: check that it fits and print what the cluster needs.

  tips-ray submit --to kuberay RUN.yaml [KEY=VALUE ...] | kubectl create -f -
  tips-ray submit --to kuberay --cluster CLUSTER.yaml RUN.yaml               image, nodes, credentials
  tips-ray submit --to kuberay --cluster CLUSTER.yaml --standing RUN.yaml    a RayCluster that stays, without the run

The manifests go to the terminal's standard output; nothing is sent and no cluster is asked. docs/cluster.md has the
whole way.
"""

import argparse
import sys
from pathlib import Path

TARGETS = ("kuberay",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray submit`."""
    parser.add_argument("config", type=Path, metavar="RUN.yaml", help="config of the run")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the run's config, dotted")
    parser.add_argument("--to", required=True, choices=TARGETS, help="kuberay: manifests of KubeRay 1.7, as YAML")
    parser.add_argument(
        "--cluster", type=Path, metavar="CLUSTER.yaml", help="config of the cluster; one GPU without it"
    )
    parser.add_argument("--standing", action="store_true", help="print a cluster that stays, not a job that trains")


def run(arguments: argparse.Namespace) -> None:
    """Print the manifests.

    Raises:
        ValueError: a config is wrong, or the run does not fit on the cluster.
    """
    from cluster.checks import require_fit
    from cluster.config import ClusterConfig
    from cluster.kuberay import as_yaml, cluster_manifests, job_manifests
    from tips_ray.config import RunConfig, load_config

    config = load_config(RunConfig, arguments.config, arguments.overrides)
    cluster = load_config(ClusterConfig, arguments.cluster or _one_gpu())
    require_fit(config, cluster)
    manifests = cluster_manifests(cluster, config.name) if arguments.standing else job_manifests(config, cluster)
    print(as_yaml(manifests), end="", flush=True)
    kind, name = manifests[-1]["kind"].lower(), manifests[-1]["metadata"]["name"]
    print(f"next: pipe it into `kubectl create -f -`, then `kubectl get {kind} {name}`", file=sys.stderr)


def _one_gpu() -> Path:
    import cluster

    return Path(next(iter(cluster.__path__))) / "configs" / "one-gpu.yaml"
