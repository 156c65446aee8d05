"""The Ray that a run uses: the cluster at RAY_ADDRESS, or one of its own on this machine."""

import logging
import os
import shutil
import socket
import sys
from typing import Any

from tips_ray.config import RunConfig
from tips_ray.config.embedding import EmbeddingConfig
from tips_ray.config.evaluation import RayConfig
from tips_ray.errors import CheckWarning, Faults

ANSWER_SECONDS = 4
CPUS_PER_CORE = 4
"""Logical CPUs that a run on this machine may take per core; beyond, workers starve each other."""
UNITS = {"CPU": "CPUs", "GPU": "GPUs"}
OBJECT_STORE_BYTES = 1 << 30
"""Smallest object store of a Ray that is started here."""
SHARE_OF_SHARED_MEMORY = 0.8
"""Largest part of the free shared memory that the object store takes; the rest is for NCCL and for data processes."""


def address() -> str | None:
    """RAY_ADDRESS; None: Ray is started here."""
    given = os.environ.get("RAY_ADDRESS", "")
    return None if given in ("", "local") else given


def cpus_needed(config: RunConfig) -> float:
    """CPUs of all workers, of the data stream, of live captioning and of evaluation."""
    return config.resources.workers * config.resources.cpus_per_worker + config.cpus_beside_workers


def gpus_needed(config: RunConfig) -> float:
    """GPUs of all workers, of live captioners and of evaluation."""
    return config.resources.workers * config.resources.gpus_per_worker + gpus_beside_workers(config)


def gpus_beside_workers(config: RunConfig) -> float:
    """GPUs of captioners and of evaluation beside training."""
    resources, evaluation = config.resources, config.evaluation.gpus if config.evaluation else 0
    is_live = config.captions.source == "live"
    return evaluation + (resources.captioners * resources.gpus_per_captioner if is_live else 0)


def cores() -> int:
    """Cores of this machine that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resources_suffice(config: RunConfig) -> str:
    """Compare the run's CPUs and GPUs with those of the cluster or of this machine.

    Raises:
        ValueError: there are too few, or the cluster does not answer.
        CheckWarning: there are too few now, and the run waits for more; or it leaves GPUs idle.
    """
    if address():
        nodes, where = cluster_nodes(), f"the cluster at {address()}"
        if config.resources.min_workers:
            text = _room_for_some(config, _sums(nodes))
        else:
            require_nodes(config, nodes, f"the cluster at RAY_ADDRESS ({address()})")
            text = f"{_needed(config)}; {where} has them"
        return _with_doubt(text, config, _sums(nodes), where)
    if (ray := sys.modules.get("ray")) and ray.is_initialized():  # by the program that calls this library
        have, where = ray.cluster_resources(), "the Ray that this process has joined"
        _require_enough(config, have, where)
        return _with_doubt(f"{_needed(config)}; {where} has them", config, have, where)
    have, where = {"CPU": float(CPUS_PER_CORE * cores()), "GPU": float(gpus_here())}, f"this machine of {cores()} cores"
    _require_enough(config, have, where)
    shared = "" if cpus_needed(config) <= cores() else ", which share them"
    return _with_doubt(f"{_needed(config)}; this machine has {cores()} cores{shared}", config, have, "this machine")


def _with_doubt(text: str, config: RunConfig, have: dict[str, float], where: str) -> str:
    """The text of a run that uses what there is.

    Raises:
        CheckWarning: it trains on CPUs, and there are GPUs that nobody else of the run takes.
    """
    free = have.get("GPU", 0) - gpus_beside_workers(config)
    if not config.resources.gpus_per_worker and free > 0:
        raise CheckWarning(
            f"{text}; it trains on CPUs, though {where} has {free:g} free GPUs: set resources.gpus_per_worker=1"
        )
    return text


def require_nodes(config: RunConfig, nodes: list[dict[str, float]], where: str) -> None:
    """Require room for all workers, captioners, views and evaluation, and one node that holds a worker.

    Args:
        config: of the run.
        nodes: Ray resources of each node.
        where: what has these nodes, for the message.

    Raises:
        ValueError: there is too little.
    """
    _require_enough(config, _sums(nodes), where)
    _require_node("a worker", config.resources.of_worker, nodes, where)


def require_room_for_actor(config: EmbeddingConfig | RayConfig, beside_cpus: float) -> None:
    """Require room for one actor and the tasks beside it: Ray Data would wait for ever for missing resources.

    Raises:
        ValueError: this machine or the cluster has no room.
    """
    cpus = config.cpus_per_actor + beside_cpus
    _require_room(
        "an actor",
        {"CPU": config.cpus_per_actor, "GPU": config.gpus_per_actor},
        [
            ("GPU", f"gpus_per_actor ({config.gpus_per_actor:g})", config.gpus_per_actor),
            ("CPU", f"cpus_per_actor ({config.cpus_per_actor:g}) and {beside_cpus:g} beside it", cpus),
        ],
    )


def require_room_for_captioner(config: RunConfig, beside_cpus: float) -> None:
    """As `require_room_for_actor`, for one captioner and the tasks that read for it.

    Raises:
        ValueError: this machine or the cluster has no room.
    """
    resources = config.resources
    cpus, gpus = resources.cpus_per_captioner, resources.gpus_per_captioner
    _require_room(
        "a captioner",
        {"CPU": cpus, "GPU": gpus, **resources.role("caption")},
        [
            ("GPU", f"resources.gpus_per_captioner ({gpus:g})", gpus),
            ("CPU", f"resources.cpus_per_captioner ({cpus:g}) and {beside_cpus:g} beside it", cpus + beside_cpus),
            *(
                (name, f"a node of the role {name} (resources.roles)", need)
                for name, need in resources.role("caption").items()
            ),
        ],
    )


def _require_room(who: str, own: dict[str, float], needs: list[tuple[str, str, float]]) -> None:
    """Compare `own` resources and each need (kind, words, amount) with the cluster or this machine."""
    on_cluster = address() is not None
    nodes = cluster_nodes() if on_cluster else [{"GPU": float(gpus_here()), "CPU": float("inf")}]
    where = f"the cluster at RAY_ADDRESS ({address()})" if on_cluster else "this machine"
    have = _sums(nodes)
    for kind, keys, need in needs:
        if have.get(kind, 0) < need:
            raise ValueError(f"{who} needs {keys}, and {where} offers {have.get(kind, 0):g} {_unit(kind)}")
    _require_node(who, own, nodes, where)


def _require_node(who: str, own: dict[str, float], nodes: list[dict[str, float]], where: str) -> None:
    """Require one node with room for the process; it cannot be spread over several."""
    if not any(all(node.get(kind, 0) >= need for kind, need in own.items()) for node in nodes):
        wanted = " and ".join(f"{need:g} {_unit(kind)}" for kind, need in own.items() if need)
        raise ValueError(f"{who} needs {wanted} on one node, and {where} has no such node")


def _unit(kind: str) -> str:
    return UNITS.get(kind, f"of {kind}")


def _sums(nodes: list[dict[str, float]]) -> dict[str, float]:
    return {kind: sum(node.get(kind, 0) for node in nodes) for kind in {kind for node in nodes for kind in node}}


def cluster_nodes() -> list[dict[str, float]]:
    """Resources of each node of the cluster at RAY_ADDRESS.

    Raises:
        ValueError: it does not answer.
    """
    import ray

    require_cluster()
    was_connected = ray.is_initialized()
    connect()
    try:
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        if not was_connected:
            ray.shutdown()


def nodes_of_ray() -> list[dict[str, Any]]:
    """Host, CPUs, GPUs and memory of each node of the Ray that this process has joined; empty while there is none."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return []
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
    except Exception:  # Ray ends meanwhile; nothing but a note for people needs the nodes
        return []
    return [_described_node(node["NodeManagerHostname"], node["Resources"]) for node in nodes]


def _described_node(host: str, has: dict[str, float]) -> dict[str, Any]:
    kinds = [name.partition(":")[2] for name in has if name.startswith("accelerator_type:")]
    memory_gib = round(has.get("memory", 0) / 2**30, 1)
    return {
        "host": host,
        "cpus": has.get("CPU", 0),
        "gpus": has.get("GPU", 0),
        "memory_gib": memory_gib,
        "kinds": kinds,
    }


def require_cluster() -> None:
    """Test the connection to RAY_ADDRESS: Ray itself would try for a minute and then end the process.

    Raises:
        ValueError: nothing listens there, or it is no address of a cluster.
    """
    given = address()
    if given is None or given == "auto":
        return
    if given.startswith(("http://", "https://")):
        raise ValueError(f"RAY_ADDRESS ({given}) is a dashboard's, for ray job submit; give host:port of the head node")
    host, _, port = given.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"RAY_ADDRESS ({given}) must be host:port of the head node, such as 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(
            f"RAY_ADDRESS ({given}) does not answer ({reason}): start that cluster, correct the address, or unset it "
            "to run on this machine"
        ) from None


def store_bytes(ready_bytes: float, path: str = "/dev/shm") -> int:
    """Object store of a Ray that is started here for a stream that keeps so many bytes ready: four times as much.

    Ray Data fills half of a store with blocks and the rest with what its tasks return. Never more than is free in
    `path`, where the store lies, nor less than `OBJECT_STORE_BYTES`.
    """
    free = shutil.disk_usage(path).free if os.path.isdir(path) else 0
    return int(max(min(4 * ready_bytes, SHARE_OF_SHARED_MEMORY * free), OBJECT_STORE_BYTES))


def connect(logical_cpus: float = 0, ready_bytes: float = 0) -> None:
    """Join the cluster at RAY_ADDRESS or start Ray here, unless this process is connected already.

    Args:
        logical_cpus: CPUs of a Ray that is started here, at least one per core.
        ready_bytes: what the stream of a run keeps ready in its object store (`sizes.ready_bytes`).

    Raises:
        ValueError: the cluster cannot be joined, or Ray cannot be started.
    """
    import ray

    if ray.is_initialized():
        return
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address() is None:  # "local", because Ray would otherwise look for one that someone else started here
        options |= {"address": "local", "num_cpus": max(int(logical_cpus), cores()), "include_dashboard": False}
        options |= {"object_store_memory": store_bytes(ready_bytes)}
        os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(options["num_cpus"]))
    try:
        ray.init(**options)
    except Exception as error:  # no room, no right to write, a name too long, a machine too busy to start in time
        what = f"join the cluster at RAY_ADDRESS ({address()})" if address() else "start Ray on this machine"
        raise ValueError(f"cannot {what}: {' '.join(str(error).split())}") from None


def quiet_data() -> None:
    """Ray Data's warnings and errors go to its log files alone: an error is told by a sentence of the command."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)


def _require_enough(config: RunConfig, have: dict[str, float], where: str) -> None:
    resources = config.resources
    workers = f"resources.workers ({resources.workers})"
    cpus = f"{workers} x cpus_per_worker ({resources.cpus_per_worker:g}) + data_cpus ({resources.data_cpus})"
    gpus = f"{workers} x gpus_per_worker ({resources.gpus_per_worker:g})"
    if config.captions.source == "live":
        captioners = f" + captioners ({resources.captioners}) x"
        cpus += f"{captioners} cpus_per_captioner ({resources.cpus_per_captioner:g}) + 1 to read for them"
        cpus += " + data_cpus once more for their stream"
        gpus += f"{captioners} gpus_per_captioner ({resources.gpus_per_captioner:g})"
    if config.evaluation:
        cpus += f" + evaluation.cpus ({config.evaluation.cpus})"
        gpus += f" + evaluation.gpus ({config.evaluation.gpus:g})"
    needs = [("CPU", cpus, cpus_needed(config), ""), ("GPU", gpus, gpus_needed(config), " (0 trains on CPUs)")]
    needs += [(name, f"resources.roles and {keys}", need, " or turn roles off") for name, keys, need in _roles(config)]
    faults = [
        f"{keys} need {need:g} {_unit(kind)}, {where} offers {have.get(kind, 0):g}: lower them{hint} or add machines"
        for kind, keys, need, hint in needs
        if have.get(kind, 0) < need
    ]
    if faults:
        raise Faults(faults)


def _roles(config: RunConfig) -> list[tuple[str, str, float]]:
    """Name, config keys and amount of each role that the run needs."""
    resources = config.resources
    if not resources.roles:
        return []
    captioners = resources.captioners if config.captions.source == "live" else 0
    return [
        ("train", f"workers ({resources.workers})", resources.workers),
        ("data", "the data stream", 1),
        ("caption", f"captioners ({captioners})", captioners),
    ]


def _room_for_some(config: RunConfig, have: dict[str, float]) -> str:
    counts, resources = config.worker_counts, config.resources
    left = {"CPU": config.cpus_beside_workers, "GPU": gpus_beside_workers(config)}
    room = min(
        (int((have.get(kind, 0) - left.get(kind, 0)) // take) for kind, take in resources.of_worker.items() if take),
        default=counts[-1],
    )
    text = (
        f"{counts[0]} to {counts[-1]} workers (of {', '.join(map(str, counts))}); the cluster at {address()} has room "
        f"for {max(room, 0)} beside the data stream and captioning"
    )
    if room < counts[0]:
        raise CheckWarning(f"{text}: the run waits for more nodes")
    return text


def _needed(config: RunConfig) -> str:
    resources = config.resources
    gpus = f" and {gpus_needed(config):g} GPUs" if resources.gpus_per_worker else ""
    return f"{resources.workers} workers and the data stream need {cpus_needed(config):g} CPUs{gpus}"


def gpus_here() -> int:
    """Number of CUDA GPUs of this machine: `gpus_per_worker` selects no other accelerator."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
