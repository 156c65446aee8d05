"""Checks of a run before it holds a GPU. All faults are reported at once, each in a sentence with its cure."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import yaml

from tips_ray import storage
from tips_ray.config import RunConfig
from tips_ray.config.evaluation import SuiteConfig
from tips_ray.config.evaluation_data import PublishedConfig, ScenesConfig
from tips_ray.data.caption_sample import bad_rows, gaps, joined, sampled_rows
from tips_ray.data.index import Index, bad_rows_and_damages, build_index, unread_bytes
from tips_ray.data.index_folder import check_apart, index_of
from tips_ray.errors import CheckResult, CheckWarning, Faults, check_results, listed
from tips_ray.evaluation.datasets.needed import with_folders
from tips_ray.launch import cluster, sizes
from tips_ray.launch.captions import caption_store, store_of
from tips_ray.launch.surroundings import surroundings
from tips_ray.launch.tracking_check import tracking_answers
from tips_ray.runs.checkpoint import checkpoints_of, list_checkpoints, newest_checkpoint
from tips_ray.runs.evaluations import require_score
from tips_ray.runs.folder import CONFIG, RunFolder
from tips_ray.runs.run import require_data
from tips_ray.tokenizer import Tokenizer, tokenizer_at
from tips_ray.train.flops import BF16_TFLOPS
from tips_ray.weights import require_its_vocabulary, start_source, teacher_sizes, teacher_source


@dataclass
class Preflight:
    """Results of all checks, and the index that one of them read or built."""

    results: list[CheckResult]
    index: Index | None = None

    @property
    def faults(self) -> list[str]:
        """Texts of the failed checks."""
        return [one.text for one in self.results if one.level == "fail"]

    def require(self) -> Index:
        """The index of a run without a fault.

        Raises:
            Faults: a check failed.
        """
        if self.faults or self.index is None:
            raise Faults(self.faults)
        return self.index


def preflight(config: RunConfig, instead: Mapping[str, Callable[[], str]] | None = None) -> Preflight:
    """Run all checks; needs no accelerator and starts no Ray.

    Args:
        config: of the run.
        instead: checks, by name, that replace those of a run on Ray.
    """
    result = Preflight(check_results("storage", lambda: storage_is_writable(config)))
    is_writable = not result.faults

    def data() -> str:
        result.index = _index(config) if is_writable else build_index(config.data)
        begun = is_writable and storage.exists(storage.join(config.storage, config.name, CONFIG))
        return _described(result.index, config, begun)

    checks: dict[str, Callable[[], str]] = {
        **surroundings(),
        "data": data,
        "shards": lambda: shards_are_whole(result.index, config.data.max_bad_fraction) if result.index else "unknown",
        "run": lambda: (
            run_is_new_or_the_same(config, result.index, result.index is not None) if is_writable else "unknown"
        ),
        "start": lambda: weights_fit(config) if is_writable else "unknown",
        "tokenizer": lambda: tokenizer_fits(config),
        "captions": lambda: captions_come(config),
        "resources": lambda: cluster.resources_suffice(config),
        "evaluation": lambda: evaluation_has_data(config),
        "compile": lambda: can_compile(config),
        "mfu": lambda: mfu_is_known(config),
        "tracking": lambda: (
            tracking_answers(config, is_writable) if is_writable or config.tracking.mlflow_uri else "unknown"
        ),
        "model": lambda: sizes.model_sizes(config),
        "stream": lambda: sizes.stream_sizes(config),
    }
    for name, check in {**checks, **(instead or {})}.items():
        known = result.faults  # a fault that two checks find is reported once
        result.results += [one for one in check_results(name, check) if one.text not in known]
    if result.index is not None:
        rows = result.index.sources[0].rows
        result.results += check_results("schedule", lambda: sizes.schedule_sizes(config, rows))
    return result


def storage_is_writable(config: RunConfig) -> str:
    """Create and delete a small object."""
    require_writable("storage", config.storage)
    return f"{storage.resolved(config.storage)} can be written"


def evaluation_has_data(config: RunConfig) -> str:
    """The data sets that checkpoints are evaluated on are there, and so is the score in earlier evaluations.

    Raises:
        ValueError: one is not given or not there.
    """
    if config.evaluation is None:
        return "checkpoints are not evaluated"
    suite = config.evaluation.suite
    require_score(config, storage.resolved(storage.join(config.storage, config.name)))
    require_data_of_tasks("evaluation.suite", suite, suite.tasks)
    return f"{', '.join(suite.tasks)} every {config.evaluate_every_steps} steps"


def require_data_of_tasks(key: str, suite: SuiteConfig, tasks: Iterable[str]) -> None:
    """The data sets of these tasks are given and there; `key` is the suite's in the user's config.

    Raises:
        ValueError: one is not.
    """
    suite = with_folders(suite)
    for name in sorted({suite.tasks[task].data for task in tasks}):
        data = suite.data[name]
        if isinstance(data, ScenesConfig):
            continue
        if data.folder is None:
            below = ""
            if isinstance(data, PublishedConfig) and suite.data_root is not None:
                below = f", and {storage.join(suite.data_root, data.home)} lacks files"
            raise ValueError(f"{key}.data.{name}.folder is not given{below}: name it, or leave out its tasks")
        folder = storage.resolved(data.folder)
        if not storage.list_names(folder) and not storage.list_folders(folder):
            raise ValueError(f"{key}.data.{name}.folder ({folder}) holds nothing: correct it")


def require_writable(key: str, place: str) -> None:
    """Create and delete a small object in a place that a key of the config names.

    Raises:
        ValueError: it cannot be written.
    """
    uri = storage.join(storage.resolved(place), f".check-{uuid.uuid4().hex}")
    try:
        storage.write_bytes(uri, b"tips_ray")
        storage.delete(uri)
    except ValueError as error:
        raise ValueError(f"{key} ({place}) cannot be written: {error}") from None


def run_is_new_or_the_same(config: RunConfig, index: Index | None = None, has_data: bool = True) -> str:
    """Whether the name is free, or the step of the run that has it.

    Args:
        config: of the run.
        index: of its data, which are compared with the run's; None: they are compared when the run starts.
        has_data: False: a source that differs from the run's is the mistake that another check has told.
    """
    folder = storage.join(config.storage, config.name)
    given = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    newest = newest_checkpoint(checkpoints_of(folder))
    try:
        changed = RunFolder(storage.resolved(folder)).config_changes(given, newest.step if newest else 0)
    except storage.NotFoundError:
        if index is not None:
            check_apart("the run's folder, storage/name", folder, index)
        return f"{config.name} is new: {storage.resolved(folder)}"
    except storage.StorageError:
        raise
    except ValueError as error:
        changes = str(error).splitlines()[1:]
        if not has_data and all(change.strip().startswith("data.sources.") for change in changes):
            return "unknown"
        raise ValueError(f"{error}; give the run another name, or these keys their old values") from None
    if index is not None:
        require_data(storage.resolved(folder), index.fingerprint, index.earlier)
    if newest and newest.step >= config.schedule.total_steps:
        return f"{config.name} is complete at step {newest.step}: {storage.resolved(folder)}"
    where = f"resumes from step {newest.step}" if newest else "starts at step 0, it has no checkpoint yet"
    but = f" but for {listed(changed)}" if changed else ""
    return f"{config.name} has the same config{but} and {where}: {storage.resolved(folder)}"


def weights_fit(config: RunConfig) -> str:
    """The initial weights exist and have the config's sizes; a known run needs only the sizes of its teacher."""
    if list_checkpoints(checkpoints_of(storage.join(config.storage, config.name))):
        teacher = teacher_sizes(config) if config.objective.frozen_teacher else None
        return f"nothing is read but the run's own checkpoint{' and the sizes of its teacher' if teacher else ''}"
    teacher = teacher_source(config).described() if config.objective.frozen_teacher else None
    of_teacher = f"; the frozen teacher of {teacher}" if teacher else ""
    if config.start is None:
        return f"random weights{of_teacher}"
    source = start_source(config)
    require_its_vocabulary(source, config)
    grid = source.grid if "image" in source.sizes else config.image.grid
    resampled = f", positions {grid} x {grid} -> {config.image.grid} x {config.image.grid}"
    return f"{source.described()}{resampled if grid != config.image.grid else ''}{of_teacher}"


def tokenizer_fits(config: RunConfig) -> str:
    """The given vocabulary loads, and every id of it has an embedding."""
    path, most = config.captions.tokenizer, config.text.vocab_size
    if path is None:
        return f"trained on a sample of the captions, up to {most:,} ids"
    tokenizer = _loaded(path)
    if tokenizer.vocab_size > most:
        raise ValueError(
            f"captions.tokenizer ({path}) has {tokenizer.vocab_size:,} ids, text.vocab_size ({most:,}) must not be "
            f"smaller: set text.vocab_size={tokenizer.vocab_size}"
        )
    return f"{path} has {tokenizer.vocab_size:,} ids, text.vocab_size is {most:,}"


def _loaded(uri: str) -> Tokenizer:
    try:
        return tokenizer_at(uri)
    except (ValueError, OSError) as error:
        reason = f"{uri}: {error.strerror}" if isinstance(error, OSError) else error
        raise ValueError(
            f"captions.tokenizer: {reason}; give a SentencePiece .model or a tokenizers .json, or leave the key out"
        ) from None


def captions_come(config: RunConfig) -> str:
    """Captions are in the data, were imported, or come from a captioner whose model exists."""
    if config.captions.source == "column":
        return "from the data"
    if config.captions.imported:
        return f"taken in as {config.captions.imported}, kept in {store_of(config).folder}"
    store, captioner = caption_store(config)
    kept = f"by {captioner.model}, kept in {store.folder}"
    if config.captions.source == "live":
        return f"made beside training {kept}, {sizes.captions_keep_up(config)}"
    return f"made before {kept}"


def can_compile(config: RunConfig) -> str:
    """torch.compile needs a compiler, for C++ on CPUs, for C on GPUs (Triton); those of a cluster cannot be checked."""
    resources = config.resources
    if not resources.compile:
        return "off"
    kind, given, names = (
        ("C", "CC", ("gcc", "clang")) if resources.gpus_per_worker else ("C++", "CXX", ("g++", "clang++"))
    )
    if cluster.address() or any(name and shutil.which(name) for name in (os.environ.get(given), *names)):
        return "every block is compiled in the first step, which takes a minute or more"
    raise ValueError(
        f"resources.compile (true) needs a {kind} compiler, and there is none: install {names[0]} or set "
        "resources.compile=false"
    )


def mfu_is_known(config: RunConfig) -> str:
    """Whether a run on GPUs logs `mfu`; the kind of card is known to its workers alone."""
    if not config.resources.gpus_per_worker:
        return "not logged on CPUs"
    if config.resources.dtype != "bf16":
        raise CheckWarning(
            f"no mfu is logged: with resources.dtype ({config.resources.dtype}) a step takes several times as long as "
            "in bf16, in which GPUs are compared: set resources.dtype=bf16"
        )
    if config.objective.teacher == "frozen":
        raise CheckWarning("no mfu is logged: objective.teacher (frozen) has its own size; compare images_per_second")
    return f"logged on {', '.join(BF16_TFLOPS)}"


def shards_are_whole(index: Index, most: float) -> str:
    """Rows after a damaged tar header cannot be found: their number is unknown, their bytes are known."""
    unread = unread_bytes(index)
    if not unread:
        return "all are read to their end"
    if not any(unread.values()):
        raise CheckWarning(
            f"data.sources: {len(unread)} of {index.shards.num_rows} shards have no bytes or end without the mark of a "
            f"tar's end, e.g. {next(iter(unread))}, so they are probably cut; their rows up to there are used"
        )
    lost, total = sum(unread.values()), int(index.shards["bytes"].to_numpy().sum())
    text = (
        f"data.sources: {len(unread)} of {index.shards.num_rows} shards have a damaged tar header or are cut, "
        f"{lost / total:.1%} of all bytes lie behind one and are not used, e.g. in {next(iter(unread))}; write these "
        "shards again (tips-ray index lists them)"
    )
    if lost > most * total:
        raise ValueError(f"{text}, or raise data.max_bad_fraction ({most:g}) to go on without")
    raise CheckWarning(text)


def _index(config: RunConfig) -> Index:
    return index_of(config.data, storage.join(config.storage, "index"))


def _described(index: Index, config: RunConfig, begun: bool) -> str:
    """Rows, bad ones, and rows without captions; of a run that has begun only the first rows are read for it."""
    found = []
    for number, source in enumerate(index.sources):
        rows = index.first_rows(number)
        if all(row["error"] for row in rows):
            raise ValueError(
                f"data.sources ({source.uri}): all {len(rows)} rows of the first chunk are bad, the first since "
                f"{rows[0]['error']}; tips-ray index shows what was found"
            )
        read = rows if begun else joined(sampled_rows(index, number), rows)
        found += [bad_rows(index, read), *gaps(index, read, config.captions)]
    bad, _ = bad_rows_and_damages(index)
    known = f"{index.rows:,} rows in {index.shards.num_rows} shards, {bad.num_rows} known to be bad"
    return "; ".join([known, *filter(None, found)])
