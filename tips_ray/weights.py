"""Weights sources by URI: what is there, whether a config fits, and the model of a run, a checkpoint or a folder."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch

from tips_ray import storage
from tips_ray.checkpoint_io import fill_tree
from tips_ray.config import ImageEncoderConfig, RunConfig, TextEncoderConfig, TrainConfig
from tips_ray.models import ImageEncoder, TextEncoder, TipsModel, Tokenizer, load_transformers
from tips_ray.models.official import official_sizes
from tips_ray.models.transformers_config import read_config
from tips_ray.runs.checkpoint import (
    MANIFEST,
    CheckpointInfo,
    DamagedCheckpointError,
    checkpoints_of,
    first_undamaged,
    list_checkpoints,
)
from tips_ray.runs.folder import read_run_config
from tips_ray.tokenizer import tokenizer_at

_COMPARED = {
    "image": ("width", "depth", "num_heads", "ffn", "ffn_hidden", "patch_size_px", "gelu"),
    "text": ("width", "depth", "num_heads", "ffn_hidden", "vocab_size"),
    "head": ("num_prototypes", "hidden", "bottleneck"),
}
"""Sizes that weights depend on, and GELU's form; positions are resampled, LayerScale and drop-path belong to a run."""
_KNOWN = (
    "a run folder (config.yaml), a checkpoint of one (manifest.json), a transformers folder (config.json) or released "
    "npz files"
)

Result = TypeVar("Result")


@dataclass(frozen=True)
class WeightsSource:
    """Where weights come from."""

    key: str
    """Config key that names it."""
    uri: str
    kind: Literal["run", "checkpoint", "transformers", "official"]
    sizes: dict[str, dict[str, Any]]
    """Fields of the config sections `image`, `text` and `head`, where present and known."""
    files: dict[str, str] = field(default_factory=dict)
    """URIs of the files of a transformers folder (by name) or of a release (by encoder)."""
    run_uri: str = ""
    config: dict[str, Any] | None = None
    """Config of a run."""
    checkpoint: CheckpointInfo | None = None
    """The one that was named, or the run's newest; it is verified when it is read."""
    older: tuple[CheckpointInfo, ...] = ()
    """The run's checkpoints before it, newest first."""

    @property
    def grid(self) -> int:
        """Patches along one side of the image that the learned positions belong to."""
        return self.sizes["image"]["image_size_px"] // self.sizes["image"]["patch_size_px"]

    def teacher_part(self, name: str) -> Literal["student", "teacher"]:
        """The network of a run's checkpoint that holds parameter `name` of its averaged teacher.

        Head-only EMA has no encoder of its own, and a frozen teacher is another model than the one that was trained.
        """
        assert self.config is not None
        kind = self.config["objective"]["teacher"]
        shares_encoder = kind == "ema_heads" and not name.startswith("heads.")
        return "student" if kind == "frozen" or shares_encoder else "teacher"

    def described(self) -> str:
        """The source in words, such as `the image encoder of weights.npz`."""
        if self.checkpoint:
            return f"{self.run_uri} at step {self.checkpoint.step}"
        encoders = " and ".join(f"{kind} encoder" for kind in ("image", "text") if kind in self.sizes)
        return f"the {encoders} of {self.uri}"


def start_source(config: TrainConfig) -> WeightsSource:
    """The weights source at `start.uri`.

    Raises:
        ValueError: no weights are there, or their sizes differ from the config's; all differences are named.
    """
    assert config.start is not None
    source = source_at("start.uri", config.start.uri)
    given = config.model_dump(mode="json")
    differing = [
        f"{section}.{key} ({given[section][key]}) must be {there[key]}"
        for section, there in source.sizes.items()
        for key in _COMPARED[section]
        if key in there and given[section][key] != there[key] and (key, there.get("ffn")) != ("gelu", "swiglu")
    ]
    if differing:
        raise ValueError(f"start.uri ({source.uri}) has other sizes: {', '.join(differing)}, as it is there")
    return source


def teacher_source(config: TrainConfig) -> WeightsSource:
    """The weights source at `objective.frozen_teacher`.

    Raises:
        ValueError: it is no run, or its prototypes or patches differ from the config's.
    """
    uri = config.objective.frozen_teacher
    assert uri is not None
    source = source_at("objective.frozen_teacher", uri)
    if source.config is None:
        raise ValueError(
            f"{source.key} ({source.uri}) has encoders without prototype heads, which a student cannot be trained on: "
            "give the folder of a run"
        )
    head, image = source.sizes["head"], source.sizes["image"]
    if head["num_prototypes"] != config.head.num_prototypes:
        raise ValueError(
            f"head.num_prototypes ({config.head.num_prototypes}) must be {head['num_prototypes']}, as in "
            f"{source.key} ({source.uri}): student and teacher score the same prototypes"
        )
    if image["patch_size_px"] != config.image.patch_size_px:
        raise ValueError(
            f"image.patch_size_px ({config.image.patch_size_px}) must be {image['patch_size_px']}, as in "
            f"{source.key} ({source.uri}): student and teacher see the same patches"
        )
    return source


def teacher_sizes(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Sizes of `objective.frozen_teacher`, read from the config of its run; its weights may be gone.

    Raises:
        ValueError: there is no run.
    """
    assert config.objective.frozen_teacher is not None
    uri = storage.resolved(config.objective.frozen_teacher)
    for run_uri in (uri, uri.rsplit("/", 2)[0]):  # a run, or one of its checkpoints
        if storage.exists(storage.join(run_uri, "config.yaml")):
            return _run_config("objective.frozen_teacher", uri, run_uri)[1]
    return teacher_source(config).sizes


def require_its_vocabulary(source: WeightsSource, config: RunConfig) -> None:
    """Require the tokenizer whose ids the source's text encoder was trained on.

    Raises:
        ValueError: the config has none, or another than the run that the text encoder comes from.
    """
    if "text" not in source.sizes:
        return
    given = config.captions.tokenizer
    if source.config is None:
        if given is None:
            raise ValueError(
                f"captions.tokenizer must name the vocabulary of the text encoder in start.uri ({source.uri}): the "
                ".model or .json that came with it"
            )
        return
    there = source.config["captions"]["tokenizer"] or storage.join(source.run_uri, "tokenizer.json")
    if given is None or tokenizer_at(given).source != tokenizer_at(there).source:
        raise ValueError(
            f"captions.tokenizer ({given}) must be that of start.uri ({source.uri}), whose text encoder knows no "
            f"other: set captions.tokenizer={there}"
        )


def source_at(key: str, uri: str) -> WeightsSource:
    """The weights source at `uri`, recognised by the files there; errors name it by `key`.

    Raises:
        ValueError: no weights are there.
    """
    uri = storage.resolved(uri)
    if not uri.endswith(".npz"):
        if storage.exists(storage.join(uri, MANIFEST)):
            return _checkpoint_at(key, uri)
        if storage.exists(storage.join(uri, "config.yaml")):
            return _run_at(key, uri)
        if storage.exists(storage.join(uri, "config.json")):
            return _transformers_at(key, uri)
    files = _npz_files(uri)
    if not files:
        raise ValueError(f"{key} ({uri}): there is neither {_KNOWN}; correct it")
    return _official_at(key, uri, files)


def _run_at(key: str, uri: str) -> WeightsSource:
    found = list_checkpoints(checkpoints_of(uri))
    if not found:
        damaged = len(storage.list_folders(checkpoints_of(uri)))
        if damaged:
            raise ValueError(f"{key} ({uri}) is a run whose {damaged} checkpoints are damaged or cut; give another run")
        raise ValueError(f"{key} ({uri}) is a run without a checkpoint; wait for its first one, or give another run")
    return replace(_of_run(key, uri, "run", uri, found[-1]), older=tuple(found[-2::-1]))


def _checkpoint_at(key: str, uri: str) -> WeightsSource:
    checkpoints_uri = uri.rsplit("/", 1)[0]
    run_uri = checkpoints_uri.rsplit("/", 1)[0]
    if not storage.exists(storage.join(run_uri, "config.yaml")):
        raise ValueError(
            f"{key} ({uri}) is a checkpoint outside of a run: {run_uri} has no config.yaml, which tells its sizes; "
            "copy the run with it"
        )
    found = next((checkpoint for checkpoint in list_checkpoints(checkpoints_uri) if checkpoint.uri == uri), None)
    if found is None:
        raise ValueError(f"{key} ({uri}): its {MANIFEST} is damaged; give another checkpoint, or the run's folder")
    return _of_run(key, uri, "checkpoint", run_uri, found)


def _of_run(
    key: str, uri: str, kind: Literal["run", "checkpoint"], run_uri: str, checkpoint: CheckpointInfo
) -> WeightsSource:
    config, sizes = _run_config(key, uri, run_uri)
    return WeightsSource(key, uri, kind, sizes, {}, run_uri, config, checkpoint)


def _run_config(key: str, uri: str, run_uri: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The config of a run, and what sizes it gives."""
    config = read_run_config(run_uri)
    try:
        return config, {section: config[section] for section in _COMPARED}
    except KeyError:
        raise ValueError(f"{key} ({uri}): {run_uri}/config.yaml is not the config of a run") from None


def _transformers_at(key: str, uri: str) -> WeightsSource:
    with tempfile.TemporaryDirectory() as folder:
        storage.download(storage.join(uri, "config.json"), Path(folder, "config.json"))
        try:
            image, text, _ = read_config(Path(folder))
        except ValueError as error:
            raise ValueError(f"{key} ({uri}): {str(error).replace(folder, uri)}") from None
    names = [name for name in storage.list_names(uri) if Path(name).suffix in (".json", ".safetensors", ".model")]
    sizes = {"image": image.model_dump(mode="json"), "text": text.model_dump(mode="json")}
    return WeightsSource(key, uri, "transformers", sizes, {name: storage.join(uri, name) for name in names})


def _npz_files(uri: str) -> list[str]:
    """The files that a name, a pattern or a folder stands for."""
    try:
        if uri.endswith(".npz"):
            return [file.uri for file in storage.list_files(uri)]
    except storage.NotFoundError:
        return []
    return [storage.join(uri, name) for name in storage.list_names(uri) if name.endswith(".npz")]


def _official_at(key: str, uri: str, files: list[str]) -> WeightsSource:
    sizes, of_encoder = {}, {}
    for file in files:
        kind, found = _official_sizes_of(file)
        if kind in sizes:
            raise ValueError(
                f"{key} ({uri}): {of_encoder[kind]} and {file} both hold {kind} encoders; name one of them"
            )
        sizes[kind], of_encoder[kind] = found, file
    return WeightsSource(key, uri, "official", sizes, of_encoder)


def _official_sizes_of(uri: str) -> tuple[str, dict[str, Any]]:
    filesystem, path = storage.filesystem(uri)

    def read() -> tuple[str, dict[str, Any]]:
        with filesystem.open_input_file(path) as file:
            return official_sizes(cast(Any, file), uri)

    return storage.attempt(uri, read)


def from_whole_checkpoint(source: WeightsSource, load: Callable[[WeightsSource], Result]) -> Result:
    """Result of `load` for the newest undamaged checkpoint; damaged ones of a run are logged and skipped.

    Raises:
        ValueError: all are damaged, or the one that was named is.
    """
    assert source.checkpoint is not None
    if source.kind != "run":
        try:
            return load(source)
        except DamagedCheckpointError as error:
            raise ValueError(str(error)) from None
    checkpoints = (source.checkpoint, *source.older)
    found = first_undamaged(checkpoints, lambda one: load(replace(source, checkpoint=one, older=())))
    if found is None:
        raise ValueError(f"{source.key} ({source.uri}): none of its checkpoints is whole; give another run")
    return found


def trained_model(source: WeightsSource) -> tuple[TipsModel, CheckpointInfo]:
    """Averaged image encoder, text encoder, vocabulary and temperature, and the checkpoint that they are from.

    The model is fp32, on the CPU, in evaluation mode.

    Raises:
        ValueError: no checkpoint of `source` is whole.
    """
    return from_whole_checkpoint(source, _trained_model)


def model_at(uri: str) -> TipsModel:
    """The model of a run, of one of its checkpoints (local or s3://), or of a local folder that transformers reads.

    Raises:
        ValueError: there is none.
    """
    if any(storage.exists(storage.join(storage.resolved(uri), name)) for name in ("config.yaml", MANIFEST)):
        return trained_model(source_at("FOLDER", uri))[0]
    if not Path(uri).is_dir():
        raise ValueError(f"FOLDER ({uri}): there is neither {_KNOWN}; correct it")
    return load_transformers(Path(uri))


def _trained_model(source: WeightsSource) -> tuple[TipsModel, CheckpointInfo]:
    assert source.checkpoint is not None
    image = ImageEncoder(ImageEncoderConfig(**source.sizes["image"]))
    text = TextEncoder(TextEncoderConfig(**source.sizes["text"]))
    log_temperature = torch.empty(1)
    tree: dict[str, dict[str, Any]] = {"student": {"log_temperature": log_temperature}, "teacher": {}}
    tree["student"] |= {f"text.{name}": value for name, value in text.state_dict().items()}
    tree[source.teacher_part("image.norm.weight")] |= {f"image.{name}": v for name, v in image.state_dict().items()}
    fill_tree({part: tensors for part, tensors in tree.items() if tensors}, source.checkpoint)
    model = TipsModel(image.eval(), text.eval(), _tokenizer(source), log_temperature.exp().item())
    return model, source.checkpoint


def _tokenizer(source: WeightsSource) -> Tokenizer | None:
    """None where a run folder was copied without its vocabulary."""
    assert source.config is not None
    uri = source.config["captions"]["tokenizer"] or storage.join(source.run_uri, "tokenizer.json")
    return tokenizer_at(uri) if storage.exists(uri) else None
