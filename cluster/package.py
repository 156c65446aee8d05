"""The files that travel with a command to a cluster: what it names and what the user adds, never data or keys."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tips_ray.errors import Faults, listed
from tips_ray.words import bytes_text

MOST_BYTES = 100 << 20
"""Ray keeps packages in the head's memory, and takes half a gigabyte at most."""
MOST_SCANNED_BYTES = 1 << 20
LARGEST_SHOWN = 5
ENVIRONMENTS = {".git", ".venv", "venv", "env", "node_modules", "__pycache__", ".tox", ".pixi", ".mypy_cache",
                ".ruff_cache", ".pytest_cache", "mlruns"}  # fmt: skip
DATA = {".parquet", ".tar", ".arrow", ".npz", ".npy", ".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".h5", ".db",
        ".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".gz", ".zst", ".zip", ".mp4", ".sqlite"}  # fmt: skip
KEY_NAMES = re.compile(
    r".*\.env|\.env(\..*|rc)|.*\.(pem|key|p12|pfx|kdbx)|id_(rsa|dsa|ecdsa|ed25519)|\.netrc|\.pgpass|\.htpasswd"
    r"|.*credentials.*|.*_password|secrets?|auth_token|kubeconfig|.*\.kubeconfig|\.(aws|ssh|kube|ray|docker)"
)
KEY_TEXTS = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY-----|\b(AKIA|ASIA)[0-9A-Z]{16}\b|\bhf_[A-Za-z0-9]{30,}\b"
    rb"|\bgh[pousr]_[A-Za-z0-9]{36}|\bgithub_pat_\w{20}|\bglpat-[\w-]{20}|\bsk-[A-Za-z0-9_-]{20}|://[^/@\s'\"]*:[^/@\s'\"]+@"
    rb"|(?i:aws_secret_access_key[\"']?\s*[=:]\s*[^\s$<{]{8})"
)
"""Private keys, keys of AWS, tokens of Hugging Face, GitHub, GitLab and OpenAI, URLs with a password."""
NEVER = {".rayignore", ".gitignore"}
"""Files that Ray itself obeys; the package is chosen already."""


class Package(NamedTuple):
    """Files by their path in the package, and what was left out, in words."""

    files: dict[str, Path]
    left_out: list[str]

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())

    def lines(self) -> Iterator[str]:
        """Number and size of the files, the largest of them, and what was left out."""
        yield f"{'package':10} {len(self.files)} files, {bytes_text(self.bytes)}"
        largest = sorted(self.files.items(), key=lambda file: -file[1].stat().st_size)
        for name, path in largest[:LARGEST_SHOWN]:
            yield f"{'':10} {bytes_text(path.stat().st_size):>10}  {name}"
        if self.left_out:
            yield f"{'':10} left out: {listed(self.left_out)}"

    def write(self, folder: Path) -> None:
        """Copy the files to their places below `folder`: what later changes here does not change what travels."""
        for name, path in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / name)


def package(named: Iterable[Path], added: Sequence[Path], without: Sequence[Path] = ()) -> Package:
    """
    Args:
        named: files that the command and its configs name, below the working directory.
        added: files and folders that the user wants to travel.
        without: files and folders that do not.

    Raises:
        Faults: a file holds a key or lies outside of the working directory, or all together are too large.
    """
    left_out: list[str] = []
    files = {_place(path): path for path in named}
    for path in added:
        if not path.exists():
            raise ValueError(f"--with {path}: there is no such file or folder")
        inside = _below(path, left_out) if path.is_dir() else [path]
        files |= {_place(file): file for file in inside}
    unwanted = [_place(path) for path in without]
    kept = {name: path for name, path in files.items() if not any(f"{name}/".startswith(f"{no}/") for no in unwanted)}
    found = Package(dict(sorted(kept.items())), left_out)
    _require_readable(found)
    if found.bytes > MOST_BYTES:
        largest = max(found.files, key=lambda name: found.files[name].stat().st_size)
        raise ValueError(
            f"the package has {bytes_text(found.bytes)}, the largest file is {largest}; a cluster takes "
            f"{bytes_text(MOST_BYTES)}: put large files into the object store and name them by s3://"
        )
    return found


def _require_readable(found: Package) -> None:
    """
    Raises:
        Faults: files hold keys, cannot be read, or have names that are no UTF-8.
    """
    faults = []
    for name, path in found.files.items():
        try:
            name.encode()
            if _is_secret(path):
                faults.append(
                    f"{name} holds a key or a password, or is named like one; everyone on the cluster could read it: "
                    "take it out and give it to the nodes by their environment or an account of the cloud; if it is "
                    f"none, --without {name}"
                )
        except UnicodeEncodeError:
            faults.append(f"{name!r} has a name that is no UTF-8; rename it, or leave it out: --without")
        except OSError as error:
            faults.append(f"{name} cannot be read ({error.strerror}); mend it, or leave it out: --without {name}")
    if faults:
        raise Faults(faults)


def require_no_password(words: Sequence[str]) -> None:
    """
    Raises:
        ValueError: a word holds a key or a password, which the list of jobs would show.
    """
    for word in words:
        if KEY_TEXTS.search(os.fsencode(word)):
            raise ValueError(
                f"{word.partition('=')[0]} holds a key or a password, and everyone on the cluster could read it: leave "
                "it out and give it to the nodes by their environment"
            )


def named_files(words: Iterable[str]) -> list[Path]:
    """The local files among words of a command: those of its configs, and of overrides `KEY=FILE`.

    Raises:
        ValueError: a file is named by its whole path, which the cluster does not have.
    """
    texts = [part for word in words for part in (word, word.partition("=")[2])]
    found = [Path(text) for text in dict.fromkeys(texts) if text and _is(text, Path.is_file)]
    if whole := [path for path in found if path.is_absolute() and _is_below_here(path)]:
        raise ValueError(f"{whole[0]} is another path on the cluster; write it relative to this folder")
    return found


def _is_below_here(path: Path) -> bool:
    place = os.path.relpath(os.path.abspath(path), Path.cwd())
    return place != ".." and not place.startswith("../")


def named_folders(words: Iterable[str]) -> list[str]:
    """The local folders among words of a command."""
    return [word for word in words if _is(word, Path.is_dir)]


def _is(text: str, kind: Callable[[Path], bool]) -> bool:
    try:
        return kind(Path(text))
    except (OSError, ValueError):  # too long for a name, or with a zero byte
        return False


def _place(path: Path) -> str:
    """Path in the package, which is the same as from the working directory, so that the command stays as it is."""
    if not _is_below_here(path):
        raise ValueError(f"{path} lies outside of this folder; change to a folder above it, or copy it here")
    return Path(os.path.relpath(os.path.abspath(path), Path.cwd())).as_posix()


def _below(folder: Path, left_out: list[str]) -> Iterator[Path]:
    """Files of a folder without environments, data and keys; where git is, without what it ignores."""
    ignored = _ignored_by_git(folder)
    data: list[Path] = []
    for place, folders, names in os.walk(folder):
        here = Path(place)
        is_left = {name: _is_left_out(here / name) or (here / name).resolve() in ignored for name in folders}
        left_out += [f"{here / name}/" for name in sorted(folders) if is_left[name] and name != "__pycache__"]
        folders[:] = sorted(name for name in folders if not is_left[name])
        for path in sorted(here / name for name in names):
            is_unfit = not path.is_file() or path.is_symlink() or not os.access(path, os.R_OK)
            if path.suffix.lower() in DATA and path.is_file():
                data.append(path)
            elif is_unfit or KEY_NAMES.fullmatch(path.name) or path.resolve() in ignored:
                left_out.append(str(path))
            elif path.name not in NEVER:
                yield path
    if data:
        left_out.append(f"{len(data)} data files of {folder} ({bytes_text(sum(path.stat().st_size for path in data))})")


def _is_left_out(folder: Path) -> bool:
    is_key = KEY_NAMES.fullmatch(folder.name) is not None or folder.is_symlink()
    return is_key or folder.name in ENVIRONMENTS or (folder / "pyvenv.cfg").exists() or folder.suffix == ".egg-info"


def _ignored_by_git(folder: Path) -> set[Path]:
    command = ["git", "-C", str(folder), "ls-files", "--others", "--ignored", "--exclude-standard", "--directory", "-z"]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):  # no git, or no repository
        return set()
    return {(folder / os.fsdecode(name)).resolve() for name in done.stdout.split(b"\0") if name}


def _is_secret(path: Path) -> bool:
    with path.open("rb") as file:
        content = file.read(MOST_SCANNED_BYTES)
    token = os.environ.get("RAY_AUTH_TOKEN", "").encode()
    is_named = KEY_NAMES.fullmatch(path.name) is not None
    return is_named or KEY_TEXTS.search(content) is not None or bool(token and token in content)
