"""Pretrain TIPS: one run, from its data to checkpoints, metrics and a report.

  tips-ray pretrain RUN.yaml [KEY=VALUE ...]     e.g. schedule.total_steps=1000 resources.workers=4
  tips-ray pretrain RUN.yaml --dry-run           prints the resolved config and checks what can be known before

The same name again resumes the run from its newest checkpoint. Without a cluster (RAY_ADDRESS) Ray runs here.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from tips_ray.config import RunConfig
    from tips_ray.data.index import Index
    from tips_ray.data.stream import StreamInputs
    from tips_ray.tracking import Tracking
    from tips_ray.train.run_folder import RunFolder

SHOWN = ("data", "run", "resources")
"""Checks whose findings every start shows; a dry run shows all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray pretrain`."""
    parser.add_argument("config", type=Path, metavar="RUN.yaml", help="config of the run")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the config, dotted")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and stop before Ray starts")


def run(arguments: argparse.Namespace) -> None:
    """Check, then train.

    Raises:
        ValueError: config, data, storage or resources are wrong.
        RunFailedError: training stopped.
    """
    from tips_ray.config import RunConfig, load_config

    config = load_config(RunConfig, arguments.config, arguments.overrides)
    if arguments.dry_run:
        _dry_run(config)
        return
    uri = pretrain(config)
    print(f"run folder: {uri}\nnext: tips-ray report {uri}")


def _dry_run(config: "RunConfig") -> None:
    from jobs.preflight import preflight

    print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), end="", flush=True)
    checked = preflight(config)
    for check, level, text in checked.findings:
        if level != "fail":
            print(f"# {check:10} {'warning: ' if level == 'warn' else ''}{text}", flush=True)
    checked.require()


def pretrain(config: "RunConfig") -> str:
    """Run or resume `config`; returns the run folder's URI."""
    from jobs.live_captions import captions_of
    from jobs.preflight import preflight
    from jobs.vocabulary import claim
    from tips_ray import storage
    from tips_ray.data.index import index_uri
    from tips_ray.data.stream import StreamInputs
    from tips_ray.train.checkpoint import newest_checkpoint
    from tips_ray.train.run_folder import RunFolder

    checked = preflight(config)
    index = checked.require()
    for check, level, text in checked.findings:
        if check in SHOWN or level == "warn":
            print(f"{check:10} {text}", flush=True)
    folder = RunFolder(storage.resolved(storage.join(config.storage, config.name)))
    found = newest_checkpoint(storage.join(folder.uri, "checkpoints"))
    if found and found.step >= config.schedule.total_steps:
        return folder.uri
    uri = index_uri(config.data, index, storage.join(config.storage, "index"))
    with captions_of(config, index, uri) as captions:
        tokenizer = claim(config, index, folder, captions, found.step if found else 0)
        _tracked_fit(StreamInputs(config, uri, tokenizer, captions), index, folder, found.step if found else None)
    return folder.uri


def _tracked_fit(stream: "StreamInputs", index: "Index", folder: "RunFolder", resumed_from_step: int | None) -> None:
    """Train, and leave MLflow and the run folder with how it ended."""
    from jobs.preflight import config_fingerprint
    from tips_ray.tracking import start_tracking

    config = stream.config
    tracking = start_tracking(config, folder.uri, resumed_from_step, index.fingerprint)
    fingerprints = {"data_fingerprint": index.fingerprint}
    fingerprints |= {"config_fingerprint": config_fingerprint(config.model_dump(mode="json"))}
    if stream.captions:
        fingerprints["captioner_fingerprint"] = stream.captions.store.fingerprint
    status = "FAILED"
    try:
        _fit(stream, folder, tracking, fingerprints)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        folder.log_event("end", None, status=status)
        folder.flush()
        tracking.finish(status)


def _fit(stream: "StreamInputs", folder: "RunFolder", tracking: "Tracking", fingerprints: dict[str, str]) -> None:
    import ray.data
    import ray.train
    from ray.train.torch import TorchTrainer

    from jobs import ray_cluster
    from jobs.failure import told_failures
    from jobs.progress import shown_progress
    from tips_ray import storage
    from tips_ray.data.pipeline import InOrder
    from tips_ray.train.sink import RunInputs
    from tips_ray.train.worker import RestOfRun, WorkerInputs, run_worker

    config = stream.config
    inputs = WorkerInputs(stream, RunInputs(config, folder.uri, fingerprints, tracking.handle()))
    ray_cluster.connect(ray_cluster.cpus_needed(config))
    ray.data.DataContext.get_current().enable_progress_bars = False
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={"inputs": inputs},
        scaling_config=_scaling(config),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=storage.join(folder.uri, "ray"),
            failure_config=ray.train.FailureConfig(max_failures=config.resources.max_failures),
        ),
        datasets={"train": RestOfRun(inputs)},
        dataset_config=InOrder(),
    )
    with told_failures(folder), shown_progress(folder, config.schedule.total_steps):
        trainer.fit()


def _scaling(config: "RunConfig") -> Any:
    from ray.train import ScalingConfig

    resources = config.resources
    per_worker = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    return ScalingConfig(
        num_workers=resources.workers, use_gpu=resources.gpus_per_worker > 0, resources_per_worker=per_worker
    )
