"""Send a command to a cluster of Ray, or print what a cluster needs to train a run.

  tips-ray submit [--address http://HOST:8265] [--follow] -- COMMAND CONFIG [KEY=VALUE ...]
                            any command of tips-ray, such as pretrain or sweep, as a job of the cluster; this folder's
                            files that the command and its configs name travel with it, and the same command goes on
                            with the same run. --dry-run shows what would travel
  tips-ray submit --follow --retries 5 -- pretrain RUN.yaml
                            follows the log, and starts the job again after a lost head or node; exit code of the job
  tips-ray submit --to kuberay [--cluster CLUSTER.yaml] [--standing] RUN.yaml [KEY=VALUE ...] | kubectl create -f -
                            prints manifests, without asking a cluster; --standing: a RayCluster without the run
  tips-ray submit --to skypilot --cluster CLUSTER.yaml RUN.yaml > task.yaml
                            or --to dstack: prints a task that makes nodes and trains the run on them

tips-ray jobs list, status, logs and stop look after jobs. docs/cluster.md has each way whole.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from cluster.submission import Task
    from tips_ray.config import RunConfig

TARGETS = ("kuberay", "skypilot", "dstack")
LOCAL = ("submit", "jobs", "plan", "demo", "doctor")
"""Commands that are about this machine."""
TAKES_COMMAND = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray submit`; the words after `--` are added as `command_words`."""
    parser.add_argument("words", nargs="*", metavar="RUN.yaml [KEY=VALUE ...]", help="with --to: config of the run")
    parser.add_argument("--address", metavar="URL", help="dashboard; default: RAY_API_SERVER_ADDRESS or this machine's")
    parser.add_argument("--follow", action="store_true", help="print the job's log until it ends; exit code of the job")
    parser.add_argument("--retries", type=int, default=0, metavar="N", help="with --follow: new starts after a loss")
    parser.add_argument("--with", dest="added", type=Path, nargs="+", default=[], metavar="PATH", help="also travels")
    parser.add_argument("--without", type=Path, nargs="+", default=[], metavar="PATH", help="does not travel")
    parser.add_argument("--env", choices=("image", "uv"), default="image", help="where the cluster's tips-ray is from: "
                        "its image, or uv.lock of this folder, which then travels whole")  # fmt: skip
    parser.add_argument("--driver-on", action="append", default=[], metavar="LABEL=VALUE", help="node label for the "
                        "driver, such as one of nodes that stay; default: the head")  # fmt: skip
    parser.add_argument("--wait", type=float, default=120, metavar="SECONDS", help="longest wait for the cluster")
    parser.add_argument("--dry-run", action="store_true", help="check, show what would travel, and send nothing")
    parser.add_argument("--to", choices=TARGETS, help="print manifests of KubeRay 1.7, or a task")
    parser.add_argument(
        "--cluster", type=Path, metavar="CLUSTER.yaml", help="with --to: config of the cluster; one GPU without it"
    )
    parser.add_argument("--standing", action="store_true", help="with --to: a cluster that stays, not a job")


def run(arguments: argparse.Namespace) -> int | None:
    """
    Raises:
        ValueError: a config is wrong, or the run does not fit on the cluster.
        OSError: the cluster refuses or does not answer.
    """
    _require_arguments(arguments)
    if arguments.to:
        return _print_manifests(arguments)
    import tempfile

    from cluster.package import named_folders, package
    from cluster.submission import task

    made = task(arguments.command_words, command_arguments(arguments.command_words))
    project = [Path(name) for name in ("pyproject.toml", "uv.lock") if arguments.env == "uv" and Path(name).is_file()]
    added = [*arguments.added, *([Path(".")] if arguments.env == "uv" else [])]
    travels = package([*made.files, *project], added, arguments.without)
    print("\n".join(travels.lines()), flush=True)
    for folder in named_folders(arguments.command_words):
        if Path(folder) not in arguments.added:
            print(f"{'':10} {folder} does not travel: the cluster needs it at this place, or add --with {folder}")
    if arguments.dry_run:
        print(f"{'job':10} {made.stem}-1: {made.entrypoint}")
        return None
    with tempfile.TemporaryDirectory(prefix="tips-ray-package-") as place:
        travels.write(Path(place))
        return _submit(arguments, made, Path(place))


def _require_arguments(arguments: argparse.Namespace) -> None:
    words = arguments.command_words
    if arguments.to and (words or not arguments.words):
        raise ValueError(f"--to {arguments.to} takes RUN.yaml and its overrides, without --")
    if not arguments.to and arguments.words:
        raise ValueError("write -- before the command: tips-ray submit -- pretrain RUN.yaml")
    if not arguments.to and not words:
        raise ValueError("say what to submit after --, such as: tips-ray submit -- pretrain RUN.yaml")
    if arguments.retries < 0:
        raise ValueError(f"--retries ({arguments.retries}) must be 0 or more")
    if arguments.retries and not arguments.follow:
        raise ValueError("--retries needs --follow: somebody must see that a job was lost")
    from jobs.cli import COMMANDS

    if words and (words[0] not in COMMANDS or words[0] in LOCAL):
        known = ", ".join(name for name in COMMANDS if name not in LOCAL)
        raise ValueError(f"{words[0]} is no command for a cluster; those are {known}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog} does not take these words: {message}")


def command_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The words of a command as its own parser reads them: a mistake is told here, not by the cluster.

    Raises:
        ValueError: the parser does not take them.
    """
    import importlib

    parser = _Parser(prog=f"tips-ray {words[0]}", add_help=False)
    importlib.import_module(f"jobs.{words[0]}").add_arguments(parser)
    return parser.parse_intermixed_args(list(words[1:]))


def _submit(arguments: argparse.Namespace, made: "Task", folder: Path) -> int | None:
    from cluster.environment import checked
    from cluster.job_server import JobExistsError, JobServer, connect
    from cluster.submission import live, start, watch

    labels = dict(_label(text) for text in arguments.driver_on)

    def again(server: JobServer, last: int) -> str:
        return start(server, made, folder, checked(server, arguments.env), labels, last + 1)

    job_id, server = "", connect(arguments.address, arguments.wait)
    running = live(server, made.stem)
    if running is None:
        _tell_shortage(made.run, server.nodes())
        try:
            job_id = again(server, 0)
        except JobExistsError:  # another submit was faster
            running = live(server, made.stem)
            if running is None:
                raise
    if running is not None:
        job_id = _joined(running.submission_id or "", arguments.follow)
    _tell_job(job_id, "is under way already; this follows it" if running else "is submitted", made.place)
    if not arguments.follow:
        return None
    try:
        return watch(server, job_id, arguments.retries, again)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the job {job_id} goes on; tips-ray jobs stop {job_id} ends it") from None


def _joined(job_id: str, follows: bool) -> str:
    """The job that does the work already.

    Raises:
        ValueError: it is not to be followed.
    """
    if follows:
        return job_id
    raise ValueError(
        f"the job {job_id} does this already: submit --follow joins it, tips-ray jobs logs {job_id} shows its log, "
        f"tips-ray jobs stop {job_id} ends it"
    )


def _tell_job(job_id: str, what: str, place: str) -> None:
    from tips_ray.console import tell

    tell("job", f"{'job':10} {job_id} {what}", job=job_id)
    tell("next", f"{'next':10} tips-ray jobs logs {job_id} --follow, tips-ray jobs stop {job_id}")
    if place:
        tell("results", f"{'results':10} {place}", uri=place)


def _tell_shortage(config: "RunConfig | None", nodes: list[dict[str, float]]) -> None:
    """What the run lacks now; an autoscaler may add it, and the driver waits for it."""
    from tips_ray.console import tell
    from tips_ray.launch.cluster import require_nodes

    if config is None or not nodes:  # a head that has just started lists none yet
        return
    try:
        require_nodes(config, nodes, "the cluster")
    except ValueError as error:
        tell("shortage", f"{'shortage':10} {error}; the job waits for nodes that an autoscaler or you may add")


def _label(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ValueError(f"--driver-on {text}: write LABEL=VALUE")
    return key, value


def _print_manifests(arguments: argparse.Namespace) -> None:
    from cluster.config import ClusterConfig
    from cluster.targets import written
    from tips_ray.config import RunConfig, load_config

    config = load_config(RunConfig, Path(arguments.words[0]), arguments.words[1:])
    cluster = load_config(ClusterConfig, arguments.cluster or _one_gpu())
    text, following = written(arguments.to, config, cluster, arguments.standing)
    print(text, end="", flush=True)
    print(f"next: {following}", file=sys.stderr)


def _one_gpu() -> Path:
    import cluster

    return Path(next(iter(cluster.__path__))) / "configs" / "one-gpu.yaml"
