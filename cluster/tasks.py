"""Tasks of SkyPilot and dstack: Ray is started on rented nodes, rank 0 is the head and trains the run.

Both give each node its rank and the head's address; `nodes/node.sh` does the rest. Config and script are in the task.
"""

import hashlib
import math
import re
from pathlib import Path
from typing import Any

import yaml

from cluster.config import ClusterConfig, GroupConfig, PodConfig
from cluster.kuberay import CONFIG_FILE
from cluster.names import object_name
from tips_ray.config import RunConfig

NODE_SCRIPT = Path(__file__).parent / "nodes" / "node.sh"
MOST_CONFIG_BYTES = 90_000
"""The whole script must fit into one argument of a process, 128 KiB on Linux."""
STOPPED = 75
"""Exit code of a run that a signal has stopped after it was saved."""
AGENT_PORT = "52366"
"""Port of Ray's agent on nodes of SkyPilot, whose own Ray has the usual one."""
SKYPILOT_START = """\
export TIPS_RANK=$SKYPILOT_NODE_RANK TIPS_NODES=$SKYPILOT_NUM_NODES
TIPS_HEAD=$(head -n 1 <<<"$SKYPILOT_NODE_IPS")
export TIPS_HEAD
"""
SHARED_MEMORY = 0.35
"""Part of a node's memory that is offered as shared memory; Ray's object store takes 0.3 of it."""
GPU = re.compile(r"(?:NVIDIA-|Tesla-)?((?:RTX-)?[A-Z]{1,3}\d+[A-Za-z]?)(?:-.*)?")
GPU_MEMORY = re.compile(r"-(\d+)GB\b")
MEMORY_IN_NAME = {"A100-80": "A100-80GB", "V100-32": "V100-32GB"}
"""SkyPilot's names of GPUs that come with less memory too."""


def skypilot_task(run: RunConfig, cluster: ClusterConfig) -> dict[str, Any]:
    """A managed job of SkyPilot: equal nodes, the first one also the head.

    Raises:
        ValueError: the run's config is too long, or the GPUs have no kind that SkyPilot knows.
    """
    (group,) = cluster.groups
    own = _node(group, group.cpus) | {"TIPS_START_SECONDS": str(cluster.start_seconds), "TIPS_AGENT_PORT": AGENT_PORT}
    for_head = f'[ "$SKYPILOT_NODE_RANK" = 0 ] && export TIPS_CPUS={group.cpus - cluster.head.cpus}\n'
    task: dict[str, Any] = {"name": object_name(run.name, run.storage), "num_nodes": group.nodes}
    task |= {"resources": _skypilot_resources(group, cluster), "envs": {**_environment(cluster), **own}}
    if secrets := secret_names(cluster):
        task["secrets"] = dict.fromkeys(secrets)
    return {**task, "run": SKYPILOT_START + for_head + _script(run)}


def _skypilot_resources(group: GroupConfig, cluster: ClusterConfig) -> dict[str, Any]:
    made: dict[str, Any] = {"image_id": f"docker:{cluster.image}"}
    made |= {"cpus": f"{group.cpus}+", "memory": f"{group.memory_gib}+", "use_spot": group.spot}
    if group.gpus:
        name, gib = gpu_name(group)
        made["accelerators"] = f"{MEMORY_IN_NAME.get(f'{name}-{gib}', name)}:{group.gpus}"
    made["job_recovery"] = {"max_restarts_on_errors": cluster.retries, "recover_on_exit_codes": [STOPPED]}
    return made


def dstack_task(run: RunConfig, cluster: ClusterConfig) -> dict[str, Any]:
    """A task of dstack: the head as a group of its own, then the groups.

    Raises:
        ValueError: the run's config is too long or dstack would replace a part of it.
    """
    script = _script(run)
    if "${{" in script:
        raise ValueError("the run's config holds ${{, which dstack would replace; write it without")
    environment = _environment(cluster) | {"TIPS_START_SECONDS": str(cluster.start_seconds)}
    secrets = {name: f"${{{{ secrets.{name} }}}}" for name in secret_names(cluster)}
    head = {"name": "head", "nodes": 1, "resources": _dstack_resources(cluster.head)}
    groups = [(head, _node(cluster.head, 0) | {"TIPS_GPUS": "0"})]
    for group in cluster.groups:
        made = {"name": group.name, "nodes": group.nodes, "resources": _dstack_resources(group)}
        groups.append((made, _node(group, group.cpus)))
    task: dict[str, Any] = {"type": "task", "name": dstack_name(run), "image": cluster.image, "shell": "bash"}
    task |= {"env": {**environment, **secrets}, **_dstack_policies(cluster)}
    return {**task, "groups": [{**made, "commands": [_dstack_start(own) + script]} for made, own in groups]}


def _dstack_policies(cluster: ClusterConfig) -> dict[str, Any]:
    """What dstack does at the start, after interruptions and at the end. It would repeat errors for ever."""
    made: dict[str, Any] = {"spot_policy": "spot" if cluster.groups[0].spot else "on-demand"}
    if cluster.retries:
        made["retry"] = {"on_events": ["no-capacity", "interruption"], "duration": f"{cluster.start_seconds}s"}
    if cluster.deadline_seconds:
        made["max_duration"] = f"{cluster.deadline_seconds}s"
    return made | {
        "stop_duration": f"{cluster.grace_seconds}s",
        "startup_order": "any",
        "stop_criteria": "master-done",
    }


def dstack_name(run: RunConfig) -> str:
    """dstack allows 41 characters."""
    name = object_name(run.name, run.storage)
    return f"{name[:-9][:32].strip('-')}{name[-9:]}"


def secret_names(cluster: ClusterConfig) -> tuple[str, ...]:
    """Environment variables whose values the user gives to SkyPilot or dstack."""
    token = ("RAY_AUTH_TOKEN",) if cluster.token_auth else ()
    return (*token, *cluster.secret_names)


def _environment(cluster: ClusterConfig) -> dict[str, str]:
    seconds = str(cluster.drain_seconds)
    own = {"RAY_AUTH_MODE": "token" if cluster.token_auth else "disabled"}
    return {**cluster.env, **own, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": seconds}


def _node(node: PodConfig, cpus: int) -> dict[str, str]:
    """What `node.sh` is told about a node."""
    told = {"TIPS_CPUS": str(cpus)}
    if node.labels:
        told["TIPS_LABELS"] = ",".join(f"{key}={value}" for key, value in node.labels.items())
    if isinstance(node, GroupConfig):
        told["TIPS_GPUS"] = str(node.gpus)
        if node.roles:
            told["TIPS_RESOURCES"] = "{" + ", ".join(f'"{role}": {count}' for role, count in node.roles.items()) + "}"
    return told


def _dstack_start(own: dict[str, str]) -> str:
    exports = " ".join(f"{key}='{value}'" for key, value in own.items())
    given = "TIPS_RANK=$DSTACK_NODE_RANK TIPS_NODES=$DSTACK_NODES_NUM TIPS_HEAD=$DSTACK_MASTER_NODE_IP"
    return f"export {given}\nexport {exports}\n"


def _script(run: RunConfig) -> str:
    """Bash that writes the run's config and `node.sh` into a folder and becomes the node.

    Raises:
        ValueError: the config is too long.
    """
    config = yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    if len(config.encode()) > MOST_CONFIG_BYTES:
        raise ValueError(
            f"the run's config has {len(config.encode()):,} bytes, a task holds {MOST_CONFIG_BYTES:,}: name the "
            "sources by patterns"
        )
    end = "END_" + hashlib.sha256(config.encode()).hexdigest()[:12]
    return (
        f"cd \"$(mktemp -d)\" || exit\ncat >{CONFIG_FILE} <<'{end}'\n{config}{end}\n"
        f"cat >node.sh <<'{end}'\n{NODE_SCRIPT.read_text()}{end}\n"
        f"exec bash node.sh tips-ray pretrain {CONFIG_FILE} --supervise\n"
    )


def gpu_name(group: GroupConfig) -> tuple[str, int | None]:
    """Name and memory in GB of a GPU from NVIDIA's label: `NVIDIA-H100-80GB-HBM3` is an H100 with 80.

    Raises:
        ValueError: the label is of another form.
    """
    if not (found := GPU.fullmatch(group.gpu_kind or "")):
        raise ValueError(
            f"groups ({group.name}): gpu_kind ({group.gpu_kind}) is no name of a GPU; write it as H100 or "
            "NVIDIA-H100-80GB-HBM3"
        )
    memory = None if found[1].startswith("GH") else GPU_MEMORY.search(found[0])  # GH200-480GB tells the CPU's
    return found[1].replace("-", ""), int(memory[1]) if memory else None


def _dstack_resources(node: PodConfig) -> dict[str, Any]:
    made: dict[str, Any] = {"cpu": f"{node.cpus}..", "memory": f"{node.memory_gib}GB.."}
    made["shm_size"] = f"{math.ceil(SHARED_MEMORY * node.memory_gib)}GB"
    gpus = node.gpus if isinstance(node, GroupConfig) else 0
    gpu: dict[str, Any] = {"count": gpus}
    if isinstance(node, GroupConfig) and gpus and node.gpu_kind:
        gpu["name"], gib = gpu_name(node)
        gpu |= {"memory": f"{gib}GB"} if gib else {}
    return {**made, "gpu": gpu}
