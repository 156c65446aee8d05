"""The command `tips-ray`: runs a job and prints one line per mistake of the user.

A job is a module of `jobs` with `add_arguments(parser)` and `run(arguments)`. It is imported when called and does its
heavy imports inside `run`, so that every --help is instant. With `TAKES_COMMAND` it gets what stands after `--` as
`command_words`, options included, which argparse would take for its own.
"""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from tips_ray import console
from tips_ray.errors import RunFailedError, RunStopped, sentences, shortened

COMMANDS = {
    "demo": "render scenes, caption, train, evaluate and report on this machine, in minutes",
    "index": "scan the data of a run once and write its index",
    "curate": "choose a training set from raw pairs: language, similarity, near duplicates, and why each row went",
    "data": "compare the lock of a training set with data: what is there, changed, missing",
    "caption": "write PaliGemma captions for the images of a run, ahead of it",
    "captions": "inspect and maintain a caption store: stats, export, import, compact, verify",
    "pretrain": "train TIPS on Ray; the same name again resumes",
    "submit": "send a command to a Ray cluster and follow it, or print what KubeRay, SkyPilot or dstack need",
    "jobs": "look after jobs of a Ray cluster: list, status, logs, stop",
    "plan": "what a run needs on given GPUs: memory, time, network, storage, cost, and how far such plans were off",
    "runs": "see where runs stand; stop one, free one whose start is lost, delete leftovers",
    "replay": "repeat a bad step of a run on one process, and name its first bad tensor",
    "doctor": "check this machine, and a run if given; each failure with its cure",
    "report": "write a run folder as one HTML page",
    "compare": "what differs between runs, and which is better by pairs on the same batches, or no claim",
    "evaluate": "score a run or another encoder: segmentation, depth, retrieval, classification",
    "leaderboard": "results of several encoders side by side, and scores of a model that moved",
    "sweep": "train settings from a space of keys, compare them at rungs, train the best to the end",
    "sweeps": "look after sweeps: list, show, stop, add settings, promote",
    "ablate": "run the paper's ablation on rendered scenes, and judge its directions",
    "embed": "write embeddings of every image of a source as Parquet",
    "export": "write a run, npz files or a transformers folder as a transformers or timm folder",
}


class _Parser(argparse.ArgumentParser):
    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """As argparse, which calls an argument of any number of values required unless it has a default."""
        given = {"default": [], **options} if options.get("nargs") == "*" else options
        return super().add_argument(*names, **given)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {shortened(message)} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code.

    0, 1 failure, 2 user's mistake, 3 another start trains the run, 75 stopped and saved, 130 Ctrl-C.
    """
    _print_any_name()
    console.speak("lines")
    argv = sys.argv[1:] if argv is None else argv
    command = _command(argv[:1])
    job = importlib.import_module(f"jobs.{command}")
    parser = _Parser(
        prog=f"tips-ray {command}", description=job.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    job.add_arguments(parser)
    own, after = split(argv[1:]) if getattr(job, "TAKES_COMMAND", False) else (argv[1:], [])
    parser.set_defaults(command_words=after)
    arguments = parser.parse_intermixed_args(own)
    try:
        _fit_surroundings(command)
        return job.run(arguments) or 0
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError) as error:
        return _print_error(error, getattr(error, "exit_code", 2))
    except RunFailedError as error:
        return _print_error(error, 1)
    except RunStopped as stop:
        console.tell_error(str(stop), "stopped", mark="", exit_code=stop.exit_code)
        return stop.exit_code
    except KeyboardInterrupt as error:
        console.tell_error(str(error) or "interrupted", "interrupted", mark="", exit_code=130)
        return 130


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words before and after the first `--`."""
    place = list(words).index("--") if "--" in words else len(words)
    return list(words[:place]), list(words[place + 1 :])


def _print_any_name() -> None:
    """Let no print fail because the terminal's encoding lacks a letter, or because a file's name is no UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _fit_surroundings(command: str) -> None:
    """
    Raises:
        ValueError: a file of the working directory hides a module, or variables of torchrun are half set.
    """
    from tips_ray.launch.hiding import leave_out_working_directory, nothing_hides_a_package

    if command != "doctor":  # it tells this beside its other findings
        nothing_hides_a_package()
    leave_out_working_directory()
    from tips_ray.launch.surroundings import drop_empty_ranks, spare_loopback  # imports what a file might hide

    spare_loopback()
    drop_empty_ranks()


def _print_error(error: Exception, code: int) -> int:
    for sentence in sentences(error):
        console.tell_error(sentence, exit_code=code)
    return code


def _command(argv: Sequence[str]) -> str:
    listing = "\n".join(f"  {name:11} {what}" for name, what in COMMANDS.items())
    parser = _Parser(
        prog="tips-ray",
        usage="tips-ray COMMAND ... (tips-ray COMMAND --help says more)",
        epilog=f"commands:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    return parser.parse_args(argv).command


if __name__ == "__main__":
    sys.exit(main())
