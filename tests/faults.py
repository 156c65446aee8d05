"""Faults in a copy of the code, one at a time, by hand: `python tests/faults.py`. At most 90 seconds each.

Each fault breaks, in one line, something that the design promises. The tests of its module should fail; a fault that
survives shows what none of them looks at. No fault is a matter of taste: each changes what a user or a test can see.
"""

import argparse
import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, NamedTuple

from processes import adopt_orphans, family, reap

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
TABLE = r"""
train/step.py centre-of-one-rank
    weighted_total(terms, objective)}, _over_ranks(sums) ==> weighted_total(terms, objective)}, sums
train/step.py temperature-moved-by-every-micro-batch
    slope * (index == 0) ==> slope
train/step.py rate-one-step-late
    learning_rate(state.step, config.schedule) ==> learning_rate(max(state.step - 1, 0), config.schedule)
train/step.py mean-over-one-micro-batch
    torch.stack([batch.valid_B.sum() for batch in micro_batches]).sum() ==> micro_batches[0].valid_B.sum()
train/step.py average-after-the-first-micro-batch
    _expect_backward(state, batch is micro_batches[-1], ==> _expect_backward(state, batch is micro_batches[0],
train/step.py clipped-by-the-norm-of-one-parameter
    clip_grad_norm_(state.student.parameters(), ==> clip_grad_norm_(next(state.student.parameters()),
train/state.py momentum-on-the-student
    for name in names], 1 - momentum ==> for name in names], momentum
train/schedules.py warm-up-off-by-one
    config.peak_lr * (step + 1) / config.warmup_steps ==> config.peak_lr * step / config.warmup_steps
train/optim.py biases-decay
    return parameter.ndim >= 2 and ==> return parameter.ndim >= 1 and
train/loop.py graceful-stop-without-save
    is_saved = is_agreed or step == ==> is_saved = step ==
train/loop.py bad-rows-judged-at-saves-only
    if bad_rows.are_too_many(state.step): ==> if is_saved and bad_rows.are_too_many(state.step):
train/checkpointing.py skipped-steps-not-restored
    checkpoint.manifest["skipped_steps"] ==> 0
train/graceful_stop.py stop-once-all-ranks-are-asked
    means["asked"] > 0 ==> means["asked"] >= 1
train/adapter.py workers-that-do-not-divide-the-batch
    in self.config.worker_counts if count ==> in range(1, self.config.resources.workers + 1) if count
train/adapter.py graceful-stop-counts-as-failure
    is_counted = not reason and not ==> is_counted = not
data/order.py sample-key-without-pass
    return _keys(seed, pass_N, sample_id_N).view(np.int64) ==> return _keys(seed, sample_id_N).view(np.int64)
data/order.py window-shuffle-without-epoch
    permutation(len(row_N), self.seed, _ROWS, epoch, inside) ==> permutation(len(row_N), self.seed, _ROWS, inside)
data/order.py rest-of-a-share-lost
    return floor(epoch * self._quota[source]) ==> return epoch * floor(self._quota[source])
data/views.py image-of-a-bad-row-stays
    columns["global_crops"][place] = columns["local_crops"][place] = 0 ==> columns["local_crops"][place] = 0
data/augment.py wider-crop-ratio
    = (3 / 4, 4 / 3), ==> = (1 / 2, 2 / 1),
data/augment.py visible-share-masked
    order_BL[:, : round(ratio * num_patches)] ==> order_BL[:, : round((1 - ratio) * num_patches)]
data/augment.py flip-follows-the-place
    return draws[-1] < probability ==> return draws[-2] < probability
data/collate.py captions-cut-at-a-multiple
    -(-longest // _TOKEN_MULTIPLE) * _TOKEN_MULTIPLE ==> max(longest // _TOKEN_MULTIPLE, 1) * _TOKEN_MULTIPLE
data/local_stream.py rows-of-rank-0-for-all
    // config.images_per_pass % ranks == rank ==> // config.images_per_pass % ranks == 0
data/index.py shard-of-equal-size-is-unchanged
    [shard.path, shard.format, shard.bytes, shard.etag] ==> [shard.path, shard.format, shard.bytes, ""]
data/sources/content.py end-of-a-shard-is-not-looked-at
    file.bytes - BLOCK_BYTES, file.bytes ==> 0, BLOCK_BYTES
data/index_folder.py moved-data-are-not-compared
    if found.fingerprint != named.fingerprint: ==> if False:
runs/run.py other-data-are-taken
    known and known not in (fingerprint, earlier) ==> False
data/captions/store.py captions-overwritten
    created = storage.create_bytes(place, ==> created = True; storage.write_bytes(place,
data/captions/store.py reader-overtaken-by-compaction
    (group, place, group) ==> (group, place)
data/captions/join.py captions-of-another-image
    and not error and made != own: ==> and not error and not made:
data/captions/join.py missing-captions-ignored
    if len(found) == len(chunks): ==> if found:
losses/contrastive.py targets-of-rank-0-for-all
    rank() * len(valid_B) + torch.arange( ==> torch.arange(
losses/reduction.py invalid-images-weigh
    return valid_B.to(dtype) / count ==> return torch.ones_like(valid_B, dtype=dtype) / count
losses/prototypes.py temperature-multiplies
    F.linear(rows_CD / temperature, ==> F.linear(rows_CD * temperature,
losses/prototypes.py gradient-of-the-last-chunk-alone
    torch.addmm(grad_KD, slope_PK.T, ==> torch.addmm(grad_KD * 0, slope_PK.T,
objective.py beta-for-alpha
    "distillation": config.alpha, ==> "distillation": config.beta,
checkpoint_io.py commit-before-the-upload-has-ended
    storage.keep_trying(lambda: storage.upload ==> futures.ThreadPoolExecutor(1).submit(lambda _: storage.upload
checkpoint_io.py saved-while-it-changes
    staged = self._stager.stage(tree) ==> staged = tree
runs/checkpoint.py newest-is-oldest
    in reversed(list_checkpoints(checkpoints_uri)): ==> in list_checkpoints(checkpoints_uri):
runs/checkpoint.py damage-mark-ignored
    if manifest and "damaged" not in manifest: ==> if manifest:
runs/folder.py config-not-compared-on-resume
    if refused: ==> if refused and step == 0:
launch/supervisor.py old-failures-end-the-run
    event["time"] > since ==> event["time"] < since
launch/checks.py past-changes-of-the-schedule-allowed
    config_changes(given, found[-1].step if found else 0) ==> config_changes(given, 0)
"""
"""Of each fault: file below `tips_ray/` and name; text of one line, found once in the file, and what replaces it."""


class Fault(NamedTuple):
    """A fault in one line of a file, whose path is below the root."""

    name: str
    file: str
    old: str
    new: str


class Outcome(NamedTuple):
    """What the tests said about a fault."""

    name: str
    result: str
    """caught, survived or time out; unsure: the failing test also fails without the fault."""
    test: str
    seconds: float


def faults_of(table: str) -> list[Fault]:
    """The faults of a table like `TABLE`.

    Raises:
        SystemExit: an old text does not occur exactly once in its file; all of them are named.
    """
    lines = table.strip().splitlines()
    parts = [(head.split(), line.strip().split(" ==> ")) for head, line in zip(lines[::2], lines[1::2], strict=True)]
    faults = [Fault(name, f"tips_ray/{file}", old, new) for (file, name), (old, new) in parts]
    counts = [(ROOT / fault.file).read_text().count(fault.old) for fault in faults]
    wrong = [(fault, count) for fault, count in zip(faults, counts, strict=True) if count != 1]
    if wrong:
        sys.exit("\n".join(f"{fault.name}: {fault.file} has {count} times {fault.old}" for fault, count in wrong))
    return faults


def test_files(file: str) -> tuple[list[str], list[str]]:
    """Test files below the root, those without heavy tests first: a module's own, and those that import helpers.

    A module's own tests import it, or have its name, or import a package that re-exports it; where there are none,
    those of the modules that import it. Helpers are files of `tests/` that do the same.
    """
    files, name, users, own = sorted(TESTS.rglob("*.py")), f"test_{Path(file).stem}", {ROOT / file}, set[Path]()
    while not own:
        users |= {package for path in users if _imports(package := path.parent / "__init__.py", users)}
        own = {test for test in files if _imports(test, users) or test.stem == name}
        users |= {user for user in (ROOT / "tips_ray").rglob("*.py") if _imports(user, users)}
    found = set(own)
    while more := {test for test in files if _imports(test, {path for path in found if not _is_test(path)})} - found:
        found |= more
    return _quickest_first(own), _quickest_first(found - own)


def _imports(path: Path, wanted: set[Path]) -> bool:
    return not wanted.isdisjoint(_imported(path))


@cache
def _imported(path: Path) -> frozenset[Path]:
    """Files of the tree that a file imports, and those of which it imports a name."""
    nodes = list(ast.walk(ast.parse(path.read_text()))) if path.exists() else []
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    places = [folder / name.replace(".", "/") for name in names for folder in (ROOT, TESTS, path.parent)]
    files = [place for path in places for place in (path.with_suffix(".py"), path / "__init__.py")]
    return frozenset(place for place in files if place.exists())


def _is_test(path: Path) -> bool:
    return path.name.startswith("test_")


def _quickest_first(files: set[Path]) -> list[str]:
    tests = sorted(filter(_is_test, files), key=lambda path: ("mark.heavy" in path.read_text(), path))
    return [str(path.relative_to(ROOT)) for path in tests]


class Copy:
    """A copy of the tree, in which the tests of one fault run for at most `seconds`."""

    def __init__(self, place: Path, markers: str, seconds: float) -> None:
        self.root, self.temporary, self.markers, self.seconds = place / "tree", place / "tmp", markers, seconds
        self.temporary.mkdir()
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for name in filter(None, listed.split("\0")):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, self.root / name)

    def tried(self, fault: Fault, is_confirmed: bool) -> Outcome:
        """Put the fault in, run its tests, take it out; then, if asked, run the failing test without it."""
        started, path = time.monotonic(), self.root / fault.file
        path.write_text(path.read_text().replace(fault.old, fault.new))
        try:
            own, others = test_files(fault.file)
            parts = [(f"not heavy and {self.markers}", own), (f"heavy and {self.markers}", own), (self.markers, others)]
            result, test = "survived", ""
            while parts and result == "survived":
                result, test = self._ran(*parts.pop(0), self.seconds - (time.monotonic() - started))
        finally:
            shutil.copy2(ROOT / fault.file, path)
        seconds = round(time.monotonic() - started, 1)
        if result == "caught" and is_confirmed and self._ran(self.markers, [test], self.seconds)[0] != "survived":
            result = "unsure"
        return Outcome(fault.name, result, test, seconds)

    def _ran(self, markers: str, tests: Sequence[str], seconds: float) -> tuple[str, str]:
        """Result, and the first failing test, or the one that ran when the time was over.

        Raises:
            RuntimeError: pytest itself failed.
        """
        with tempfile.TemporaryFile("w+") as output:
            code = self._code(["-m", markers, *tests], seconds, output) if tests else 0
            output.seek(0)
            text = output.read()
        if code not in (None, 0, 1, 2, 5):
            raise RuntimeError(f"pytest ended with {code}:\n{text[-3000:]}")
        if code is None:
            return "time out", (text.splitlines() or [""])[-1].strip()
        failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", text, re.MULTILINE)
        return "caught" if code in (1, 2) else "survived", failed[1] if failed else ""  # 5: all were deselected

    def _code(self, chosen: Sequence[str], seconds: float, output: IO[str]) -> int | None:
        """Exit code of pytest; None after the limit. No process stays behind."""
        command = [sys.executable, "-m", "pytest", "-x", "-vv", "-rfE", "-p", "no:cacheprovider"]
        own = {"PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1", "TMPDIR": str(self.temporary)}
        streams = {"stdout": output, "stderr": subprocess.STDOUT, "start_new_session": True}
        process = subprocess.Popen([*command, *chosen], cwd=self.root, env={**os.environ, **own}, **streams)
        try:
            return process.wait(max(seconds, 1))
        except subprocess.TimeoutExpired:
            return None
        finally:
            end_children()


def end_children() -> None:
    """Kill all processes below this one, which is also the parent of those whose parents have ended."""
    while True:
        with suppress(OSError):  # a process ended while it was looked at
            left = family(os.getpid())
            if not left:
                return
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        reap()
        time.sleep(0.05)


def run(faults: Sequence[Fault], markers: str, seconds: float, is_confirmed: bool, output: Path | None) -> None:
    """Try one fault after the other; each outcome is shown, and written, at once."""
    adopt_orphans()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    caught = 0
    with tempfile.TemporaryDirectory() as place:
        copy = Copy(Path(place), markers, seconds)
        for fault in faults:
            outcome = copy.tried(fault, is_confirmed)
            caught += outcome.result == "caught"
            print(f"{outcome.name:40} {outcome.result:8} {outcome.seconds:5.0f} s  {outcome.test}", flush=True)
            if output:
                with output.open("a") as file:
                    file.write(json.dumps({**outcome._asdict(), "file": fault.file}) + "\n")
    print(f"caught {caught} of {len(faults)}")


if __name__ == "__main__":
    known = faults_of(TABLE)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[fault.name for fault in known])
    parser.add_argument("--list", action="store_true", help="show the faults and their test files, and try none")
    parser.add_argument("--seconds", type=float, default=90, help="longest time of the tests of one fault")
    parser.add_argument("--also-ray", action="store_true", help="run tests that start Ray too")
    parser.add_argument("--confirm", action="store_true", help="run each failing test without the fault too")
    parser.add_argument("--output", type=Path, help="file to which outcomes are added as JSON lines")
    given = parser.parse_args()
    chosen = [fault for fault in known if not given.only or fault.name in given.only]
    if given.list:
        for fault in chosen:
            print(f"{fault.name:40} {fault.file}:", *sum(test_files(fault.file), []))
        sys.exit(0)
    kinds = "not slow and not variant and not gpu" + ("" if given.also_ray else " and not ray")
    run(chosen, kinds, given.seconds, given.confirm, given.output)
