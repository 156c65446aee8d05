"""What is in a caption store: look at it, check it, tidy it, take captions out and put them in.

  tips-ray captions stats STORE
  tips-ray captions verify STORE [--run RUN.yaml KEY=VALUE ...]
  tips-ray captions compact STORE
  tips-ray captions export STORE captions.parquet
  tips-ray captions import STORE captions.parquet --run RUN.yaml

`verify` exits with 1 when something is wrong; with --run it also looks for chunks without captions. `import` reads the
images of a run and gives each the captions that the file (Parquet, JSON lines, CSV) has for its sha256: captions live
on when shards are renamed or rewritten. Those of other programs come in by a name, --captioner NAME, and a run trains
on them with captions.source=store captions.imported=NAME.
"""

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tips_ray.data.captions.store import CaptionedShard, CaptionStore
    from tips_ray.data.index import Index

ACTIONS = ("stats", "export", "import", "compact", "verify")
THREADS = 16
FEWEST_DIGITS = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray captions`."""
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("store", metavar="STORE", help="folder or s3:// prefix of the captions")
    parser.add_argument("file", nargs="?", metavar="FILE", help="export: .parquet, .jsonl; import: .csv too")
    parser.add_argument("--run", nargs="+", metavar="RUN.yaml", help="config of a run over the data, and its overrides")
    parser.add_argument("--captioner", help="fingerprint, or its first digits; for import also a new name")


def run(arguments: argparse.Namespace) -> int:
    """Do it for every captioner of the store, or for that of --captioner.

    Returns:
        1 where `verify` finds a fault, else 0.

    Raises:
        ValueError: an argument is wrong or missing, or an object of the store is damaged.
    """
    _check(arguments)
    if arguments.action == "import":
        return _import(arguments)
    stores = _chosen(arguments.store, arguments.captioner)
    if arguments.action == "export":
        return _export(_only(stores, arguments.store), arguments.file)
    return max({"stats": _stats, "compact": _compact, "verify": _verify}[arguments.action](stores, arguments.run))


def _check(arguments: argparse.Namespace) -> None:
    takes_file = arguments.action in ("export", "import")
    if takes_file != bool(arguments.file):
        rule = "needs FILE behind STORE" if takes_file else f"takes no file, {arguments.file} was given"
        raise ValueError(f"captions {arguments.action} {rule}")
    if arguments.action == "import" and not arguments.run:
        raise ValueError("captions import needs --run RUN.yaml: the images that the captions belong to")


def _chosen(uri: str, wanted: str | None) -> "list[CaptionStore]":
    from tips_ray.data.captions.store import captioners

    stores = captioners(uri)
    found = [store for store in stores if store.fingerprint.startswith(wanted or "")]
    if not found:
        there = ", ".join(store.fingerprint for store in stores) or "none"
        raise ValueError(f"{uri}: there are no captions{f' of captioner {wanted}' if wanted else ''}; it has {there}")
    return found


def _only(stores: "list[CaptionStore]", uri: str) -> "CaptionStore":
    if len(stores) > 1:
        there = ", ".join(store.fingerprint for store in stores)
        raise ValueError(f"{uri}: there are captions of several captioners ({there}); say which with --captioner")
    return stores[0]


def _stats(stores: "list[CaptionStore]", _: object) -> Iterator[int]:
    from tips_ray.data.captions.maintenance import stats

    for store in stores:
        found = stats(store)
        print(store.folder)
        for key, value in store.description().get("config", {}).items():
            print(f"  {key}: {value}")
        print(f"  {found.rows} rows in {found.chunks} chunks, {found.objects} objects, {found.shards} shards")
        mean = found.words / max(found.captions, 1)
        print(f"  {found.captions} captions of {mean:.1f} words, {found.duplicate_share:.1%} duplicates")
        lines = [f"{count} rows without: {reason}" for reason, count in found.errors.most_common()]
        lines += [f"e.g. {text!r}" for text in found.examples]
        lines += [f"not counted to its end: {fault}" for fault in found.damaged]
        print(*(f"  {line}" for line in lines), sep="\n")
        yield 0


def _compact(stores: "list[CaptionStore]", _: object) -> Iterator[int]:
    from tips_ray.data.captions.maintenance import compact

    for store in stores:
        with ThreadPoolExecutor(THREADS) as pool:
            done = list(pool.map(lambda name, store=store: compact(store, name), store.shard_names()))
        groups, deleted = sum(part.groups for part in done), sum(part.deleted for part in done)
        print(f"{store.folder}: {groups} groups made of {deleted} objects, in {len(done)} shards")
        yield 0


def _verify(stores: "list[CaptionStore]", run: list[str] | None) -> Iterator[int]:
    from tips_ray.data.captions.maintenance import faults

    shards = list(_shards(_index(run))) if run else []
    for store in stores:
        found = 0
        for fault in faults(store, shards):
            found += 1
            print(fault)
        checked = "all objects are whole" + (" and no chunk is missing" if run else "")
        print(f"{store.folder}: {f'{found} faults' if found else checked}")
        yield int(found > 0)


def _export(store: "CaptionStore", target: str) -> int:
    from tips_ray.data.captions.import_export import export

    written, left_out = export(store, target)
    print(f"{target}: {written} rows; {left_out} rows have no captions and are left out")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from tips_ray.data.captions.import_export import captions_by_hash
    from tips_ray.data.captions.join import missing_chunks

    known = captions_by_hash(arguments.file)
    store, index = _target(arguments), _index(arguments.run)
    places = missing_chunks(index, store).tolist()
    with ThreadPoolExecutor(THREADS) as pool:
        rows = list(pool.map(lambda place: _rekey(store, index, place, known), places))
    chunks = sum(bool(count) for count in rows)
    print(f"{store.folder}: {sum(rows)} rows in {chunks} chunks, from {len(known)} images of {arguments.file}")
    if chunks < len(places):
        is_imported = "imported" in store.description().get("decides", {})
        hint = "a run needs all of them" if is_imported else "tips-ray caption makes them whole"
        print(f"{len(places) - chunks} chunks hold images that the file lacks: {hint}")
    return 0


def _target(arguments: argparse.Namespace) -> "CaptionStore":
    """Captions keep their captioner; those of another program get one that is called by a name."""
    from tips_ray.data.captions.store import captioners, imported_store

    wanted, stores = arguments.captioner, captioners(arguments.store)
    if wanted is None:
        return _only(_chosen(arguments.store, None), arguments.store)
    is_fingerprint = len(wanted) >= FEWEST_DIGITS and set(wanted) <= set("0123456789abcdef")
    if is_fingerprint or any(store.fingerprint.startswith(wanted) for store in stores):
        return _only(_chosen(arguments.store, wanted), arguments.store)
    store = imported_store(arguments.store, wanted)
    store.describe({"decides": {"imported": wanted}, "config": {"model": wanted}})
    return store


def _index(run: list[str]) -> "Index":
    from tips_ray import storage
    from tips_ray.config import RunConfig, load_config
    from tips_ray.data.index import index_of

    config = load_config(RunConfig, Path(run[0]), run[1:])
    return index_of(config.data, storage.join(config.storage, "index"))


def _shards(index: "Index") -> "Iterator[tuple[CaptionedShard, list[int]]]":
    """What the store calls each shard of an index, and the rows of its chunks."""
    import numpy as np

    from tips_ray.data.captions.join import captioned_shard

    for number in range(index.shards.num_rows):
        first, last = np.searchsorted(index.chunks.shard, (number, number + 1))
        yield captioned_shard(index, number), index.chunks.rows[first:last].tolist()


def _rekey(store: "CaptionStore", index: "Index", number: int, known: dict[bytes, list[str]]) -> int:
    """Rows of the chunk of this number in the index, where the file had captions for all its good images."""
    from tips_ray.data.captions.import_export import rekeyed
    from tips_ray.data.captions.join import place_of
    from tips_ray.data.captions.store import image_sha256

    rows = index.read(number)
    sha256, errors = image_sha256(row["image"] for row in rows), [row["error"] for row in rows]
    chunk = rekeyed(index.chunk(number).row, sha256, errors, known)
    return len(rows) if chunk and store.write(*place_of(index, number), chunk) else 0
