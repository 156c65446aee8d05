"""Tables of captions that are neither CSV nor TSV: the hub's metadata.jsonl, COCO's annotations, Flickr8k's files.

`table_of` gives the rows of each as a CSV would have them. Karpathy's JSON has a file of its own.
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from tips_ray import storage
from tips_ray.data.sources.karpathy import is_karpathy, read_karpathy, splits_read
from tips_ray.data.sources.tables import Line, Table
from tips_ray.storage import StorageError, StoredFile

COCO = re.compile(r"captions_(\w+)\.json", re.IGNORECASE)
TOKENS = re.compile(r".*\.token(\.txt)?", re.IGNORECASE)
NAMES = "metadata.jsonl, captions.txt, *.token.txt, COCO's annotations/captions_*.json"
Row = tuple[int, dict[str, Any]]
"""The line of a row (in COCO's JSON its number), and its cells by column, as they are."""


def tables_right_in(files: Iterable[StoredFile], root: str) -> list[StoredFile]:
    """Tables of these layouts among `files`: `root` itself, those right in it, and COCO's in its `annotations`."""
    folders = (root, storage.join(root, "annotations"))
    return [file for file in files if is_table(file.uri) and (file.uri == root or os.path.dirname(file.uri) in folders)]


def tables_below(files: Iterable[StoredFile]) -> list[StoredFile]:
    """Tables at any depth whose names nothing else has: the hub's, one for each split, and COCO's."""
    return [file for file in files if is_table(file.uri) and file.uri.lower().endswith((".jsonl", ".json"))]


def is_table(uri: str) -> bool:
    """Whether a file has the name of such a table."""
    name = os.path.basename(uri).lower()
    return (
        name in ("metadata.jsonl", "captions.txt")
        or is_karpathy(name)
        or any(kind.fullmatch(name) for kind in (COCO, TOKENS))
    )


def image_folder(table: str) -> str:
    """The folder of a table's images: its own; for COCO the one of its split beside `annotations`."""
    folder = os.path.dirname(table)
    split = COCO.fullmatch(os.path.basename(table))
    if split is None:
        return folder
    above = os.path.dirname(folder) if os.path.basename(folder).lower() == "annotations" else folder
    there = [*storage.list_folders(above), *storage.list_folders(storage.join(above, "images"))]
    return next((place for place in there if os.path.basename(place) == split[1]), above)


def table_of(table: str) -> Table | None:
    """A table of these layouts; None for a CSV or TSV.

    Raises:
        ValueError: it cannot be read; the line or the image is named.
    """
    name = os.path.basename(table).lower()
    if is_karpathy(name):
        return read_karpathy(storage.read_text(table), table)
    layouts = {r".*\.jsonl": _of_json_lines, COCO: _of_coco, TOKENS: _of_tokens}
    read = next((read for kind, read in layouts.items() if re.fullmatch(kind, name)), None)
    if read is None:
        return None
    rows = list(read(table))
    columns = list({column: None for _, cells in rows for column in cells})
    lines = [Line(number, [cells.get(column) for column in columns]) for number, cells in rows]
    return Table(columns, lines, [])


def splits_of(table: str) -> str:
    """A sentence about the splits that a table holds together; empty where its layout knows none."""
    return splits_read(storage.read_text(table)) if is_karpathy(table) else ""


def _of_json_lines(table: str) -> Iterator[Row]:
    for number, text in enumerate(storage.read_text(table).removeprefix("\ufeff").split("\n"), start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise StorageError(f"{table}: line {number} is no JSON ({error}); correct it") from None
        if not isinstance(line, dict):
            raise StorageError(f"{table}: line {number} must be a JSON object such as {{file_name, text}}; correct it")
        yield number, line


def _of_coco(table: str) -> Iterator[Row]:
    """A line per caption, in the order of the images; an image without any has one empty line."""
    names, captions = {}, defaultdict(list)
    try:
        listed = json.loads(storage.read_text(table))
        for image in listed["images"]:
            if names.setdefault(image["id"], image["file_name"]) != image["file_name"]:
                _refuse_shared_id(table, image["id"], names[image["id"]], image["file_name"])
        for annotation in listed["annotations"]:
            captions[annotation["image_id"]].append(annotation["caption"])
    except (json.JSONDecodeError, RecursionError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise StorageError(
            f"{table}: this is no COCO file with images (id, file_name) and annotations (image_id, caption), {reason}; "
            "write it again"
        ) from None
    lost = [number for number in captions if number not in names]
    if lost:
        raise StorageError(
            f"{table}: {len(lost)} image ids have captions and no entry in images, e.g. {lost[0]}; add it"
        )
    lines = ((name, text) for number, name in names.items() for text in captions.get(number, [""]))
    yield from ((row, {"file_name": name, "caption": text}) for row, (name, text) in enumerate(lines, start=1))


def _refuse_shared_id(table: str, number: Any, *names: str) -> None:
    raise StorageError(
        f"{table}: the images {' and '.join(names)} both have the id {number}, so it is not known whose captions are "
        "whose; number the images and annotations of merged files anew"
    )


def _of_tokens(table: str) -> Iterator[Row]:
    """Lines `NAME.jpg#0<tab>caption`, as Flickr8k.token.txt has them."""
    for number, text in enumerate(storage.read_text(table).removeprefix("\ufeff").split("\n"), start=1):
        name, tab, caption = text.strip("\r").partition("\t")
        if tab:
            yield number, {"image": re.sub(r"#\d*$", "", name), "caption": caption}
        elif text.strip():
            raise StorageError(f"{table}: line {number} must be a file name, `#`, a number, a tab and a caption")
