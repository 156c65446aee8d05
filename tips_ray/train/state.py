"""What a run is between two steps, and how it starts."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tips_ray.config import TrainConfig
from tips_ray.distributed import local_part
from tips_ray.models.networks import Heads, Student, Teacher
from tips_ray.models.text import TextEncoder
from tips_ray.models.vision import ImageEncoder
from tips_ray.objective import Centers
from tips_ray.train.initialization import copy_shards, draw, give_storage, require_values
from tips_ray.train.optim import new_optimizer


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
    """Those of these steps that the guard left out."""


def new_state(
    config: TrainConfig,
    teacher: Teacher | None = None,
    device: torch.device | str = "cpu",
    prepare: Callable[[Student, Teacher], None] | None = None,
) -> TrainState:
    """Random student from `config.seed`, its teacher, zero centres. All ranks call this and get parts of one state.

    Args:
        config: sizes, objective, optimizer.
        teacher: the trained one of `objective.teacher: frozen`; one on the meta device gets storage, full of NaN, and
            is filled by whoever loads it.
        device: where networks and centres live; on `meta` nothing gets a value.
        prepare: changes both networks in place before they have storage, on the meta device: `parallelize`. A given
            teacher may have its values already.

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
        _give_values(student, copied, config.seed, device)
        if is_unloaded:
            give_storage(teacher, device)
        require_values(*([student] if is_unloaded else [student, teacher]))
    centers = Centers(config.head.num_prototypes).to(device)
    return TrainState(student, teacher, centers, new_optimizer(student, config.optimizer))


def _student(config: TrainConfig) -> Student:
    image, text = ImageEncoder(config.image), TextEncoder(config.text)
    return Student(image, text, Heads(config.image.width, config.head), config.objective)


def _like(student: Student) -> Teacher:
    """The teacher that averages `student`."""
    image = copy.deepcopy(student.image) if student.config.teacher == "ema" else None
    return Teacher(image, copy.deepcopy(student.heads), student.config)


def _give_values(student: Student, copied: Teacher | None, seed: int, device: torch.device | str) -> None:
    give_storage(student, device)
    draw(student, seed)
    if copied:
        give_storage(copied, device)
        copy_shards(copied, student)


@torch.no_grad()
def update_teacher(teacher: Teacher, student: Student, momentum: float) -> None:
    """teacher <- momentum teacher + (1 - momentum) student, shard by shard, in one fused call; a frozen one stays."""
    if teacher.config.teacher == "frozen":
        return
    sources = dict(student.named_parameters())
    names, targets = zip(*teacher.named_parameters(), strict=True)
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
        [local_part(target) for target in targets], [local_part(sources[name]) for name in names], 1 - momentum
    )
