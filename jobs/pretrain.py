"""Pretrain TIPS: one run, from its data to checkpoints, metrics and a report.

  tips-ray pretrain RUN.yaml [KEY=VALUE ...]     e.g. schedule.total_steps=1000 resources.workers=4
  tips-ray pretrain RUN.yaml --dry-run           prints the resolved config and checks what can be known before
  tips-ray pretrain RUN.yaml --supervise         starts again when the driver or the cluster's head is lost
  tips-ray pretrain RUN.yaml --without-ray       one process; below torchrun (-m jobs.cli pretrain ...) one per rank

The same name again resumes the run from its newest checkpoint, with Ray or without. Without a cluster (RAY_ADDRESS) Ray
runs here.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from tips_ray.config import RunConfig
    from tips_ray.data.index import Index
    from tips_ray.data.stream import StreamInputs
    from tips_ray.runs.folder import RunFolder
    from tips_ray.runs.run import RunInputs

SHOWN = ("data", "run", "resources")
"""Checks whose findings every start shows; a dry run shows all."""
Fit = Callable[["StreamInputs", "RunInputs"], None]
"""Trains to the end: on Ray, or without it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray pretrain`."""
    parser.add_argument("config", type=Path, metavar="RUN.yaml", help="config of the run")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the config, dotted")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and stop before Ray starts")
    parser.add_argument("--supervise", action="store_true", help="start again when the driver or the head was lost")
    parser.add_argument("--without-ray", action="store_true", help="train in this process, or as a rank of torchrun")


def run(arguments: argparse.Namespace) -> int | None:
    """Check, then train.

    Raises:
        ValueError: config, data, storage or resources are wrong.
        RunFailedError: training stopped.
    """
    from tips_ray.config import RunConfig, load_config
    from tips_ray.launch import on_ranks as without_ray

    config = load_config(RunConfig, arguments.config, arguments.overrides)
    instead = {}
    if arguments.without_ray:
        config = without_ray.on_these_ranks(config)
        instead = without_ray.checks(config)
    elif without_ray.ranks() > 1:
        raise ValueError("torchrun starts ranks that need no Ray: add --without-ray, or leave torchrun out")
    if arguments.dry_run:
        _dry_run(config, instead)
        return
    if arguments.supervise:
        return _supervise(arguments, config)
    uri = without_ray.pretrain(config) if arguments.without_ray else pretrain(config)
    if uri:
        print(f"run folder: {uri}\nnext: tips-ray report {uri}")


def _supervise(arguments: argparse.Namespace, config: "RunConfig") -> int:
    from tips_ray import storage
    from tips_ray.launch.on_ranks import ranks
    from tips_ray.launch.supervisor import start_command, supervise
    from tips_ray.runs.folder import RunFolder

    if ranks() > 1:
        raise ValueError("--supervise starts one driver; torchrun starts ranks again itself: use its --max-restarts")
    alone = ["--without-ray"] if arguments.without_ray else []
    command = start_command([str(arguments.config), *arguments.overrides, *alone])
    return supervise(command, RunFolder(storage.resolved(storage.join(config.storage, config.name))))


def _dry_run(config: "RunConfig", instead: Mapping[str, Callable[[], str]]) -> None:
    from tips_ray.launch.checks import preflight

    print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), end="", flush=True)
    checked = preflight(config, instead)
    for check, level, text in checked.findings:
        if level != "fail":
            print(f"# {check:10} {'warning: ' if level == 'warn' else ''}{text}", flush=True)
    checked.require()


def pretrain(
    config: "RunConfig", fit: Fit | None = None, instead: Mapping[str, Callable[[], str]] | None = None
) -> str:
    """Run or resume `config`; returns the run folder's URI.

    Args:
        config: of the run.
        fit: None: on Ray.
        instead: checks that take the place of Ray's, see `preflight`.
    """
    from tips_ray import storage
    from tips_ray.data.index import index_uri
    from tips_ray.data.stream import StreamInputs
    from tips_ray.launch.captions import captions_of
    from tips_ray.launch.checks import preflight
    from tips_ray.launch.vocabulary import claim
    from tips_ray.runs.checkpoint import checkpoints_of, newest_checkpoint
    from tips_ray.runs.folder import RunFolder

    checked = preflight(config, instead)
    index = checked.require()
    for check, level, text in checked.findings:
        if check in SHOWN or level == "warn":
            print(f"{check:10} {text}", flush=True)
    folder = RunFolder(storage.resolved(storage.join(config.storage, config.name)))
    found = newest_checkpoint(checkpoints_of(folder.uri))
    if found and found.step >= config.schedule.total_steps:
        return folder.uri
    uri = index_uri(config.data, index, storage.join(config.storage, "index"))
    with captions_of(config, index, uri) as captions:
        tokenizer = claim(config, index, folder, captions, found.step if found else 0)
        stream = StreamInputs(config, uri, tokenizer, captions)
        with _tracked(stream, index, folder, found.step if found else None) as inputs:
            (fit or _fit)(stream, inputs)
    return folder.uri


@contextmanager
def _tracked(
    stream: "StreamInputs", index: "Index", folder: "RunFolder", resumed_from_step: int | None
) -> "Iterator[RunInputs]":
    """What the ranks are told; leaves MLflow and the run folder with how the block ended."""
    from tips_ray.launch.checks import config_fingerprint
    from tips_ray.runs.run import RunInputs
    from tips_ray.runs.tracking import start_tracking

    config = stream.config
    tracking = start_tracking(config, folder.uri, resumed_from_step, index.fingerprint)
    fingerprints = {"data_fingerprint": index.fingerprint}
    fingerprints |= {"config_fingerprint": config_fingerprint(config.model_dump(mode="json"))}
    if stream.captions:
        fingerprints["captioner_fingerprint"] = stream.captions.store.fingerprint
    status = "FAILED"
    try:
        yield RunInputs(config, folder.uri, fingerprints, tracking.handle())
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        folder.try_event("end", None, status=status)
        tracking.finish(status)


def _fit(stream: "StreamInputs", inputs: "RunInputs") -> None:
    """On Ray Train."""
    import ray.data
    import ray.train

    from tips_ray import storage
    from tips_ray.data.pipeline import InOrder
    from tips_ray.launch import cluster as ray_cluster
    from tips_ray.launch.failure import told_failures
    from tips_ray.launch.progress import shown_progress
    from tips_ray.ray_data_adapter import start_coordinator
    from tips_ray.runs.folder import RunFolder
    from tips_ray.train.adapter import ElasticTrainer, shorten_waits
    from tips_ray.train.dataset import RestOfRun, WorkerInputs
    from tips_ray.train.worker import run_worker

    ray_cluster.connect(ray_cluster.cpus_needed(stream.config))
    ray.data.DataContext.get_current().enable_progress_bars = False
    config, folder = _with_micro_batch(inputs), RunFolder(inputs.uri)
    notes = storage.join(folder.uri, "ray")  # of Ray about an earlier start, which a kill may have damaged
    storage.delete_folder(notes)
    job = WorkerInputs(replace(stream, config=config), replace(inputs, config=config))
    shorten_waits(config)
    start_coordinator(config.resources.poll_seconds)
    trainer = ElasticTrainer(
        run_worker,
        config=config,
        run_uri=folder.uri,
        train_loop_config={"inputs": job},
        scaling_config=_scaling(config),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=notes,
            failure_config=ray.train.FailureConfig(max_failures=config.resources.max_failures),
        ),
        datasets={"train": RestOfRun(job)},
        dataset_config=InOrder(),
    )
    with told_failures(folder), shown_progress(folder, config.schedule.total_steps):
        trainer.fit()


def _with_micro_batch(inputs: "RunInputs") -> "RunConfig":
    """The config with a number for `micro_batch_images: auto`."""
    from tips_ray.launch.sizes import stream_sizes
    from tips_ray.train.micro_batch import keep, settled
    from tips_ray.train.worker import found_on_workers

    if inputs.config.micro_batch_images != "auto":
        return inputs.config
    found = found_on_workers(inputs)
    keep(inputs.uri, found)
    config = settled(inputs, found)
    print(f"micro-batch {config.images_per_pass} images; {stream_sizes(config)}", flush=True)
    return config


def _scaling(config: "RunConfig") -> Any:
    from ray.train import ScalingConfig

    resources = config.resources
    return ScalingConfig(
        num_workers=(config.worker_counts[0], resources.workers) if resources.min_workers else resources.workers,
        elastic_resize_monitor_interval_s=resources.resize_seconds,
        use_gpu=resources.gpus_per_worker > 0,
        resources_per_worker=resources.of_worker,
    )
