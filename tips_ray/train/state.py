"""What a run is between two steps, and how it starts."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tips_ray.config import TrainConfig
from tips_ray.models.networks import Heads, Student, Teacher
from tips_ray.models.text import TextEncoder
from tips_ray.models.vision import ImageEncoder
from tips_ray.objective import Centers
from tips_ray.train.optim import adamw


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


def new_state(
    config: TrainConfig,
    teacher: Teacher | None = None,
    device: torch.device | str = "cpu",
    prepare: Callable[[Student, Teacher], None] | None = None,
) -> TrainState:
    """Random student from `config.seed`, its teacher, zero centres.

    Args:
        config: sizes, objective, optimizer.
        teacher: the trained one of `objective.teacher: frozen`; one on the meta device gets storage and no values.
        device: where networks and centres live.
        prepare: changes both networks in place before the optimizer takes their parameters: `parallelize`.

    Raises:
        ValueError: `objective.teacher` is `frozen` and no teacher was given, or one was given without need.
    """
    if (teacher is not None) != (config.objective.teacher == "frozen"):
        given = "none was given" if teacher is None else "one was given"
        raise ValueError(f"objective.teacher ({config.objective.teacher}): only 'frozen' takes a teacher, and {given}")
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        image, text = ImageEncoder(config.image), TextEncoder(config.text)
        heads = Heads(config.image.width, config.head)
    student = Student(image, text, heads, config.objective).to(device)
    is_unloaded = teacher is not None and any(weight.is_meta for weight in teacher.parameters())
    teacher = teacher or _copied_teacher(student)
    teacher = teacher if is_unloaded else teacher.to(device)
    teacher.config = config.objective  # a given one was trained under another
    if prepare:
        prepare(student, teacher)
    if is_unloaded:
        teacher.to_empty(device=device)  # once sharded: no rank ever holds the whole of it
    centers = Centers(config.head.num_prototypes).to(device)
    return TrainState(student, teacher, centers, adamw(student, config.optimizer))


def _copied_teacher(student: Student) -> Teacher:
    image = copy.deepcopy(student.image) if student.config.teacher == "ema" else None
    return Teacher(image, copy.deepcopy(student.heads), student.config)


@torch.no_grad()
def update_teacher(teacher: Teacher, student: Student, momentum: float) -> None:
    """teacher <- momentum teacher + (1 - momentum) student, shard by shard, in one fused call; a frozen one stays."""
    if teacher.config.teacher == "frozen":
        return
    sources = dict(student.named_parameters())
    names, targets = zip(*teacher.named_parameters(), strict=True)
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
        _shards(targets), _shards(sources[name] for name in names), 1 - momentum
    )


def _shards(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """This rank's part of each parameter; the whole of it where nothing is sharded."""
    return [getattr(parameter, "_local_tensor", parameter) for parameter in parameters]
