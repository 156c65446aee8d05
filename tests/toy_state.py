"""Training states of the toy networks, and whether two are the same."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from toy import toy_batch, toy_config

from tips_ray.distributed import world_size
from tips_ray.train.checkpointing import checkpoint_parts
from tips_ray.train.parallelize import shard, worker_mesh
from tips_ray.train.state import TrainState, new_state
from tips_ray.train.step import train_step


def toy_state(**values) -> TrainState:
    """Random, sharded where there are several ranks, four of which hold two copies; `values` as for `toy_config`."""

    def prepare(student, teacher):
        shard(student, teacher, worker_mesh("cpu", replicas=2 if world_size() == 4 else 1))

    return new_state(toy_config(**values), prepare=prepare if world_size() > 1 else None)


def trained(state: TrainState, steps: int, **values) -> TrainState:
    """`state` after some more steps."""
    for _ in range(steps):
        train_step(state, [toy_batch(4, seed=state.step).to("cpu", torch.float32)], toy_config(**values))
    return state


def numbers_of(state: TrainState) -> dict[str, Tensor]:
    """Every number of a state, optimizer included."""
    networks = {"student": state.student, "teacher": state.teacher, "centers": state.centers}
    found = {f"{name}.{key}": value for name, net in networks.items() for key, value in net.state_dict().items()}
    for name, parameter in state.student.named_parameters():
        found |= {f"optimizer.{name}.{key}": value for key, value in state.optimizer.state[parameter].items()}
        group = next(group for group in state.optimizer.param_groups if any(parameter is p for p in group["params"]))
        rates = ("lr", "lr_factor", "weight_decay", "decay_factor")
        found |= {f"optimizer.{name}.{rate}": torch.tensor(group[rate]) for rate in rates}
    return {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in found.items()}


def assert_equal(state: TrainState, other: TrainState) -> None:
    """Every bit is the same; averages of parameters that had no gradient yet are zeros, as in a checkpoint."""
    for each in (state, other):
        checkpoint_parts(each)
    torch.testing.assert_close(numbers_of(state), numbers_of(other), rtol=0, atol=0)
    counts = [(each.step, each.bad_rows, each.skipped_steps) for each in (state, other)]
    assert counts[0] == counts[1]
