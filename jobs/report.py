"""Write the report of a run from its folder: one HTML file without external resources.

  tips-ray report out/runs/small
  tips-ray report s3://bucket/runs/small --output small.html

It shows the folder's config, curves, events and bad rows. The command takes seconds and no cluster.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray report`."""
    parser.add_argument("folder", help="run folder, local or s3://")
    parser.add_argument("--output", metavar="HTML", help="default: report.html in the run folder")


def run(arguments: argparse.Namespace) -> None:
    """Write the page and print where it is.

    Raises:
        ValueError: the folder holds no run.
    """
    import tempfile
    from pathlib import Path

    from tips_ray import storage
    from tips_ray.report import write_report
    from tips_ray.report.of_folder import report_of

    target = storage.resolved(arguments.output or storage.join(arguments.folder, "report.html"))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "report.html")
        write_report(path, report_of(arguments.folder))
        storage.upload(path, target)
    print(target)
