"""Tasks of the evaluation on the demo's encoder, before training and after, as its report shows them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from tips_ray.config import load_config
from tips_ray.config.evaluation import SuiteConfig
from tips_ray.evaluation.datasets import Dataset, load_dataset
from tips_ray.evaluation.encoders import TipsEncoder
from tips_ray.evaluation.features import FrozenData, encoding_here
from tips_ray.evaluation.probe import without_rates
from tips_ray.evaluation.tasks import Outcome, outcome_of
from tips_ray.report import ProbeScore

SUITE = Path(__file__).parents[2] / "jobs" / "suites" / "demo.yaml"


class ShownTasks(NamedTuple):
    """Scores of both encoders, and pictures of the trained one."""

    probes: list[ProbeScore]
    pictures: dict[str, np.ndarray]


def shown_tasks(before: TipsEncoder, after: TipsEncoder) -> ShownTasks:
    """All tasks of the suite, on scenes that neither training nor the captioner has seen."""
    suite = load_config(SuiteConfig, SUITE, ())
    (config,) = suite.data.values()
    dataset = load_dataset(config, after.image_size_px)
    outcomes = [_outcomes(encoder, dataset, suite) for encoder in (before, after)]
    probes = [
        ProbeScore(f"{task}: {score}".replace("_", " "), outcomes[0][task].scores[score], value, "rmse" not in score)
        for task, outcome in outcomes[1].items()
        for score, value in without_rates(outcome.scores).items()
    ]
    pictures = {
        f"{task}: image, truth, prediction".replace("_", " "): picture
        for task, outcome in outcomes[1].items()
        for picture in outcome.pictures.values()
    }
    return ShownTasks(probes, pictures)


def _outcomes(encoder: TipsEncoder, dataset: Dataset, suite: SuiteConfig) -> dict[str, Outcome]:
    data = FrozenData(encoder, dataset, encoding_here(encoder, suite.batch_images))
    return {name: outcome_of(task, data, suite.seed) for name, task in suite.tasks.items()}
