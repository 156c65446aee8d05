"""Config of scores: what settings of a sweep or checkpoints of a run are compared by, and a run's own evaluation."""

from re import fullmatch
from typing import Literal, Self

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from tips_ray.config.evaluation import CAPTION_TOKENS, SuiteConfig, caption_tokens_in, trained_tokens
from tips_ray.config.schema import ObjectiveConfig, Schema


class ScoreConfig(Schema):
    """What is compared: a logged metric, or a score of a task of the suite."""

    metric: str | None = None
    """Name of a logged metric, such as `loss/contrastive_synthetic`."""
    over_steps: PositiveInt = 1
    """With `metric`: the mean of what was logged in so many steps up to the rung."""
    task: str | None = None
    """Name of a task of the suite."""
    score: str | None = None
    """Name of a score of the task. `{web}` and `{synthetic}` stand for the CLS token that a setting trains on that
    caption; a setting with one kind of caption trains one token, which then stands for both."""
    better: Literal["higher", "lower"]

    @model_validator(mode="after")
    def _is_metric_or_task(self) -> Self:
        if (self.metric is None) == (self.task is None) or (self.task is None) != (self.score is None):
            raise ValueError("give metric, or task and score")
        if unknown := caption_tokens_in(self.score or "") - CAPTION_TOKENS.keys():
            raise ValueError(f"score ({min(unknown)}) must be one of {', '.join(CAPTION_TOKENS)}")
        return self

    @property
    def name(self) -> str:
        """The metric, or `task/score` without braces, which MLflow refuses."""
        return self.metric or f"{self.task}/{self.score}".replace("{", "").replace("}", "")

    def of_run(self, objective: ObjectiveConfig) -> str:
        """`task/score` as results name it, for a run with this objective."""
        return f"{self.task}/{(self.score or '').format(**trained_tokens(objective))}"


class EvaluationConfig(Schema):
    """Evaluation of a run's own checkpoints while it trains: `evaluate_every_steps` says which."""

    suite: SuiteConfig
    """Tasks and data sets, as in a file of `tips-ray evaluate`; the data must not be those of the training."""
    score: ScoreConfig | None = None
    """Score of a task that `patience` and `keep_best` compare checkpoints by."""
    patience: PositiveInt | None = None
    """The run ends with the checkpoint at which so many evaluations in a row were no better than the best before them;
    later ones are dropped, however late the scores came. None: it trains to the end."""
    keep_best: NonNegativeInt = 1
    """Number of best checkpoints to keep, beside the newest; only with `score`."""
    pictures: NonNegativeInt = 8
    """Images of the suite's first data set that are shown at each evaluated checkpoint; 0: none."""
    cpus: PositiveInt = 1
    """CPUs of an evaluation on Ray, beside those of workers and data."""
    gpus: NonNegativeFloat = 0
    """GPUs of an evaluation on Ray. Without Ray it runs on rank 0, and the ranks wait for it."""

    @model_validator(mode="after")
    def _score_is_of_the_suite(self) -> Self:
        if self.score and (self.score.task is None or self.score.task not in self.suite.tasks):
            raise ValueError(
                f"score.task ({self.score.task}) must be a task of the suite: {', '.join(self.suite.tasks)}"
            )
        if self.patience and not self.score:
            raise ValueError(
                f"patience ({self.patience}) needs score: name the task and the score that must get better"
            )
        return self

    @model_validator(mode="after")
    def _names_are_plain(self) -> Self:
        for name in (*self.suite.tasks, *self.suite.data):
            if not fullmatch(r"[\w.-]+", name):
                raise ValueError(f"suite: the name {name!r} must have letters, digits, '.', '_' and '-' alone")
        return self

    @model_validator(mode="after")
    def _suite_is_of_the_run(self) -> Self:
        if self.suite.mlflow_uri or self.suite.ray:
            raise ValueError(
                "suite: leave out mlflow_uri and ray; the run's page gets the scores, cpus and gpus say where"
            )
        return self
