"""A captioner's files on this machine, from the hub, a folder or s3://, and their fingerprint."""

import fcntl
import hashlib
import json
import os
import re
import shutil
from functools import lru_cache
from pathlib import Path

from tips_ray import storage
from tips_ray.config.captions import CaptionerConfig

SUFFIXES = (".json", ".safetensors", ".model", ".jinja")
"""Files that a model consists of; pickled weights are not read."""
VERSION = 1
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def model_folder(config: CaptionerConfig) -> Path:
    """The local folder with the model's files; what is remote is fetched first, once per machine.

    Raises:
        ValueError: there is no such model, or it cannot be fetched; the message says how to get it.
    """
    if config.model.startswith("s3://"):
        return _from_storage(config.model)
    folder = Path(storage.resolved(config.model))
    if folder.is_dir():
        return folder
    if not _HUB_NAME.fullmatch(config.model):
        raise ValueError(f"model ({config.model}): there is no such folder; give a folder, s3:// or a name on the hub")
    return _from_hub(config)


def fingerprint(config: CaptionerConfig, folder: Path) -> str:
    """Name under which captions are kept: sha256 of all that can change a text, in hexadecimal digits.

    The files' content and not the model's name counts, so a copy of a model is the same captioner. Device and number
    of rows at a time are left out: they change rounding only.
    """
    return hashlib.sha256(json.dumps(description(config, folder)["decides"], sort_keys=True).encode()).hexdigest()


def description(config: CaptionerConfig, folder: Path) -> dict:
    """Content of `captioner.json`: `decides`, which the fingerprint hashes, and the whole config."""
    settings = config.model_dump(mode="json", exclude={"model", "revision", "device", "batch_images"})
    decides = {"version": VERSION, "model_sha256": content_sha256(folder), **settings}
    return {"decides": decides, "config": config.model_dump(mode="json")}


def content_sha256(folder: Path) -> str:
    """Hash of the names and contents of a model's files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and not path.name.startswith(".")):
        found = path.stat()
        digest.update(f"{path.name}\0{_file_sha256(path, found.st_size, found.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


@lru_cache(maxsize=256)
def _file_sha256(path: Path, size: int, modified_ns: int) -> str:
    """Hash of one file, read once per process unless the file changes: weights have gigabytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_storage(uri: str) -> Path:
    """A copy in the user's cache, named by names, sizes and ETags of the objects; one process at a time makes it."""
    files = [file for file in storage.list_files(uri) if file.uri.endswith(SUFFIXES)]
    listing = [(file.uri.rsplit("/", 1)[1], file.bytes, file.etag) for file in files]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tips_ray" / "captioners"
    folder = cache / hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:32]
    cache.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            for file in files:
                storage.download(file.uri, partial / file.uri.rsplit("/", 1)[1])
            partial.rename(folder)
    return folder


def _from_hub(config: CaptionerConfig) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    patterns = [f"*{suffix}" for suffix in SUFFIXES]
    try:
        return Path(snapshot_download(config.model, revision=config.revision, allow_patterns=patterns))
    except GatedRepoError:
        cure = "accept its licence on the hub and set HF_TOKEN, or give a folder or s3:// with its files"
        raise ValueError(f"model ({config.model}): the hub wants to know who asks; {cure}") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(
            f"model ({config.model}): there is no such folder, and the hub does not give it ({reason}); correct the "
            "name or the revision, or give a folder or s3:// with its files"
        ) from None
