"""Look after sweeps: list, show, stop, add settings, promote.

  tips-ray sweeps list [STORAGE]                 every sweep below a folder or s3:// prefix; default: out/sweeps
  tips-ray sweeps show SWEEP                     settings with their scores, the best first, and the result in words
  tips-ray sweeps stop SWEEP                     running trials save and leave; the same command goes on
  tips-ray sweeps add SWEEP KEY=VALUE ...        a setting of your own, which the next start trains
  tips-ray sweeps promote SWEEP SETTING [STEP]   let a setting train to its next rung, or to STEP, whatever its place

SWEEP is a sweep's folder, STORAGE/NAME of its config, local or s3://. `add` and `promote` are refused while the sweep
runs.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray sweeps`."""
    parser.add_argument("action", choices=("list", "show", "stop", "add", "promote"), metavar="ACTION",
                        help="list, show, stop, add or promote")  # fmt: skip
    parser.add_argument("sweep", nargs="?", default="out/sweeps", metavar="SWEEP", help="sweep's folder, or STORAGE")
    parser.add_argument("words", nargs="*", metavar="...", help="see above")


def run(arguments: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: there is no such sweep or setting, or nothing runs the sweep, or something does.
    """
    from tips_ray import storage
    from tuning.sweeps import keep

    uri, words = storage.resolved(arguments.sweep), arguments.words
    takes_words = arguments.action in ("add", "promote")
    if words and not takes_words:
        raise ValueError(f"{arguments.action} takes no {words[0]!r}: tips-ray sweeps --help shows what it takes")
    for line in getattr(keep, f"{arguments.action}_lines")(uri, *([words] if takes_words else [])):
        print(line)
