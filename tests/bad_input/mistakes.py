"""What users get wrong, each with the words that must stand in the one line they get."""

import os
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


class Mistake(NamedTuple):
    """A mistake: the command line it leads to, and words of each error line."""

    name: str
    make: Callable[[World], list[str]]
    words: tuple[str, ...]


def _key(*overrides: str) -> Callable[[World], list[str]]:
    return lambda world: ["pretrain", world.config(), *overrides, "--dry-run"]


def _file(text: str | bytes) -> Callable[[World], list[str]]:
    return lambda world: ["pretrain", world.config(text), "--dry-run"]


def _environment(*overrides: str, **variables: str) -> Callable[[World], list[str]]:
    def make(world: World) -> list[str]:
        world.set(**variables)
        return ["pretrain", world.config(), *overrides, "--dry-run"]

    return make


def _source(place: str, **variables: str) -> Callable[[World], list[str]]:
    """Data at `place` in the server's empty bucket, or in another one where it is a whole URI."""

    def make(world: World) -> list[str]:
        bucket = world.s3(**variables)
        uri = place if "://" in place else f"{bucket}/{place}"
        return ["pretrain", world.config(), f"data.sources=[{{uri: '{uri}'}}]", "--dry-run"]

    return make


def _columns(*overrides: str, **columns: Any) -> Callable[[World], list[str]]:
    def make(world: World) -> list[str]:
        config = world.config()
        path = world.data(**columns)
        given = [override.format(path=path) for override in overrides]
        return ["pretrain", config, *given, "--dry-run"]

    return make


def _tokenizer(name: str, content: bytes | None) -> Callable[[World], list[str]]:
    def make(world: World) -> list[str]:
        path = world.folder / name
        if content is not None:
            path.write_bytes(content)
        return ["pretrain", world.config(), f"captions.tokenizer={path}", "text.vocab_size=20", "--dry-run"]

    return make


def _large_vocabulary() -> bytes:
    return train_tokenizer([f"a dog number {number}" for number in range(ROWS)], 30).source


def _no_credentials(world: World) -> list[str]:
    bucket = world.s3(AWS_SHARED_CREDENTIALS_FILE="/none", AWS_CONFIG_FILE="/none")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        world.monkeypatch.delenv(name)
    return ["pretrain", world.config(), f"data.sources=[{{uri: '{bucket}/x'}}]", "--dry-run"]


def _other_config(world: World) -> list[str]:
    config = world.config()
    known = load_config(RunConfig, Path(config)).model_dump(mode="json")
    RunFolder(str(world.folder / "runs" / "run")).claim(yaml.safe_dump(known))
    return ["pretrain", config, "seed=7", "--dry-run"]


def _storage_below_a_file(world: World) -> list[str]:
    (world.folder / "file").write_text("")
    return ["pretrain", world.config(storage=str(world.folder / "file" / "runs")), "--dry-run"]


def _storage(uri: str) -> Callable[[World], list[str]]:
    def make(world: World) -> list[str]:
        world.s3()
        return ["pretrain", world.config(), f"storage={uri}", "tracking.mlflow_uri=sqlite:///x.db", "--dry-run"]

    return make


def _no_compiler(world: World) -> list[str]:
    world.set(PATH=str(world.folder), CXX="")
    return ["pretrain", world.config(), "resources.compile=true", "--dry-run"]


def _changed_data(world: World) -> list[str]:
    """The index of a run is kept, and its data are written anew."""
    from jobs.cli import main

    config, index = world.config(), f"data.index={world.folder / 'index'}"
    main(["index", config, index])
    world.data(caption=["a cat"] * ROWS)
    return ["pretrain", config, index, "--dry-run"]


def _other_data_that_are_not_there(world: World) -> list[str]:
    """A run's name again with a source that is misspelled: the name is not the mistake."""
    _other_config(world)
    return ["pretrain", world.config(), "data.sources=[{uri: /none}]", "--dry-run"]


def _unwritable_index(world: World) -> list[str]:
    (world.folder / "file").write_text("")
    return ["index", world.config(storage=str(world.folder / "file" / "runs"))]


def _hiding(name: str) -> Callable[[World], list[str]]:
    def make(world: World) -> list[str]:
        (world.folder / name).parent.mkdir(exist_ok=True)
        (world.folder / name).write_text("")
        return ["pretrain", world.config(), "--dry-run"]

    return make


def _home_that_is_a_file(world: World) -> list[str]:
    (world.folder / "home").write_text("")
    world.set(HOME=str(world.folder / "home"), RAY_AUTH_MODE="token")
    return ["pretrain", world.config(), "--dry-run"]


def _text_files(world: World) -> list[str]:
    config = world.config()
    (world.folder / "notes").mkdir()
    (world.folder / "notes" / "a.txt").write_text("a dog")
    return ["pretrain", config, "data.sources=[{uri: notes}]", "--dry-run"]


def _uncaptioned(world: World) -> list[str]:
    config = world.config()
    write_parquet(world.folder / "data" / "train.parquet", {"image": [jpeg()], "legend": ["a dog"]})
    return ["pretrain", config, "--dry-run"]


def _damaged(world: World) -> list[str]:
    config = world.config()
    (world.folder / "data" / "train.parquet").write_bytes(b"PAR1 and no more")
    return ["pretrain", config, "--dry-run"]


_CORES = os.cpu_count() or 1
_WORKERS = 64 * _CORES

CATALOGUE = (
    # The command line and the file.
    Mistake("no such command", lambda world: ["pretrian"], ("invalid choice: 'pretrian'",)),
    Mistake("no config is given", lambda world: ["pretrain"], ("required: RUN.yaml (see",)),
    Mistake("no such config", lambda world: ["pretrain", "none.yaml"], ("none.yaml: there is no such file",)),
    Mistake("the config is a folder", lambda world: ["pretrain", str(world.folder)], ("Is a directory",)),
    Mistake("the config is a picture", _file(jpeg()), ("run.yaml: cannot be read as text (it is not UTF-8)",)),
    Mistake("the config is no mapping", _file("- a\n- b\n"), ("run.yaml: holds a list, a config is a mapping",)),
    Mistake("the YAML is broken", _file("name: run\ndata: [\n"), ("run.yaml line 3: ",)),
    Mistake("the config of another command", _file("captioner: {}\nprompt: x\n"), ("keys (captioner, prompt)",)),
    Mistake(
        "a block is given twice",
        _file("name: run\nschedule: {total_steps: 10}\n\nschedule:\n  peak_lr: 1e-3\n"),
        ("run.yaml line 4: the key 'schedule' is given twice (lines 2 and 4), and only the last would count; correct",),
    ),
    Mistake(
        "a key is given twice inside",
        _file("data:\n  sources:\n    - uri: a\n      uri: b\n"),
        ("run.yaml line 4: the key 'uri' is given twice (lines 3 and 4)",),
    ),
    Mistake(
        "a key is given twice in an override",
        _key("data.sources=[{uri: a, uri: b}]"),
        ("line 1: the key 'uri' is given twice, and only the last would count",),
    ),
    Mistake("a date that does not exist", _file("name: 2024-13-45\n"), ("run.yaml: a value in it cannot be read",)),
    Mistake("YAML nested too deeply", _file("name: " + "[" * 3000), ("run.yaml: it is nested too deeply",)),
    Mistake("override without a value", _key("seed"), ("override 'seed' is not of the form dotted.key=value",)),
    Mistake("override of broken YAML", _key("data=["), ("override 'data=[' line 1: ",)),
    Mistake("override inside a list", _key("data.sources.uri=x"), ("override data.sources.uri: sources is a list",)),
    # Keys and values.
    Mistake(
        "a typo",
        _key("schedule.peak_Ir=1"),
        ("schedule.peak_Ir: Extra inputs are not permitted; did you mean schedule.peak_lr?",),
    ),
    Mistake(
        "a key in the wrong place",
        _key("peak_lr=1"),
        ("peak_lr: Extra inputs are not permitted; did you mean schedule.peak_lr?",),
    ),
    Mistake(
        "an unknown key", _key("views.xyz=1"), ("views.xyz: Extra inputs are not permitted; there are global_px, ",)
    ),
    Mistake(
        "a missing key",
        _file("name: run\nglobal_batch_images: 4\n"),
        ("image: Field required", "text: Field required", "data: Field required"),
    ),
    Mistake(
        "a wrong type",
        _key("schedule.peak_lr=fast"),
        ("schedule.peak_lr: Input should be a valid number, unable to parse string as a number, not 'fast'",),
    ),
    Mistake(
        "a value out of range",
        _key("schedule.total_steps=0"),
        ("schedule.total_steps: Input should be greater than 0, not 0",),
    ),
    Mistake(
        "an unknown choice",
        _key("resources.dtype=fp8"),
        ("resources.dtype: Input should be 'fp32' or 'bf16', not 'fp8'",),
    ),
    Mistake("no source", _key("data.sources=[]"), ("data.sources: Tuple should have at least 1 item",)),
    Mistake(
        "sizes that do not divide",
        _key("views.global_px=30"),
        ("views.global_px (30) must be divisible by image.patch_size_px (14)",),
    ),
    Mistake(
        "a batch that does not divide",
        _key("resources.workers=3"),
        ("global_batch_images (4) must be divisible by resources.workers (3)",),
    ),
    Mistake(
        "a batch that does not divide between two",
        _key("global_batch_images=9", "resources.workers=2"),
        ("global_batch_images (9) must be divisible by resources.workers (2)\n",),
    ),
    Mistake(
        "a key of the sources above them",
        _key("data.columns.image=jpg"),
        ("data.columns: Extra inputs are not permitted; did you mean columns in an item of data.sources?",),
    ),
    Mistake("more mistakes than one reads", _key(*(f"k{n}=1" for n in range(100))), (*[": "] * 20, "80 more mistakes")),
    Mistake("a name with a slash", _key("name=a/b"), ("name: String should match pattern",)),
    Mistake("a teacher that is not there", _key("objective.teacher=frozen"), ("objective.teacher (frozen)",)),
    Mistake("two typos", _key("sed=1", "views.flop=1"), ("did you mean views.flip?", "did you mean seed?")),
    # Data.
    Mistake("no such folder", _key("data.sources=[{uri: /none/at/all}]"), ("/none/at/all: no file is there",)),
    Mistake("a folder of something else", _text_files, ("there is none of the format 'auto'",)),
    Mistake(
        "a range that runs backwards",
        _key("data.sources=[{uri: 'a/{00002..00000}.tar'}]"),
        ("a/{00002..00000}.tar: the range {00002..00000} runs backwards; write {00000..00002}",),
    ),
    Mistake(
        "a range of letters", _key("data.sources=[{uri: 'a/{a..c}.tar'}]"), ("{a..c} is no range; write two numbers",)
    ),
    Mistake(
        "a range without end",
        _key("data.sources=[{uri: 'a/{0..99999999999}{0..9}.tar'}]"),
        ("the braces stand for more than 1,000,000 names",),
    ),
    Mistake(
        "thousands of columns",
        _columns(
            "data.sources=[{{uri: {path}, columns: {{web_caption: legend}}}}]",
            **{f"column_{number:04d}": [0] * ROWS for number in range(3000)},
        ),
        ("there are caption, column_0000, column_0001, column_0002,",),
    ),
    Mistake("other data that are not there", _other_data_that_are_not_there, ("/none: no file is there",)),
    Mistake("a scheme we lack", _key("data.sources=[{uri: 'gs://b/x'}]"), ("gs://b/x: gs:// is not supported",)),
    Mistake(
        "no caption column",
        _columns("data.sources=[{{uri: {path}, columns: {{web_caption: legend}}}}]"),
        ("columns.web_caption is 'legend', which is not there; there are caption, image",),
    ),
    Mistake(
        "no caption column is found",
        _uncaptioned,
        ("name one of them as columns.web_caption of this source",),
    ),
    Mistake(
        "image column of paths",
        _columns(image=[f"{number}.jpg" for number in range(ROWS)]),
        ("all 5 rows of the first chunk are bad, the first since there is no such image: ",),
    ),
    Mistake("no Parquet inside", _damaged, ("this is no Parquet file, or it is cut",)),
    Mistake("data changed under an index", _changed_data, ("train.parquet changed since the data were indexed",)),
    # S3.
    Mistake(
        "endpoint does not answer",
        _source("x", AWS_ENDPOINT_URL=f"http://{NOBODY}"),
        (f"the store (http://{NOBODY}) cannot be reached; check AWS_ENDPOINT_URL",),
    ),
    Mistake(
        "endpoint without a scheme", _source("x", AWS_ENDPOINT_URL=NOBODY), ("must begin with http:// or https://",)
    ),
    Mistake(
        "wrong secret",
        _source("x", AWS_SECRET_ACCESS_KEY="wrong"),
        ("the keys do not belong together; check AWS_ACCESS_KEY_ID",),
    ),
    Mistake("unknown key id", _source("x", AWS_ACCESS_KEY_ID="nobody"), ("check AWS_ACCESS_KEY_ID",)),
    Mistake("no credentials", _no_credentials, ("no credentials were found; set AWS_ACCESS_KEY_ID",)),
    Mistake("no such bucket", _source("s3://none/x"), ("s3://none/x: the bucket does not exist",)),
    Mistake("empty bucket", _source(""), ("s3://empty: no file is there",)),
    Mistake("empty prefix", _source("train/"), ("s3://empty/train: no file is there",)),
    Mistake("no bucket in the URI", _source("s3:///x"), ("s3:///x: the bucket is missing; write s3://bucket/name",)),
    # Storage and names.
    Mistake("storage below a file", _storage_below_a_file, ("cannot be written: ",)),
    Mistake(
        "storage on a missing bucket", _storage("s3://none/runs"), ("storage (s3://none/runs) cannot be written: ",)
    ),
    Mistake("a used name with another config", _other_config, ("seed: 0 -> 7; give the run another name",)),
    # Tokenizer.
    Mistake("no such tokenizer", _tokenizer("none.json", None), ("captions.tokenizer: ",)),
    Mistake("damaged SentencePiece file", _tokenizer("t.model", b"junk"), ("this is not a SentencePiece model",)),
    Mistake("damaged tokenizers file", _tokenizer("t.json", b"{}"), ('it has no "model"',)),
    Mistake("truncated tokenizers file", _tokenizer("t.json", _large_vocabulary()[:200]), ("captions.tokenizer: ",)),
    Mistake(
        "tokenizer of another kind", _tokenizer("t.txt", b"a"), ("must be a SentencePiece .model or a tokenizers",)
    ),
    Mistake(
        "too many ids",
        _tokenizer("t.json", _large_vocabulary()),
        ("has 30 ids, text.vocab_size (20) must not be smaller: set text.vocab_size=30",),
    ),
    # Machines and servers.
    Mistake(
        "too few CPUs",
        _key(f"resources.workers={_WORKERS}", f"global_batch_images={_WORKERS}"),
        (f"resources.workers ({_WORKERS}) x cpus_per_worker (1) + data_cpus (1) need {_WORKERS + 1} CPUs",),
    ),
    Mistake(
        "too few GPUs",
        _key("resources.gpus_per_worker=999"),
        ("resources.workers (1) x gpus_per_worker (999) need 999 GPUs, this machine",),
    ),
    Mistake("no compiler", _no_compiler, ("resources.compile (true) needs a C++ compiler",)),
    Mistake(
        "more prefetch than memory", _key("data_prefetch_batches=9999999"), ("data_prefetch_batches (9999999) keeps",)
    ),
    Mistake(
        "MLflow server is down",
        _key(f"tracking.mlflow_uri=http://{NOBODY}"),
        (f"tracking.mlflow_uri (http://{NOBODY}) does not answer",),
    ),
    Mistake("Ray does not answer", _environment(RAY_ADDRESS=NOBODY), (f"RAY_ADDRESS ({NOBODY}) does not answer",)),
    Mistake(
        "address of no host",
        _environment(RAY_ADDRESS="none.invalid:6379"),
        ("RAY_ADDRESS (none.invalid:6379) does not answer",),
    ),
    Mistake(
        "address of the dashboard",
        _environment(RAY_ADDRESS=f"http://{NOBODY}"),
        ("is a dashboard's, for ray job submit",),
    ),
    Mistake("address without a port", _environment(RAY_ADDRESS="head"), ("RAY_ADDRESS (head) must be host:port",)),
    Mistake(
        "all at once",
        _key(f"tracking.mlflow_uri=http://{NOBODY}", "captions.tokenizer=none.json", "data.sources=[{uri: /none}]"),
        ("/none: no file is there", "captions.tokenizer: ", "tracking.mlflow_uri"),
    ),
    # What surrounds the process.
    Mistake("a file hides torch", _hiding("torch.py"), ("error: torch.py in the working directory (",)),
    Mistake("a file hides statistics", _hiding("statistics.py"), ("statistics.py in the working directory (",)),
    Mistake("a folder hides yaml", _hiding("yaml/__init__.py"), ("yaml/__init__.py in the working directory (",)),
    Mistake("a folder for Ray's sockets that is long", _environment(TMPDIR="/tmp/" + "x" * 90), ("TMPDIR (/tmp/xxx",)),
    Mistake("a home that cannot be written", _home_that_is_a_file, ("home) cannot be written (",)),
    Mistake("ranks that are no number", _environment(WORLD_SIZE="two"), ("WORLD_SIZE (two) must be a number: unset",)),
    Mistake(
        "ranks without a place to meet",
        _environment(WORLD_SIZE="4"),
        ("WORLD_SIZE (4) is set and RANK, MASTER_ADDR, MASTER_PORT not: unset WORLD_SIZE",),
    ),
    Mistake(
        "a proxy before the store of one's own network",
        _environment(AWS_ENDPOINT_URL="http://10.0.0.7:9000", http_proxy="http://me:word@proxy.example:3128"),
        ("would be asked through the proxy http://proxy.example:3128, which is for addresses outside: add 10.0.0.7",),
    ),
    # Other commands.
    Mistake("an index that cannot be written", _unwritable_index, ("/file/runs) cannot be written: ",)),
    Mistake("report of no run", lambda world: ["report", str(world.folder)], ("config.yaml: there is no such file",)),
    Mistake(
        "index of no data",
        lambda world: ["index", world.config(), "data.sources=[{uri: /none}]"],
        ("/none: no file is there",),
    ),
)
