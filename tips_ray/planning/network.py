"""Time of a step's collectives by latency and bandwidth, inside a node and between nodes, and what of it is hidden.

A ring: the ranks stand in a row, those of a node beside each other. Every rank receives all parts but its own, so a
collective of S bytes over n ranks takes S (n - 1) / n over its slowest edge, and one latency per hop. The rings of all
GPUs of a node share its network cards.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tips_ray.planning.live_storages import Message

HIDING = {"student": "student", "embed": "embed", "teacher": "teacher", "backward": "backward"}
"""Phase of a step whose computing hides its messages; all others wait."""


class Network(NamedTuple):
    """Links of a cluster. (D): latencies and the share of a link that NCCL fills, as orders of magnitude."""

    ranks_per_node: int
    link_bytes_per_second: float
    """Of one rank inside its node, one way."""
    node_bytes_per_second: float
    """Of a node to others, one way, all cards together."""
    link_latency: float = 1e-6
    """Seconds of a hop inside a node."""
    node_latency: float = 5e-6
    """Seconds of a hop between nodes."""
    filled: float = 0.8
    """Share of a link's rate that a large message reaches."""


def collective_seconds(kind: str, size: float, ranks: int, network: Network, is_spread: bool = False) -> float:
    """Time of one collective; an all-reduce is a reduce-scatter and an all-gather.

    Args:
        kind: `all-gather`, `reduce-scatter` or `all-reduce`.
        size: bytes of all ranks' parts together.
        ranks: in the group, neighbours of each other.
        network: their links.
        is_spread: every rank of the group is on another node, and the other ranks of a node do the same beside it.
    """
    if ranks < 2:
        return 0.0
    per_node = 1 if is_spread else min(network.ranks_per_node, ranks)
    nodes = -(-ranks // per_node)
    beside = network.ranks_per_node if is_spread else 1
    rate = network.node_bytes_per_second / beside if nodes > 1 else network.link_bytes_per_second
    if per_node > 1:
        rate = min(rate, network.link_bytes_per_second)
    latency = (nodes - 1) * network.node_latency + (ranks - nodes) * network.link_latency
    rounds = 2 if kind == "all-reduce" else 1
    return rounds * (size * (ranks - 1) / ranks / (network.filled * rate) + latency)


def network_seconds(messages: Iterable[Message], network: Network, replicas: int = 1) -> dict[str, float]:
    """Time of all collectives of a step, by phase."""
    found: dict[str, float] = {}
    for message in messages:
        is_spread = replicas > 1 and message.kind == "all-reduce" and message.ranks == replicas
        seconds = collective_seconds(message.kind, message.bytes, message.ranks, network, is_spread)
        found[message.phase] = found.get(message.phase, 0.0) + message.times * seconds
    return found


def exposed_seconds(messages: Mapping[str, float], computing: Mapping[str, float], share_hidden: float = 0.9) -> float:
    """What a step waits for its network: per phase, the time that `share_hidden` of its computing does not hide.

    The first gather of a phase and the last scatter have nothing beside them, hence not all computing hides.
    """
    waits = 0.0
    for phase, seconds in messages.items():
        waits += max(seconds - share_hidden * computing.get(HIDING.get(phase, ""), 0.0), 0.0)
    return waits
