"""A place where all is well, and functions that make a mistake there; each returns the command line it leads to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from writers import jpeg, write_parquet

from tips_ray.config import RunConfig, load_config
from tips_ray.demo.s3_server import LocalS3
from tips_ray.runs.folder import RunFolder
from tips_ray.tokenizer import train_tokenizer

NOBODY = "127.0.0.1:9"
"""The discard port, where nothing listens."""
ROWS = 8
SIZES = {"width": 16, "depth": 1, "num_heads": 2, "ffn_hidden": 16}
GOOD = {
    "name": "run",
    "image": {**SIZES, "image_size_px": 28},
    "text": {**SIZES, "vocab_size": 100},
    "head": {"num_prototypes": 8, "hidden": 8, "bottleneck": 8},
    "views": {"global_px": 28, "local_px": 14, "local_crops": 1},
    "global_batch_images": 4,
}


class World(NamedTuple):
    """A place where all is well, until a mistake is made."""

    folder: Path
    server: LocalS3
    monkeypatch: pytest.MonkeyPatch

    def config(self, text: str | bytes | None = None, **values: Any) -> str:
        """Path of a good config with keys replaced, or of a file with this text."""
        path = self.folder / "run.yaml"
        data = {"sources": [{"uri": str(self.data())}]}
        tree = {**GOOD, "storage": str(self.folder / "runs"), "data": data, **values}
        content = yaml.safe_dump(tree) if text is None else text
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def data(self, **columns: Any) -> Path:
        """A Parquet file of a few good rows with columns replaced."""
        path = self.folder / "data" / "train.parquet"
        captions = [f"a dog number {number}" for number in range(ROWS)]
        images = [jpeg(number) for number in range(ROWS)]
        write_parquet(path, {"image": images, "caption": captions, "synthetic_caption": captions, **columns})
        return path

    def set(self, **environment: str) -> None:
        """Set environment variables."""
        for name, value in environment.items():
            self.monkeypatch.setenv(name, value)

    def s3(self, **environment: str) -> str:
        """A bucket of the real server with nothing in it, reached with other AWS_ variables where given."""
        self.set(**{**self.server.environment, **environment})
        return self.server.make_bucket("empty")


def keys(*overrides: str) -> Callable[[World], list[str]]:
    return lambda world: ["pretrain", world.config(), *overrides, "--dry-run"]


def config_file(text: str | bytes) -> Callable[[World], list[str]]:
    return lambda world: ["pretrain", world.config(text), "--dry-run"]


def environment(*overrides: str, **variables: str) -> Callable[[World], list[str]]:
    def make(world: World) -> list[str]:
        world.set(**variables)
        return ["pretrain", world.config(), *overrides, "--dry-run"]

    return make


def source(place: str, **variables: str) -> Callable[[World], list[str]]:
    """Data at `place` in the server's empty bucket, or in another one where it is a whole URI."""

    def make(world: World) -> list[str]:
        bucket = world.s3(**variables)
        uri = place if "://" in place else f"{bucket}/{place}"
        return ["pretrain", world.config(), f"data.sources=[{{uri: '{uri}'}}]", "--dry-run"]

    return make


def data_with(*overrides: str, **columns: Any) -> Callable[[World], list[str]]:
    def make(world: World) -> list[str]:
        config = world.config()
        path = world.data(**columns)
        given = [override.format(path=path) for override in overrides]
        return ["pretrain", config, *given, "--dry-run"]

    return make


def tokenizer(name: str, content: bytes | None) -> Callable[[World], list[str]]:
    def make(world: World) -> list[str]:
        path = world.folder / name
        if content is not None:
            path.write_bytes(content)
        return ["pretrain", world.config(), f"captions.tokenizer={path}", "text.vocab_size=20", "--dry-run"]

    return make


def large_vocabulary() -> bytes:
    return train_tokenizer([f"a dog number {number}" for number in range(ROWS)], 30).source


def no_credentials(world: World) -> list[str]:
    bucket = world.s3(AWS_SHARED_CREDENTIALS_FILE="/none", AWS_CONFIG_FILE="/none")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        world.monkeypatch.delenv(name)
    return ["pretrain", world.config(), f"data.sources=[{{uri: '{bucket}/x'}}]", "--dry-run"]


def other_config(world: World) -> list[str]:
    config = world.config()
    known = load_config(RunConfig, Path(config)).model_dump(mode="json")
    RunFolder(str(world.folder / "runs" / "run")).claim(yaml.safe_dump(known))
    return ["pretrain", config, "seed=7", "--dry-run"]


def storage_below_a_file(world: World) -> list[str]:
    (world.folder / "file").write_text("")
    return ["pretrain", world.config(storage=str(world.folder / "file" / "runs")), "--dry-run"]


def storage_at(uri: str) -> Callable[[World], list[str]]:
    def make(world: World) -> list[str]:
        world.s3()
        return ["pretrain", world.config(), f"storage={uri}", "tracking.mlflow_uri=sqlite:///x.db", "--dry-run"]

    return make


def no_compiler(world: World) -> list[str]:
    world.set(PATH=str(world.folder), CXX="")
    return ["pretrain", world.config(), "resources.compile=true", "--dry-run"]


def changed_data(world: World) -> list[str]:
    """The index of a run is kept, and its data are written anew."""
    from jobs.cli import main

    config, index = world.config(), f"data.index={world.folder / 'index'}"
    main(["index", config, index])
    world.data(caption=["a cat"] * ROWS)
    return ["pretrain", config, index, "--dry-run"]


def other_data_that_are_not_there(world: World) -> list[str]:
    """A run's name again with a source that is misspelled: the name is not the mistake."""
    other_config(world)
    return ["pretrain", world.config(), "data.sources=[{uri: /none}]", "--dry-run"]


def unwritable_index(world: World) -> list[str]:
    (world.folder / "file").write_text("")
    return ["index", world.config(storage=str(world.folder / "file" / "runs"))]


def hiding(name: str) -> Callable[[World], list[str]]:
    def make(world: World) -> list[str]:
        (world.folder / name).parent.mkdir(exist_ok=True)
        (world.folder / name).write_text("")
        return ["pretrain", world.config(), "--dry-run"]

    return make


def home_that_is_a_file(world: World) -> list[str]:
    (world.folder / "home").write_text("")
    world.set(HOME=str(world.folder / "home"), RAY_AUTH_MODE="token")
    return ["pretrain", world.config(), "--dry-run"]


def text_files(world: World) -> list[str]:
    config = world.config()
    (world.folder / "notes").mkdir()
    (world.folder / "notes" / "a.txt").write_text("a dog")
    return ["pretrain", config, "data.sources=[{uri: notes}]", "--dry-run"]


def uncaptioned(world: World) -> list[str]:
    config = world.config()
    write_parquet(world.folder / "data" / "train.parquet", {"image": [jpeg()], "legend": ["a dog"]})
    return ["pretrain", config, "--dry-run"]


def damaged(world: World) -> list[str]:
    config = world.config()
    (world.folder / "data" / "train.parquet").write_bytes(b"PAR1 and no more")
    return ["pretrain", config, "--dry-run"]
