"""Put results of several encoders side by side, and tell which scores of a model moved between versions.

  tips-ray leaderboard out/evaluation/*-paper
  tips-ray leaderboard out/evaluation/mine-paper out/evaluation/dinov2-paper --output leaderboard
  tips-ray leaderboard results-2026-10/photos-paper results-2026-11/photos-paper        two versions of one model

Folders are those that `tips-ray evaluate` writes, local or s3://. Differences that lie within the noise of the test
images are marked, and scores with other settings or data are not compared. The command ends with 1 if a score of the
same model moved by more than its noise, so that a script can stop at it. It takes seconds and loads no model.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray leaderboard`."""
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="folders of tips-ray evaluate")
    parser.add_argument("--output", metavar="FOLDER", help="write leaderboard.md and leaderboard.html, local or s3://")


def run(arguments: argparse.Namespace) -> int:
    """Print the table and what moved; return 1 if something did.

    Raises:
        ValueError: a folder has no results.
    """
    from tips_ray import storage
    from tips_ray.evaluation.leaderboard import markdown, moved_scores, page, read_results

    entries = [read_results(folder) for folder in arguments.folders]
    alarms, table = moved_scores(entries), markdown(entries)
    print(table)
    if arguments.output:
        storage.write_text(storage.join(arguments.output, "leaderboard.md"), table)
        storage.write_text(storage.join(arguments.output, "leaderboard.html"), page(entries, alarms))
        print(f"written      {arguments.output}/leaderboard.md, {arguments.output}/leaderboard.html")
    for alarm in alarms:
        print(f"moved        {alarm}")
    return int(bool(alarms))
