"""Inspect, verify and compact a caption store; export captions from it and import captions into it.

  tips-ray captions stats STORE
  tips-ray captions verify STORE [--run RUN.yaml KEY=VALUE ...]
  tips-ray captions compact STORE
  tips-ray captions export STORE captions.parquet
  tips-ray captions import STORE captions.parquet --run RUN.yaml

`verify` exits with 1 if something is wrong; with --run it also looks for chunks without captions. `import` reads the
images of a run and gives each the captions that the file (Parquet, JSON lines, CSV) has for its sha256, so that
captions survive when shards are renamed or rewritten. Captions of other programs get a name, --captioner NAME; a run
trains on them with captions.source=store captions.imported=NAME.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tips_ray.data.index import Index


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray captions`."""
    parser.add_argument("action", choices=("stats", "export", "import", "compact", "verify"))
    parser.add_argument("store", metavar="STORE", help="folder or s3:// prefix of the captions")
    parser.add_argument("file", nargs="?", metavar="FILE", help="export: .parquet, .jsonl; import: .csv too")
    parser.add_argument("--run", nargs="+", metavar="RUN.yaml", help="config of a run over the data, and its overrides")
    parser.add_argument("--captioner", help="fingerprint, or its first digits; for import also a new name")


def run(arguments: argparse.Namespace) -> int:
    """Do the action for every captioner of the store, or only for the one of --captioner.

    Returns:
        1 if `verify` finds a fault, else 0.

    Raises:
        ValueError: an argument is wrong or missing, or an object of the store is damaged.
    """
    _check(arguments)
    if arguments.action == "verify":
        return _verify(arguments)
    {"stats": _stats, "compact": _compact, "export": _export, "import": _import}[arguments.action](arguments)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    takes_file = arguments.action in ("export", "import")
    if takes_file != bool(arguments.file):
        rule = "needs FILE behind STORE" if takes_file else f"takes no file, {arguments.file} was given"
        raise ValueError(f"captions {arguments.action} {rule}")
    if arguments.action == "import" and not arguments.run:
        raise ValueError("captions import needs --run RUN.yaml: the images that the captions belong to")


def _stats(arguments: argparse.Namespace) -> None:
    from tips_ray.data.captions.maintenance import chosen_stores, stats

    for store in chosen_stores(arguments.store, arguments.captioner):
        found = stats(store)
        known = store.description().get("config", {})
        print(store.folder, *(f"  {key}: {value}" for key, value in known.items()), sep="\n")
        print(f"  {found.rows} rows in {found.chunks} chunks, {found.objects} objects, {found.shards} shards")
        print(f"  {found.captions} captions of {found.mean_words:.1f} words, {found.duplicate_share:.1%} duplicates")
        lines = [f"{count} rows without: {reason}" for reason, count in found.errors.most_common()]
        lines += [f"e.g. {text!r}" for text in found.examples]
        lines += [f"not counted to its end: {fault}" for fault in found.damaged]
        print(*(f"  {line}" for line in lines), sep="\n")


def _compact(arguments: argparse.Namespace) -> None:
    from tips_ray.data.captions.maintenance import chosen_stores, compact_all

    for store in chosen_stores(arguments.store, arguments.captioner):
        done = compact_all(store)
        groups, deleted = sum(part.groups for part in done), sum(part.deleted for part in done)
        print(f"{store.folder}: {groups} groups made of {deleted} objects, in {len(done)} shards")


def _verify(arguments: argparse.Namespace) -> int:
    from tips_ray.data.captions.maintenance import chosen_stores, faults, shards_of

    stores = chosen_stores(arguments.store, arguments.captioner)
    shards = shards_of(_index(arguments.run)) if arguments.run else []
    checked = "all objects are whole" + (" and no chunk is missing" if arguments.run else "")
    code = 0
    for store in stores:
        found = 0
        for fault in faults(store, shards):
            print(fault)
            found, code = found + 1, 1
        print(f"{store.folder}: {f'{found} faults' if found else checked}")
    return code


def _export(arguments: argparse.Namespace) -> None:
    from tips_ray.data.captions.import_export import export
    from tips_ray.data.captions.maintenance import only_store

    written, left_out = export(only_store(arguments.store, arguments.captioner), arguments.file)
    print(f"{arguments.file}: {written} rows; {left_out} rows have no captions and are left out")


def _import(arguments: argparse.Namespace) -> None:
    from tips_ray.data.captions.import_export import captions_by_hash, import_captions
    from tips_ray.data.captions.maintenance import import_target

    known = captions_by_hash(arguments.file)
    store = import_target(arguments.store, arguments.captioner)
    done = import_captions(store, _index(arguments.run), known)
    print(f"{store.folder}: {done.rows} rows in {done.chunks} chunks, from {len(known)} images of {arguments.file}")
    if done.missing:
        is_imported = "imported" in store.description().get("decides", {})
        hint = "a run needs all of them" if is_imported else "tips-ray caption makes them whole"
        print(f"{done.missing} chunks hold images that the file lacks: {hint}")


def _index(run: list[str]) -> "Index":
    from tips_ray import storage
    from tips_ray.config import RunConfig, load_config
    from tips_ray.data.index_folder import index_of

    config = load_config(RunConfig, Path(run[0]), run[1:])
    return index_of(config.data, storage.join(config.storage, "index"))
