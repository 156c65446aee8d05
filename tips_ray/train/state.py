"""The state of a run between two steps: its initial values, and the update of the teacher."""

import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from tips_ray.config import TrainConfig
from tips_ray.distributed import local_part, sum_over_ranks
from tips_ray.models.layers import initialize
from tips_ray.models.networks import Heads, Student, Teacher
from tips_ray.models.text import TextEncoder
from tips_ray.models.vision import ImageEncoder
from tips_ray.objective import Centers
from tips_ray.train.optim import fill_averages, new_optimizer

MOVED_AT_ONCE = 16
"""Parameters of the teacher whose new values are held at a time."""


@dataclass
class TrainState:
    """Exactly what a checkpoint holds; anything kept elsewhere is lost at a restart."""

    student: Student
    teacher: Teacher
    centers: Centers
    optimizer: torch.optim.Optimizer
    step: int = 0
    """Optimizer steps completed."""
    bad_rows: int = 0
    """Invalid rows in these steps over all ranks, as of the last logged one; every checkpoint is a logged step."""
    skipped_steps: int = 0
    """Number of these steps that the guard skipped."""


def new_state(
    config: TrainConfig,
    teacher: Teacher | None = None,
    device: torch.device | str = "cpu",
    prepare: Callable[[Student, Teacher], None] | None = None,
    is_drawn: bool = True,
) -> TrainState:
    """Random student from `config.seed`, its teacher, zero centres. All ranks call this and get parts of one state.

    Args:
        config: sizes, objective, optimizer.
        teacher: the trained one of `objective.teacher: frozen`; one on the meta device gets storage, full of NaN, and
            must be filled by the caller.
        device: where networks and centres live; on `meta` nothing gets a value.
        prepare: changes both networks in place before they have storage, on the meta device: `parallelize`. A given
            teacher may have its values already.
        is_drawn: False leaves all of it full of NaN, for a checkpoint that follows: `draw_values` takes 11 s for g.

    Raises:
        ValueError: `objective.teacher` is `frozen` and no teacher was given, or one was given without need.
    """
    if (teacher is not None) != (config.objective.teacher == "frozen"):
        given = "none was given" if teacher is None else "one was given"
        raise ValueError(f"objective.teacher ({config.objective.teacher}): only 'frozen' takes a teacher, and {given}")
    with torch.device("meta"):
        student = _student(config)
    copied = _like(student) if teacher is None else None
    is_unloaded = teacher is not None and any(weight.is_meta for weight in teacher.parameters())
    teacher = copied or (teacher if is_unloaded or teacher is None else teacher.to(device))
    assert teacher
    teacher.config = config.objective  # a given one was trained under another
    if prepare:
        prepare(student, teacher)
    if torch.device(device).type != "meta":
        for network in [student, teacher] if copied or is_unloaded else [student]:
            give_storage(network, device)
    centers = Centers(config.head.num_prototypes).to(device)
    state = TrainState(student, teacher, centers, new_optimizer(student, config.optimizer))
    if is_drawn and torch.device(device).type != "meta":
        draw_values(state, config.seed)
        if not copied and not is_unloaded:
            require_values(teacher)
    return state


def _student(config: TrainConfig) -> Student:
    image, text = ImageEncoder(config.image), TextEncoder(config.text)
    return Student(image, text, Heads(config.image.width, config.head), config.objective)


def _like(student: Student) -> Teacher:
    """The teacher that averages `student`."""
    image = copy.deepcopy(student.image) if student.config.teacher == "ema" else None
    return Teacher(image, copy.deepcopy(student.heads), student.config)


def draw_values(state: TrainState, seed: int) -> None:
    """Fill the student at random, and a teacher that averages it with the same; all ranks call this."""
    draw(state.student, seed)
    networks: list[nn.Module] = [state.student]
    if state.teacher.config.teacher != "frozen":
        copy_shards(state.teacher, state.student)
        networks.append(state.teacher)
    require_values(*networks)


@torch.no_grad()
def update_teacher(teacher: Teacher, student: Student, momentum: float, halted: Tensor) -> None:
    """teacher <- momentum teacher + (1 - momentum) student, shard by shard; a frozen one stays.

    Args:
        momentum: share of the old teacher that stays.
        halted: where it is 1, on the device, the teacher stays too, whatever the student holds.
    """
    if teacher.config.teacher == "frozen":
        return
    sources, is_halted = dict(student.named_parameters()), halted > 0
    pairs = [(local_part(target), local_part(sources[name])) for name, target in teacher.named_parameters()]
    for start in range(0, len(pairs), MOVED_AT_ONCE):  # the new values need memory of their own
        targets, news = zip(*pairs[start : start + MOVED_AT_ONCE], strict=True)
        moved = torch._foreach_lerp(targets, news, 1 - momentum)  # pyright: ignore[reportPrivateImportUsage]
        for target, new in zip(targets, moved, strict=True):
            torch.where(is_halted, target, new, out=target)


@torch.no_grad()
def give_storage(network: nn.Module, device: torch.device | str) -> None:
    """Storage for every parameter and buffer on this rank, full of NaN."""
    network.to_empty(device=device)
    for tensor in chain(network.parameters(), network.buffers()):
        local_part(tensor).fill_(torch.nan)


def with_storage(networks: TrainState, config: TrainConfig, device: torch.device) -> TrainState:
    """The state of networks on `meta`, given storage on `device`, with the optimizer's averages as after a step.

    Inside a fake mode its tensors are fake: sizes without numbers.
    """
    for network in (networks.student, networks.teacher):
        give_storage(network, device)
    centers = Centers(config.head.num_prototypes).to(device)
    state = TrainState(networks.student, networks.teacher, centers, new_optimizer(networks.student, config.optimizer))
    fill_averages(state.optimizer)
    return state


def draw(network: nn.Module, seed: int) -> None:
    """Fill every parameter, one module after the other, from a generator keyed by (seed, name of the module).

    Each rank draws the whole parameters of one module, on the CPU, and keeps its shards of them: no rank ever holds the
    network, and values depend neither on the number of ranks nor on what else is drawn.
    """
    with torch.random.fork_rng(devices=()), torch.no_grad():
        for name, module in network.named_modules():
            with _whole_parameters(module):
                torch.default_generator.manual_seed(_key(seed, name))
                initialize(module)


@torch.no_grad()
def copy_shards(target: nn.Module, source: nn.Module) -> None:
    """Give the parameters of `target` the values that `source`, sharded alike, has under the same names."""
    values = dict(source.named_parameters())
    for name, parameter in target.named_parameters():
        local_part(parameter).copy_(local_part(values[name]))


def require_values(*networks: nn.Module) -> None:
    """All ranks call this, and all of them raise.

    Raises:
        RuntimeError: some parameters or buffers have NaN; they are named.
    """
    named = [entry for net in networks for entry in chain(net.named_parameters(), net.named_buffers())]
    nans = sum_over_ranks(torch.stack([local_part(tensor).isnan().sum() for _, tensor in named])).tolist()
    missing = [name for (name, _), count in zip(named, nans, strict=True) if count]
    if missing:
        raise RuntimeError(f"{', '.join(missing)}: no initial value; `initialize` must know the module's kind")


@contextmanager
def _whole_parameters(module: nn.Module) -> Iterator[None]:
    """Inside, the module's own parameters are whole and full of NaN; afterwards its shards hold what was written."""
    shards = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
    for name, shard in shards.items():
        module._parameters[name] = nn.Parameter(torch.full(shard.shape, torch.nan, dtype=shard.dtype))
    yield
    for name, shard in shards.items():
        whole, module._parameters[name] = module._parameters[name], shard
        assert whole is not None
        local_part(shard).copy_(_part(whole, shard))


def _part(whole: nn.Parameter, shard: nn.Parameter) -> Tensor:
    if not isinstance(shard, DTensor):
        return whole
    return distribute_tensor(whole.detach(), shard.device_mesh, shard.placements, src_data_rank=None).to_local()


def _key(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8])
