"""Ray's actor that shares out nodes between runs and data streams: ours is in its place, on the head. Without torch.

Every process that asks it for nodes imports this module, the one that hands out rows at each start of the workers too.
"""

from typing import Any

import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    HEAD_NODE_RESOURCE_LABEL,
    _AutoscalingCoordinatorActor,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

RENEWED_SECONDS = 5
"""How often a run asks again for its workers; Ray Data asks again every 10 s."""
FORGOTTEN_SECONDS = 25
"""After this long without being asked again, nodes are free for others; Ray has three minutes."""


class Coordinator(_AutoscalingCoordinatorActor):
    """Shares out the nodes; forgets soon what a driver has asked for that was killed.

    It would be missing for the driver that goes on with the run.
    """

    def __init__(self, tick_seconds: float, **given: Any) -> None:
        self.TICK_INTERVAL_S = tick_seconds
        super().__init__(**given)

    def request_resources(self, *args: Any, expire_after_s: float, **kwargs: Any) -> None:
        super().request_resources(*args, expire_after_s=min(expire_after_s, FORGOTTEN_SECONDS), **kwargs)


def start_coordinator(tick_seconds: float) -> None:
    """On the head, before anybody makes it elsewhere and with a slow tick.

    Ray pins it to the node of whoever asks first, and finds it by its name; without it no group changes any more.
    """
    head = next(node["NodeID"] for node in ray.nodes() if HEAD_NODE_RESOURCE_LABEL in node["Resources"])
    name = "AutoscalingCoordinator"
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Coordinator)
    place = NodeAffinitySchedulingStrategy(head, soft=False)
    actor.options(name=name, namespace=name, get_if_exists=True, lifetime="detached", scheduling_strategy=place).remote(
        tick_seconds
    )
