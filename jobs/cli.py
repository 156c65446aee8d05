"""The command `tips-ray`: runs a job and prints one line per mistake of the user.

A job is a module of `jobs` with `add_arguments(parser)` and `run(arguments)`. It is imported when called and does its
heavy imports inside `run`, so that every --help is instant.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from tips_ray.errors import RunFailedError, sentences

COMMANDS = {
    "demo": "the whole road on this machine in a few minutes",
    "index": "look through the data of a run once and write down what is where",
    "caption": "PaliGemma captions for the images of a run, each once, ahead of it",
    "captions": "what is in a caption store: stats, export, import, compact, verify",
    "pretrain": "train TIPS on Ray; the same name again resumes",
    "replay": "a bad step of a run again on one process, with its first bad tensor",
    "doctor": "what is missing on this machine, with the cure",
    "report": "the run folder as one HTML page",
    "evaluate": "a run or any other encoder on segmentation, depth, retrieval, classification",
    "ablate": "the paper's ablation on rendered scenes: a table, and which directions show",
    "embed": "embeddings of every image of a source as Parquet, each once",
    "export": "a run, released npz files or a transformers folder -> transformers or timm folder",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0, 1 for a failure, 2 for a user's mistake, 130 after Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    command = _command(argv[:1])
    job = importlib.import_module(f"jobs.{command}")
    parser = _Parser(
        prog=f"tips-ray {command}", description=job.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    job.add_arguments(parser)
    arguments = parser.parse_intermixed_args(argv[1:])
    try:
        return job.run(arguments) or 0
    except (ValueError, OSError) as error:
        return _print_error(error, 2)
    except RunFailedError as error:
        return _print_error(error, 1)
    except KeyboardInterrupt as error:
        print(str(error) or "interrupted", file=sys.stderr)
        return 130


def _print_error(error: Exception, code: int) -> int:
    for sentence in sentences(error):
        print("error:", sentence, file=sys.stderr)
    return code


def _command(argv: Sequence[str]) -> str:
    listing = "\n".join(f"  {name:10} {what}" for name, what in COMMANDS.items())
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
