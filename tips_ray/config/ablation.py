"""Config of an ablation: runs that differ only in their objective, scores to compare, and the paper's findings."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from tips_ray.config.evaluation import SuiteConfig
from tips_ray.config.schema import Schema
from tips_ray.config.score import ScoreConfig

MAY_SET = ("objective.", "views.mask_ratio", "captions.per_image")
"""Keys of a run that rows may set: they do not change steps, images, their order or the initial weights."""


class RowConfig(Schema):
    """One line of the table."""

    title: str
    set: dict[str, Any] = {}
    """Dotted keys of the run and their values; only those of `MAY_SET`."""
    paper: dict[str, float] = {}
    """The paper's values of this row, by metric."""

    @model_validator(mode="after")
    def _sets_the_objective_alone(self) -> Self:
        for key in self.set:
            if not key.startswith(MAY_SET):
                raise ValueError(
                    f"set.{key}: rows may differ in {', '.join(MAY_SET)} alone; set base.{key} for all rows"
                )
        return self


class MetricConfig(ScoreConfig):
    """One column of the table: a score of the suite, or a metric that runs log, empty for rows that do not log it."""

    title: str
    better: Literal["higher", "lower"] = "higher"


class DirectionConfig(Schema):
    """A finding of the paper: a row compared with another by one metric."""

    row: str
    over: str
    """The row that `row` is compared with."""
    metric: str
    expect: Literal["better", "same"] = "better"
    within: NonNegativeFloat = 0.02
    """(D) Largest difference that still counts as the same."""
    paper: str
    """The paper's figures or words."""


class AblationConfig(Schema):
    """Config of `tips-ray ablate`."""

    base: dict[str, Any]
    """A run without name and storage."""
    scenes: PositiveInt | None = None
    """Number of rendered scenes to train on; None: `base.data.sources` says what."""
    replicas: PositiveInt = 1
    """Seeds that every row is trained with, from `base.seed` on."""
    at_a_time: PositiveInt | None = 2
    """Most runs at once; None: as many as the cluster has room for."""
    rows: Annotated[dict[str, RowConfig], Field(min_length=1)]
    only: tuple[str, ...] = ()
    """Names of the rows to run and to show; empty: all of them."""
    metrics: Annotated[dict[str, MetricConfig], Field(min_length=1)]
    directions: tuple[DirectionConfig, ...] = ()
    suite: SuiteConfig

    @property
    def wanted_rows(self) -> list[str]:
        """Names of the rows to run, in the order of `rows`."""
        return [row for row in self.rows if row in self.only or not self.only]

    @model_validator(mode="after")
    def _data_are_one(self) -> Self:
        data = self.base.get("data")
        has_sources = isinstance(data, dict) and "sources" in data
        if bool(self.scenes) == has_sources:
            told = f"scenes ({self.scenes}) and base.data.sources: leave one of them out"
            raise ValueError(told if self.scenes else "scenes, or base.data.sources: one of them must be given")
        return self

    @model_validator(mode="after")
    def _rows_can_be_scored(self) -> Self:
        if not any(metric.task for metric in self.metrics.values()):
            raise ValueError("metrics: one of them must be a score of a task, which all rows have")
        return self

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        for place, name, known in self._names():
            if name not in known:
                raise ValueError(f"{place} ({name}) must be one of {', '.join(known)}")
        return self

    def _names(self) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        """Each name in the config: its key, the name, and the names that are allowed there."""
        for name, metric in self.metrics.items():
            if metric.task:
                yield f"metrics.{name}.task", metric.task, self.suite.tasks
        for row, config in self.rows.items():
            for metric in config.paper:
                yield f"rows.{row}.paper", metric, self.metrics
        yield from ((f"only.{number}", row, self.rows) for number, row in enumerate(self.only))
        for number, direction in enumerate(self.directions):
            for key in ("row", "over"):
                yield f"directions.{number}.{key}", getattr(direction, key), self.rows
            yield f"directions.{number}.metric", direction.metric, self.metrics
