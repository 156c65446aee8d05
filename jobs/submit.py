"""Send a run to a cluster: check that it fits and print what the cluster needs.

  tips-ray submit --to kuberay RUN.yaml [KEY=VALUE ...] | kubectl create -f -
  tips-ray submit --to kuberay --cluster CLUSTER.yaml RUN.yaml               image, nodes, credentials
  tips-ray submit --to kuberay --cluster CLUSTER.yaml --standing RUN.yaml    a RayCluster that stays, without the run
  tips-ray submit --to skypilot --cluster CLUSTER.yaml RUN.yaml > task.yaml  or --to dstack: a task that trains the run

What is printed goes to the terminal's standard output; nothing is sent and no cluster is asked. docs/cluster.md has the
whole way.
"""

import argparse
import sys
from pathlib import Path

TARGETS = ("kuberay", "skypilot", "dstack")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray submit`."""
    parser.add_argument("config", type=Path, metavar="RUN.yaml", help="config of the run")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the run's config, dotted")
    parser.add_argument("--to", required=True, choices=TARGETS, help="manifests of KubeRay 1.7, or a task")
    parser.add_argument(
        "--cluster", type=Path, metavar="CLUSTER.yaml", help="config of the cluster; one GPU without it"
    )
    parser.add_argument("--standing", action="store_true", help="print a cluster that stays, not a job that trains")


def run(arguments: argparse.Namespace) -> None:
    """Print the manifests.

    Raises:
        ValueError: a config is wrong, or the run does not fit on the cluster.
    """
    from cluster.config import ClusterConfig
    from cluster.targets import written
    from tips_ray.config import RunConfig, load_config

    config = load_config(RunConfig, arguments.config, arguments.overrides)
    cluster = load_config(ClusterConfig, arguments.cluster or _one_gpu())
    text, following = written(arguments.to, config, cluster, arguments.standing)
    print(text, end="", flush=True)
    print(f"next: {following}", file=sys.stderr)


def _one_gpu() -> Path:
    import cluster

    return Path(next(iter(cluster.__path__))) / "configs" / "one-gpu.yaml"
