"""Pretrain TIPS: one run, from its data to checkpoints, metrics and a report.

  tips-ray pretrain RUN.yaml [KEY=VALUE ...]     e.g. schedule.total_steps=1000 resources.workers=4
  tips-ray pretrain RUN.yaml --dry-run           prints the resolved config and checks what can be known before

The same name again resumes the run from its newest checkpoint. Without a cluster (RAY_ADDRESS) Ray runs here.
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from tips_ray.config import RunConfig
    from tips_ray.data.index import Index
    from tips_ray.tracking import Tracking
    from tips_ray.train.run_folder import RunFolder

TOKENIZER_SAMPLE_CHUNKS = 256
"""Chunks whose captions a tokenizer is trained on."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray pretrain`."""
    parser.add_argument("config", type=Path, metavar="RUN.yaml", help="config of the run")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the config, dotted")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and stop before Ray starts")


def run(arguments: argparse.Namespace) -> None:
    """Check, then train.

    Raises:
        ValueError: config, data, storage or resources are wrong.
    """
    from tips_ray.config import RunConfig, load_config

    config = load_config(RunConfig, arguments.config, arguments.overrides)
    if arguments.dry_run:
        print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), end="")
        print(f"# {_described(_index(config))}")
        return
    uri = pretrain(config)
    print(f"run folder: {uri}\nnext: tips-ray report {uri}")


def pretrain(config: "RunConfig") -> str:
    """Run or resume `config`; returns the run folder's URI."""
    from tips_ray import storage
    from tips_ray.tracking import start_tracking
    from tips_ray.train.checkpoint import newest_checkpoint
    from tips_ray.train.run_folder import RunFolder

    index = _index(config)
    print(_described(index), flush=True)
    folder = RunFolder(storage.resolved(storage.join(config.storage, config.name)))
    folder.claim(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    found = newest_checkpoint(storage.join(folder.uri, "checkpoints"))
    if found and found.step >= config.schedule.total_steps:
        print(f"{config.name} is complete at step {found.step}", flush=True)
        return folder.uri
    tracking = start_tracking(config, folder.uri, found.step if found else None, index.fingerprint)
    status = "FAILED"
    try:
        _fit(config, index, folder, tracking)
        status = "FINISHED"
    finally:
        folder.log_event("end", None, status=status)
        folder.flush()
        tracking.finish(status)
    return folder.uri


def _fit(config: "RunConfig", index: "Index", folder: "RunFolder", tracking: "Tracking") -> None:
    import ray.train
    from ray.train.torch import TorchTrainer

    from jobs.progress import shown_progress
    from tips_ray import storage
    from tips_ray.data.pipeline import InOrder, StreamInputs
    from tips_ray.train.worker import RestOfRun, WorkerInputs, run_worker

    tokenizer = _tokenizer_path(config, index, folder)
    stream = StreamInputs(config, _index_uri(config, index), tokenizer)
    fingerprints = {"data_fingerprint": index.fingerprint}
    inputs = WorkerInputs(stream, folder.uri, fingerprints, tracking.handle())
    start_ray(config)
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={"inputs": inputs},
        scaling_config=_scaling(config),
        run_config=ray.train.RunConfig(name="ray", storage_path=storage.join(folder.uri, "ray")),
        datasets={"train": RestOfRun(inputs)},
        dataset_config=InOrder(),
    )
    with shown_progress(folder, config.schedule.total_steps):
        trainer.fit()


def start_ray(config: "RunConfig") -> None:
    """Join the cluster of RAY_ADDRESS, or start Ray here with as many logical CPUs as the run needs.

    Raises:
        ValueError: the cluster has too few CPUs for the workers and the data stream beside them.
    """
    import ray

    needed = config.resources.workers * config.resources.cpus_per_worker + config.resources.data_cpus
    if not ray.is_initialized():
        options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if "RAY_ADDRESS" not in os.environ:
            options |= {"num_cpus": max(int(needed), os.cpu_count() or 1), "include_dashboard": False}
            options |= {"object_store_memory": 1 << 30}
        ray.init(**options)
    ray.data.DataContext.get_current().enable_progress_bars = False
    cpus = ray.cluster_resources().get("CPU", 0)
    if cpus < needed:
        raise ValueError(
            f"the cluster has {cpus:g} CPUs; resources.workers ({config.resources.workers}) x cpus_per_worker "
            f"({config.resources.cpus_per_worker:g}) + data_cpus ({config.resources.data_cpus}) need {needed:g}"
        )


def _scaling(config: "RunConfig") -> Any:
    from ray.train import ScalingConfig

    resources = config.resources
    per_worker = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    return ScalingConfig(
        num_workers=resources.workers, use_gpu=resources.gpus_per_worker > 0, resources_per_worker=per_worker
    )


def _index(config: "RunConfig") -> "Index":
    from tips_ray import storage
    from tips_ray.data.index import index_of

    return index_of(config.data, storage.join(config.storage, "index"))


def _index_uri(config: "RunConfig", index: "Index") -> str:
    from tips_ray import storage

    return storage.resolved(config.data.index or storage.join(config.storage, "index", index.fingerprint))


def _described(index: "Index") -> str:
    return f"data: {index.rows:,} rows in {index.shards.num_rows} shards, {index.rejects.num_rows} known to be bad"


def _tokenizer_path(config: "RunConfig", index: "Index", folder: "RunFolder") -> str:
    """The tokenizer of the run: the given one, or one trained on captions of the data and kept in the run folder."""
    from tips_ray import storage
    from tips_ray.models.tokenizer import train_tokenizer

    if config.captions.tokenizer:
        return config.captions.tokenizer
    uri = storage.join(folder.uri, "tokenizer.json")
    if not storage.exists(uri):
        texts = list(_captions(index))
        storage.write_bytes(uri, train_tokenizer(texts, config.text.vocab_size).source)
    return uri


def _captions(index: "Index") -> Any:
    chunks = len(index.chunks.rows)
    for number in range(0, chunks, max(chunks // TOKENIZER_SAMPLE_CHUNKS, 1)):
        for row in index.read(number):
            yield from (row["web_caption"], *row["synthetic_captions"])
