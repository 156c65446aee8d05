"""What users get wrong, each with the words that must stand in the one line they get."""

import os
from collections.abc import Callable
from typing import NamedTuple

from bad_input.world import (
    NOBODY,
    ROWS,
    World,
    changed_data,
    config_file,
    damaged,
    data_with,
    environment,
    hiding,
    home_that_is_a_file,
    keys,
    large_vocabulary,
    no_compiler,
    no_credentials,
    other_config,
    other_data_that_are_not_there,
    source,
    storage_at,
    storage_below_a_file,
    text_files,
    tokenizer,
    uncaptioned,
    unwritable_index,
)
from writers import jpeg


class Mistake(NamedTuple):
    """A mistake: the command line it leads to, and words of each error line."""

    name: str
    make: Callable[[World], list[str]]
    words: tuple[str, ...]


_CORES = os.cpu_count() or 1
_WORKERS = 64 * _CORES

CATALOGUE = (
    # The command line and the file.
    Mistake("no such command", lambda world: ["pretrian"], ("invalid choice: 'pretrian'",)),
    Mistake("no config is given", lambda world: ["pretrain"], ("required: RUN.yaml (see",)),
    Mistake("no such config", lambda world: ["pretrain", "none.yaml"], ("none.yaml: there is no such file",)),
    Mistake("the config is a folder", lambda world: ["pretrain", str(world.folder)], ("Is a directory",)),
    Mistake("the config is a picture", config_file(jpeg()), ("run.yaml: cannot be read as text (it is not UTF-8)",)),
    Mistake("the config is no mapping", config_file("- a\n- b\n"), ("run.yaml: holds a list, a config is a mapping",)),
    Mistake("the YAML is broken", config_file("name: run\ndata: [\n"), ("run.yaml line 3: ",)),
    Mistake("the config of another command", config_file("captioner: {}\nprompt: x\n"), ("keys (captioner, prompt)",)),
    Mistake(
        "a block is given twice",
        config_file("name: run\nschedule: {total_steps: 10}\n\nschedule:\n  peak_lr: 1e-3\n"),
        ("run.yaml line 4: the key 'schedule' is given twice (lines 2 and 4), and only the last would count; correct",),
    ),
    Mistake(
        "a key is given twice inside",
        config_file("data:\n  sources:\n    - uri: a\n      uri: b\n"),
        ("run.yaml line 4: the key 'uri' is given twice (lines 3 and 4)",),
    ),
    Mistake(
        "a key is given twice in an override",
        keys("data.sources=[{uri: a, uri: b}]"),
        ("line 1: the key 'uri' is given twice, and only the last would count",),
    ),
    Mistake(
        "a date that does not exist", config_file("name: 2024-13-45\n"), ("run.yaml: a value in it cannot be read",)
    ),
    Mistake("YAML nested too deeply", config_file("name: " + "[" * 3000), ("run.yaml: it is nested too deeply",)),
    Mistake("override without a value", keys("seed"), ("override 'seed' is not of the form dotted.key=value",)),
    Mistake("override of broken YAML", keys("data=["), ("override 'data=[' line 1: ",)),
    Mistake(
        "override inside a list", keys("data.sources.uri=x"), ("override data.sources.uri: data.sources is a list",)
    ),
    # Keys and values.
    Mistake(
        "a typo",
        keys("schedule.peak_Ir=1"),
        ("schedule.peak_Ir: Extra inputs are not permitted; did you mean schedule.peak_lr?",),
    ),
    Mistake(
        "a key in the wrong place",
        keys("peak_lr=1"),
        ("peak_lr: Extra inputs are not permitted; did you mean schedule.peak_lr?",),
    ),
    Mistake(
        "an unknown key", keys("views.xyz=1"), ("views.xyz: Extra inputs are not permitted; there are global_px, ",)
    ),
    Mistake(
        "a missing key",
        config_file("name: run\nglobal_batch_images: 4\n"),
        ("image: Field required", "text: Field required", "data: Field required"),
    ),
    Mistake(
        "a wrong type",
        keys("schedule.peak_lr=fast"),
        ("schedule.peak_lr: Input should be a valid number, unable to parse string as a number, not 'fast'",),
    ),
    Mistake(
        "a value out of range",
        keys("schedule.total_steps=0"),
        ("schedule.total_steps: Input should be greater than 0, not 0",),
    ),
    Mistake(
        "an unknown choice",
        keys("resources.dtype=fp8"),
        ("resources.dtype: Input should be 'auto', 'fp32' or 'bf16', not 'fp8'",),
    ),
    Mistake("no source", keys("data.sources=[]"), ("data.sources: Tuple should have at least 1 item",)),
    Mistake(
        "sizes that do not divide",
        keys("views.global_px=30"),
        ("views.global_px (30) must be divisible by image.patch_size_px (14)",),
    ),
    Mistake(
        "a batch that does not divide",
        keys("resources.workers=3"),
        ("global_batch_images (4) must be divisible by resources.workers (3)",),
    ),
    Mistake(
        "a batch that does not divide between two",
        keys("global_batch_images=9", "resources.workers=2"),
        ("global_batch_images (9) must be divisible by resources.workers (2)\n",),
    ),
    Mistake(
        "a key of the sources above them",
        keys("data.columns.image=jpg"),
        ("data.columns: Extra inputs are not permitted; did you mean columns in an item of data.sources?",),
    ),
    Mistake("more mistakes than one reads", keys(*(f"k{n}=1" for n in range(100))), (*[": "] * 20, "80 more mistakes")),
    Mistake("an override without a key", keys("=5"), ("override '=5' is not of the form dotted.key=value",)),
    Mistake("an override that begins with a dot", keys(".seed=5"), ("'.seed=5' is not of the form dotted.key=value",)),
    Mistake(
        "no kind of micro-batch",
        keys("micro_batch_images=-1"),
        ("micro_batch_images: Input should be greater than 0, or Input should be 'auto', not -1",),
    ),
    Mistake("no list", keys("data.sources=a"), ("data.sources: Input should be a list, not 'a'",)),
    Mistake(
        "local crops above global ones",
        keys("views.global_px=14", "views.local_px=28"),
        ("views.local_px (28) is above views.global_px (14)",),
    ),
    Mistake(
        "S3 in capitals", keys("storage=S3://bucket/x"), ("S3://bucket/x looks like an object of S3; write s3://",)
    ),
    Mistake(
        "S3 with one slash", keys("storage=s3:/bucket/x"), ("s3:/bucket/x looks like an object of S3; write s3://",)
    ),
    Mistake("a variable of the shell", keys("storage=$HOME/x"), ("$HOME/x: variables are not replaced here; write",)),
    Mistake(
        "no run to replay", lambda world: ["replay", str(world.folder)], ("is no run folder: it has no config.yaml",)
    ),
    Mistake(
        "nothing to export",
        lambda world: ["export", f"{world.folder}/none", "--to", "timm", f"{world.folder}/out"],
        ("/none): there is neither a run folder",),
    ),
    Mistake("a name with a slash", keys("name=a/b"), ("name: String should match pattern",)),
    Mistake("a teacher that is not there", keys("objective.teacher=frozen"), ("objective.teacher (frozen)",)),
    Mistake("two typos", keys("sed=1", "views.flop=1"), ("did you mean views.flip?", "did you mean seed?")),
    # Data.
    Mistake("no such folder", keys("data.sources=[{uri: /none/at/all}]"), ("/none/at/all: no file is there",)),
    Mistake("a folder of something else", text_files, ("there is none of the format 'auto'",)),
    Mistake(
        "a range that runs backwards",
        keys("data.sources=[{uri: 'a/{00002..00000}.tar'}]"),
        ("a/{00002..00000}.tar: the range {00002..00000} runs backwards; write {00000..00002}",),
    ),
    Mistake(
        "a range of letters", keys("data.sources=[{uri: 'a/{a..c}.tar'}]"), ("{a..c} is no range; write two numbers",)
    ),
    Mistake(
        "a range without end",
        keys("data.sources=[{uri: 'a/{0..99999999999}{0..9}.tar'}]"),
        ("the braces stand for more than 1,000,000 names",),
    ),
    Mistake(
        "thousands of columns",
        data_with(
            "data.sources=[{{uri: {path}, columns: {{web_caption: legend}}}}]",
            **{f"column_{number:04d}": [0] * ROWS for number in range(3000)},
        ),
        ("there are caption, column_0000, column_0001, column_0002,",),
    ),
    Mistake("other data that are not there", other_data_that_are_not_there, ("/none: no file is there",)),
    Mistake("a scheme we lack", keys("data.sources=[{uri: 'gs://b/x'}]"), ("gs://b/x: gs:// is not supported",)),
    Mistake(
        "no caption column",
        data_with("data.sources=[{{uri: {path}, columns: {{web_caption: legend}}}}]"),
        ("columns.web_caption is 'legend', which is not there; there are caption, image",),
    ),
    Mistake(
        "no caption column is found",
        uncaptioned,
        ("name one of them as columns.web_caption of this source",),
    ),
    Mistake(
        "image column of paths",
        data_with(image=[f"{number}.jpg" for number in range(ROWS)]),
        ("all 5 rows of the first chunk are bad, the first since there is no such image: ",),
    ),
    Mistake("no Parquet inside", damaged, ("this is no Parquet file, or it is cut",)),
    Mistake("data changed under an index", changed_data, ("train.parquet changed since the data were indexed",)),
    # S3.
    Mistake(
        "endpoint does not answer",
        source("x", AWS_ENDPOINT_URL=f"http://{NOBODY}"),
        (f"the store (http://{NOBODY}) cannot be reached; check AWS_ENDPOINT_URL",),
    ),
    Mistake(
        "endpoint without a scheme", source("x", AWS_ENDPOINT_URL=NOBODY), ("must begin with http:// or https://",)
    ),
    Mistake(
        "wrong secret",
        source("x", AWS_SECRET_ACCESS_KEY="wrong"),
        ("the keys do not belong together; check AWS_ACCESS_KEY_ID",),
    ),
    Mistake("unknown key id", source("x", AWS_ACCESS_KEY_ID="nobody"), ("check AWS_ACCESS_KEY_ID",)),
    Mistake("no credentials", no_credentials, ("no credentials were found; set AWS_ACCESS_KEY_ID",)),
    Mistake("no such bucket", source("s3://none/x"), ("s3://none/x: the bucket does not exist",)),
    Mistake("empty bucket", source(""), ("s3://empty: no file is there",)),
    Mistake("empty prefix", source("train/"), ("s3://empty/train: no file is there",)),
    Mistake("no bucket in the URI", source("s3:///x"), ("s3:///x: the bucket is missing; write s3://bucket/name",)),
    # Storage and names.
    Mistake("storage below a file", storage_below_a_file, ("cannot be written: ",)),
    Mistake(
        "storage on a missing bucket", storage_at("s3://none/runs"), ("storage (s3://none/runs) cannot be written: ",)
    ),
    Mistake("a used name with another config", other_config, ("seed: 0 -> 7; give the run another name",)),
    # Tokenizer.
    Mistake("no such tokenizer", tokenizer("none.json", None), ("captions.tokenizer: ",)),
    Mistake("damaged SentencePiece file", tokenizer("t.model", b"junk"), ("this is not a SentencePiece model",)),
    Mistake("damaged tokenizers file", tokenizer("t.json", b"{}"), ('it has no "model"',)),
    Mistake("truncated tokenizers file", tokenizer("t.json", large_vocabulary()[:200]), ("captions.tokenizer: ",)),
    Mistake("tokenizer of another kind", tokenizer("t.txt", b"a"), ("must be a SentencePiece .model or a tokenizers",)),
    Mistake(
        "too many ids",
        tokenizer("t.json", large_vocabulary()),
        ("has 30 ids, text.vocab_size (20) must not be smaller: set text.vocab_size=30",),
    ),
    # Machines and servers.
    Mistake(
        "too few CPUs",
        keys(f"resources.workers={_WORKERS}", f"global_batch_images={_WORKERS}"),
        (f"resources.workers ({_WORKERS}) x cpus_per_worker (1) + data_cpus (1) need {_WORKERS + 1} CPUs",),
    ),
    Mistake(
        "too few GPUs",
        keys("resources.gpus_per_worker=999"),
        ("resources.workers (1) x gpus_per_worker (999) need 999 GPUs, this machine",),
    ),
    Mistake("no compiler", no_compiler, ("resources.compile (true) needs a C++ compiler",)),
    Mistake(
        "more prefetch than memory", keys("data_prefetch_batches=9999999"), ("data_prefetch_batches (9999999) keeps",)
    ),
    Mistake(
        "MLflow server is down",
        keys(f"tracking.mlflow_uri=http://{NOBODY}"),
        (f"tracking.mlflow_uri (http://{NOBODY}) does not answer",),
    ),
    Mistake("Ray does not answer", environment(RAY_ADDRESS=NOBODY), (f"RAY_ADDRESS ({NOBODY}) does not answer",)),
    Mistake(
        "address of no host",
        environment(RAY_ADDRESS="none.invalid:6379"),
        ("RAY_ADDRESS (none.invalid:6379) does not answer",),
    ),
    Mistake(
        "address of the dashboard",
        environment(RAY_ADDRESS=f"http://{NOBODY}"),
        ("is a dashboard's, for ray job submit",),
    ),
    Mistake("address without a port", environment(RAY_ADDRESS="head"), ("RAY_ADDRESS (head) must be host:port",)),
    Mistake(
        "all at once",
        keys(f"tracking.mlflow_uri=http://{NOBODY}", "captions.tokenizer=none.json", "data.sources=[{uri: /none}]"),
        ("/none: no file is there", "captions.tokenizer: ", "tracking.mlflow_uri"),
    ),
    # What surrounds the process.
    Mistake("a file hides torch", hiding("torch.py"), ("error: torch.py in the working directory (",)),
    Mistake("a file hides statistics", hiding("statistics.py"), ("statistics.py in the working directory (",)),
    Mistake("a folder hides yaml", hiding("yaml/__init__.py"), ("yaml/__init__.py in the working directory (",)),
    Mistake("a folder for Ray's sockets that is long", environment(TMPDIR="/tmp/" + "x" * 90), ("TMPDIR (/tmp/xxx",)),
    Mistake("a home that cannot be written", home_that_is_a_file, ("home) cannot be written (",)),
    Mistake("ranks that are no number", environment(WORLD_SIZE="two"), ("WORLD_SIZE (two) must be a number: unset",)),
    Mistake(
        "ranks without a place to meet",
        environment(WORLD_SIZE="4"),
        ("WORLD_SIZE (4) is set and RANK, MASTER_ADDR, MASTER_PORT not: unset WORLD_SIZE",),
    ),
    Mistake(
        "a proxy before the store of one's own network",
        environment(AWS_ENDPOINT_URL="http://me:word@10.0.0.7:9000", http_proxy="http://me:word@proxy.example:3128"),
        (
            "AWS_ENDPOINT_URL (http://10.0.0.7:9000) would be asked through the proxy "
            "http://proxy.example:3128, which is for addresses outside: add 10.0.0.7",
        ),
    ),
    # Other commands.
    Mistake("an index that cannot be written", unwritable_index, ("/file/runs) cannot be written: ",)),
    Mistake("report of no run", lambda world: ["report", str(world.folder)], ("config.yaml: there is no such file",)),
    Mistake(
        "index of no data",
        lambda world: ["index", world.config(), "data.sources=[{uri: /none}]"],
        ("/none: no file is there",),
    ),
)
