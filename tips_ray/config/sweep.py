"""Config of a sweep: a run, the space of keys that its settings differ in, scores, and how settings are chosen."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from tips_ray.config.evaluation import SuiteConfig
from tips_ray.config.load import config_tree, override, override_values
from tips_ray.config.run import RunConfig
from tips_ray.config.schema import Schema
from tips_ray.config.score import ScoreConfig
from tips_ray.config.space import DomainConfig

OWN_KEYS = {
    "name": "the sweep names its runs",
    "storage": "all runs of a sweep lie in its folder",
    "seed": "set replicas: every setting is trained with as many seeds, from run.seed on",
    "schedule.total_steps": "all settings train equally long; set run.schedule.total_steps",
    "resources.*": "it changes how fast a run goes, not its numbers; set it below run",
    "captions.source": "all settings train on the same captions; set it below run",
    "captions.store": "all settings train on the same captions; set it below run",
    "data.*": "all settings train on the same data; set it below run",
    "tracking.*": "all runs of a sweep are tracked in one place; set it below run",
    "micro_batch_images": "it changes how fast a run goes, not its numbers; set it below run",
    "keep_*": "it changes no numbers; set it below run",
    "log_*": "it changes no numbers; set it below run",
    "checkpoint_*": "it changes no numbers; set it below run",
    "evaluat*": "it changes no numbers; set it below run",
}
"""Keys of a run that no space may hold, and why."""
CHANGEABLE = {
    **{f"objective.{name}": name for name in ("alpha", "beta", "ema_momentum", "ema_momentum_final")},
    **{f"objective.{part}temperature": f"{part}temperature" for part in ("student_", "teacher_", "masked_student_")},
    "objective.masked_teacher_temperature": "masked_teacher_temperature",
    "schedule.peak_lr": "peak_lr",
    "optimizer.weight_decay": "weight_decay",
    "optimizer.max_grad_norm": "max_grad_norm",
}
"""Keys that may change during a run, and their names in `schedule.changes`."""
NAME = "[A-Za-z0-9][A-Za-z0-9._-]*"
WEIGHTS = ("objective.alpha", "objective.beta", "objective.web_weight", "objective.synthetic_weight")


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> "SweepConfig":
    """The config of a sweep; where `run` is the path of a run's config, that is read.

    Raises:
        ValueError: as `load_config`, of either file.
    """
    tree, values = config_tree(path), override_values(overrides)
    run = values.pop("run", tree.get("run"))
    if isinstance(run, str):
        beside = path.parent / run
        run = config_tree(beside if beside.exists() and not Path(run).exists() else Path(run))
    given = {key: value for key, value in run.items() if key != "name"} if isinstance(run, dict) else run
    values, own = _split_overrides(tree, values)
    return override(SweepConfig, {**tree, "run": given, **own}, values)


def _split_overrides(tree: dict[str, Any], values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Overrides of other keys, and `space` and `listed` with theirs: names and keys in these have dots.

    Such as `space.objective.alpha.prior=2` and `listed.small.objective.alpha=0.3`.
    """
    own = {section: dict(tree[section]) for section in ("space", "listed") if isinstance(tree.get(section), dict)}
    left = {}
    for dotted_key, value in values.items():
        section, _, rest = dotted_key.partition(".")
        name = next((name for name in own.get(section, ()) if rest == name or rest.startswith(f"{name}.")), None)
        if name is None:
            left[dotted_key] = value
        elif rest == name:
            own[section][name] = value
        elif isinstance(own[section][name], dict):
            own[section][name] = {**own[section][name], rest.removeprefix(f"{name}."): value}
    return left, own


def _choices(listed: dict[str, dict[str, Any]]) -> dict[str, list]:
    """The values of each key in a list of settings, each once."""
    first = next(iter(listed))
    for name, values in listed.items():
        if lacking := listed[first].keys() ^ values.keys():
            key = min(map(str, lacking))
            raise ValueError(f"listed.{name} and listed.{first} must have the same keys; one lacks {key}")
    return {key: _in_order([one[key] for one in listed.values()]) for key in listed[first]}


def _in_order(values: list) -> list:
    """Each once; numbers in rising order."""
    found = [value for place, value in enumerate(values) if value not in values[:place]]
    is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in found)
    return sorted(found) if is_number else found


def _choice(domain: Any) -> Any:
    return domain.get("choice") if isinstance(domain, dict) else None


class BudgetConfig(Schema):
    """What a sweep may use; no trial starts or goes on beyond it."""

    trial_hours: PositiveFloat | None = None
    """Hours of all trials together, those that run side by side counted each."""
    gpu_hours: PositiveFloat | None = None
    """The same, times the GPUs of a trial."""


class SweepConfig(Schema):
    """Config of `tips-ray sweep`."""

    name: Annotated[str, Field(pattern=f"^{NAME}$")]
    """Folder of the sweep below `storage`; the same name goes on with the sweep, or extends it."""
    storage: str = "out/sweeps"
    """Folder or s3:// prefix that holds sweeps."""
    run: dict[str, Any]
    """The run that all settings start from, without name; a file of `tips-ray pretrain` may be named instead."""
    scenes: PositiveInt | None = None
    """Number of rendered scenes to train on, made in the sweep's folder; None: `run.data.sources` says what."""
    space: dict[str, DomainConfig] = {}
    """Dotted keys of the run -> the values that they may take."""
    listed: dict[Annotated[str, Field(pattern=f"^{NAME}$")], dict[str, Any]] = {}
    """Name -> values of a setting, instead of `space`; all have the same keys."""
    settings: PositiveInt | None = None
    """Number of settings; None with a grid or a list: all of it."""
    replicas: PositiveInt = 1
    """Seeds that every setting is trained with, from `run.seed` on; a setting's score is the mean over them."""
    search: Literal["tpe", "random", "grid", "listed"] = "tpe"
    """`tpe`: Optuna's tree-structured Parzen estimator, after ten settings drawn at random. `listed`: those that
    `listed` names, in its order."""
    scheduler: Literal["promotion", "asha", "pbt", "none"] = "promotion"
    """`promotion`: a setting pauses at a rung and goes on when it is among the best of it. `asha`: it goes on at once
    or never. `none`: every setting trains to the end. `pbt`: at each rung a child of the best takes the place of the
    worst, with the best one's weights and history and changed values."""
    rungs: tuple[PositiveInt, ...] = ()
    """Optimizer steps, in rising order, at which settings are scored and compared; the end of the run is the last."""
    until: PositiveInt | None = None
    """The rung beyond which no setting is trained; None: the best are trained to the end."""
    keep: Annotated[int, Field(ge=2)] = 3
    """One in so many settings goes on from a rung to the next."""
    scores: Annotated[tuple[ScoreConfig, ...], Field(min_length=1, max_length=2)]
    """What settings are compared by. With two, those that no other beats in both come first, then those that only these
    beat, and so on; among equals the first score decides."""
    suite: SuiteConfig | None = None
    """Tasks for scores that name one; they run at every rung."""
    at_a_time: PositiveInt | None = None
    """Most trials that train at once; None: as many as fit."""
    budget: BudgetConfig = BudgetConfig()
    seed: NonNegativeInt = 0
    """Of the search; the same seed proposes the same settings."""

    @model_validator(mode="before")
    @classmethod
    def _space_of_list(cls, tree: Any) -> Any:
        """The space of `listed`: the values that occur."""
        listed = tree.get("listed") if isinstance(tree, dict) else None
        if not listed or not isinstance(listed, dict) or not all(isinstance(one, dict) for one in listed.values()):
            return tree
        if tree.get("search", "listed") != "listed":
            raise ValueError(f"search ({tree['search']}) and listed: leave one of them out")
        choices, given = _choices(listed), tree.get("space") or {}
        if given and not (isinstance(given, dict) and choices == {key: _choice(one) for key, one in given.items()}):
            raise ValueError("space and listed: leave one of them out")
        return {**tree, "search": "listed", "space": {key: {"choice": values} for key, values in choices.items()}}

    @model_validator(mode="after")
    def _has_settings(self) -> Self:
        if not self.space:
            raise ValueError("space: it needs at least one key, or listed at least one setting with a key")
        if self.search == "listed" and not self.listed:
            raise ValueError("search (listed) needs listed: names and values of settings")
        names = list(self.listed)
        for place, name in enumerate(names):
            if equal := next((other for other in names[:place] if self.listed[other] == self.listed[name]), ""):
                raise ValueError(f"listed.{equal} and listed.{name} have the same values")
        return self

    @model_validator(mode="after")
    def _space_is_free(self) -> Self:
        for key in self.space:
            reason = next((why for own, why in OWN_KEYS.items() if fnmatchcase(key, own)), None)
            if reason:
                raise ValueError(f"{'listed: ' if self.listed else 'space.'}{key}: {reason}")
        return self

    @model_validator(mode="after")
    def _data_are_one(self) -> Self:
        data = self.run.get("data")
        if self.scenes and isinstance(data, dict) and "sources" in data:
            raise ValueError(f"scenes ({self.scenes}) and run.data.sources: leave one of them out")
        return self

    @model_validator(mode="after")
    def _conditions_are_known(self) -> Self:
        for key, domain in self.space.items():
            if domain.when and (domain.when.key == key or domain.when.key not in self.space):
                others = ", ".join(other for other in self.space if other != key) or "none"
                raise ValueError(f"space.{key}.when.key ({domain.when.key}) must be another key of the space: {others}")
            if domain.when and (fault := domain.when.fault(self.space[domain.when.key])):
                raise ValueError(f"space.{key}.when: {fault}")
        waiting = [key for key in self.space if self.space[key].when]
        while waiting:
            free = [key for key in waiting if self._parent(key) not in waiting]
            if not free:
                raise ValueError(f"space: the conditions of {', '.join(waiting)} wait for each other")
            waiting = [key for key in waiting if key not in free]
        return self

    def _parent(self, key: str) -> str:
        when = self.space[key].when
        return when.key if when else ""

    @model_validator(mode="after")
    def _search_fits(self) -> Self:
        if self.search == "grid":
            for key, domain in self.space.items():
                try:
                    domain.grid()
                except ValueError as error:
                    raise ValueError(f"space.{key}: {error}") from None
        elif self.search != "listed" and self.settings is None:
            raise ValueError(f"settings: search ({self.search}) needs the number of settings")
        return self

    @model_validator(mode="after")
    def _scores_can_compare(self) -> Self:
        varied = [key for key in WEIGHTS if key in self.space]
        for number, score in enumerate(self.scores):
            if score.metric == "loss/total" and varied:
                raise ValueError(
                    f"scores.{number}.metric (loss/total) is the sum of losses weighted by {', '.join(varied)}, which "
                    "the space varies: settings cannot be compared by it; give one of the losses, or a task"
                )
            if score.task and (self.suite is None or score.task not in self.suite.tasks):
                known = ", ".join(self.suite.tasks) if self.suite else "none, since there is no suite"
                raise ValueError(f"scores.{number}.task ({score.task}) must be a task of the suite: {known}")
        return self

    @model_validator(mode="after")
    def _rungs_are_reached(self) -> Self:
        evaluation = self.run.get("evaluation")
        if isinstance(evaluation, dict) and evaluation.get("patience"):
            raise ValueError("run.evaluation.patience ends a run by itself, and the sweep decides here: leave it out")
        return self

    @model_validator(mode="after")
    def _population_can_change(self) -> Self:
        if self.scheduler != "pbt":
            return self
        if self.listed:
            raise ValueError("scheduler (pbt) changes values during a run and needs a space instead of listed")
        for key, domain in self.space.items():
            if key not in CHANGEABLE or domain.choice is not None or domain.when:
                raise ValueError(
                    f"space.{key}: scheduler (pbt) changes values during a run, which needs a range without `when` of "
                    f"one of {', '.join(CHANGEABLE)}"
                )
        if not self.rungs or self.replicas > 1 or (self.settings or 0) < 2:
            raise ValueError("scheduler (pbt) needs rungs, at least 2 settings, and replicas (1): members share a seed")
        return self

    @model_validator(mode="after")
    def _rungs_rise(self) -> Self:
        if any(later <= earlier for earlier, later in zip(self.rungs, self.rungs[1:], strict=False)):
            raise ValueError(f"rungs ({list(self.rungs)}) must rise")
        return self

    def in_order(self) -> Iterator[tuple[str, DomainConfig]]:
        """Keys and domains, each after the key that its condition asks for."""
        given: set[str] = set()
        while len(given) < len(self.space):
            for key, domain in self.space.items():
                if key not in given and (not domain.when or domain.when.key in given):
                    given.add(key)
                    yield key, domain

    def all_rungs(self, config: RunConfig) -> tuple[int, ...]:
        """The rungs and the last step of the run.

        Raises:
            ValueError: a rung lies at or behind the end.
        """
        total = config.schedule.total_steps
        if self.rungs and self.rungs[-1] >= total:
            raise ValueError(f"rungs ({self.rungs[-1]}) must be below run.schedule.total_steps ({total})")
        if self.until is not None and self.until not in self.rungs:
            raise ValueError(f"until ({self.until}) must be one of rungs ({list(self.rungs)})")
        return tuple(step for step in (*self.rungs, total) if step <= (self.until or total))
