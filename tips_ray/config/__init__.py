"""Config of a run: pydantic models and the functions that load them. Imports pydantic and PyYAML only."""

from tips_ray.config.captions import CaptionerConfig
from tips_ray.config.load import load_config, override
from tips_ray.config.run import (
    CaptionsConfig,
    ColumnsConfig,
    DataConfig,
    ResourcesConfig,
    RunConfig,
    SourceConfig,
    TrackingConfig,
    ViewsConfig,
)
from tips_ray.config.schema import (
    ImageEncoderConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PrototypeHeadConfig,
    ScheduleConfig,
    Schema,
    StartConfig,
    TextEncoderConfig,
    TrainConfig,
)
from tips_ray.config.watch import GuardConfig, HealthConfig

__all__ = [
    "CaptionerConfig",
    "CaptionsConfig",
    "ColumnsConfig",
    "DataConfig",
    "GuardConfig",
    "HealthConfig",
    "ResourcesConfig",
    "RunConfig",
    "SourceConfig",
    "TrackingConfig",
    "ViewsConfig",
    "ImageEncoderConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "PrototypeHeadConfig",
    "ScheduleConfig",
    "Schema",
    "StartConfig",
    "TextEncoderConfig",
    "TrainConfig",
    "load_config",
    "override",
]
