"""WebDataset tars: consecutive members KEY.jpg, KEY.txt, KEY.json, ... are one row."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from tips_ray import storage
from tips_ray.config import ColumnsConfig
from tips_ray.data.columns import SourceRow
from tips_ray.data.sources.columns import Columns, alternatives, check
from tips_ray.data.sources.image_files import IMAGE_SUFFIXES, composed_form
from tips_ray.data.sources.members import JSON_SAMPLES, Reader, json_cells, member_columns, row_content
from tips_ray.data.sources.shard import Chunk, Content, NoRowsError, Reject, Scan, Shard, source_rows
from tips_ray.data.sources.tar import BLOCK, BrokenTarError, Member, ReadRange, members
from tips_ray.errors import listed
from tips_ray.storage import StorageError

SUFFIXES = (".tar",)
IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp", "image", "img")
_IMAGE_NAMES = (*IMAGE_SUFFIXES, ".image", ".img")
LOCAL_BLOCK, REMOTE_BLOCK = 16 * 2**10, 8 * 2**20
"""Bytes read at once for headers; a payload that ends inside is read too, because a request costs more."""


@dataclass
class _Sample:
    key: str
    start: int
    stop: int = 0
    members: dict[str, Member] = field(default_factory=dict)
    """Members by extension: all after the first dot of the name, in lower case."""
    fault: str = ""

    def add(self, extension: str, member: Member) -> None:
        self.stop = member.stop
        if self.members.setdefault(extension, member) is not member:
            self.fault = f"the member {extension} is there twice"


def columns_of(shard: Shard, wanted: ColumnsConfig) -> Columns:
    """Resolved columns: members and JSON fields alike. The image is any common image member, the key is the name's."""
    read = _block_reader(shard)
    samples, fault = _readable(read, shard, JSON_SAMPLES)
    if not samples:
        raise NoRowsError(f"{shard.path}: {fault or 'there are no rows in it'}; write the shard again or leave it out")
    cells = [json_cells(_readers(sample, read)) for sample in samples]
    return member_columns(wanted, _names(samples, cells), shard.path, IMAGE_MEMBERS, cells)


def scan(shard: Shard, columns: Columns, chunk_rows: int) -> Scan:
    """Find every row by the headers alone.

    Raises:
        ValueError: a column is absent, or the members of one key are not consecutive.
    """
    read = _block_reader(shard)
    samples, fault = _readable(read, shard)
    if samples:
        cells = [json_cells(_readers(sample, read)) for sample in samples[:JSON_SAMPLES]]
        check(columns, _names(samples, cells), shard.path)
    images = alternatives(columns.image)
    _check_order(samples, images, shard)
    faults = [_fault(sample, images, shard.bytes) for sample in samples]
    rejects = [Reject(row, samples[row].key, reason) for row, reason in enumerate(faults) if reason]
    if fault:
        rest = "; the rest of the shard is not used" * ((samples[-1].stop if samples else 0) < shard.bytes)
        rejects.append(Reject(len(samples), "", fault + rest))
    parts = [(row, samples[row : row + chunk_rows]) for row in range(0, len(samples), chunk_rows)]
    chunks = [Chunk(row, len(part), part[0].start, min(part[-1].stop, shard.bytes)) for row, part in parts]
    return Scan.of(chunks, rejects, [name for sample in samples for name in _unused_images(sample, images)])


def read_chunk(shard: Shard, chunk: Chunk, columns: Columns) -> list[SourceRow]:
    """Rows of a chunk from its byte range, in one request.

    Raises:
        StorageError: the range cannot be read, or holds other rows than the index says.
    """
    content = storage.read_bytes(shard.path, chunk.start, chunk.stop)
    try:
        samples = list(_samples(lambda start, stop: content[start:stop], 0, len(content)))
    except BrokenTarError:
        samples = []
    if len(samples) != chunk.rows:
        raise StorageError(f"{shard.path}: the tar is not the one that was indexed; run tips-ray index again")
    return source_rows(chunk, [_content(sample, content, columns) for sample in samples])


def read_captions(shard: Shard, chunk: Chunk, columns: Columns) -> list[SourceRow]:
    """Rows of a chunk without their images, whose payloads are passed over on a disk."""
    read, images = _block_reader(shard), alternatives(columns.image)
    samples = islice(_samples(read, chunk.start, chunk.stop), chunk.rows)
    wanted = columns._replace(image="")
    contents = [
        row_content(sample.key, _readers(sample, read), wanted, _fault(sample, images, shard.bytes))
        for sample in samples
    ]
    return source_rows(chunk, contents)


def read_fields(shard: Shard, chunk: Chunk, columns: Columns, names: Sequence[str] | None) -> list[dict[str, Any]]:
    """Fields of the JSON of each row of a chunk."""
    read = _block_reader(shard)
    samples = islice(_samples(read, chunk.start, chunk.stop), chunk.rows)
    return [json_cells(_readers(sample, read)) for sample in samples]


def _readable(read: ReadRange, shard: Shard, limit: int | None = None) -> tuple[list[_Sample], str]:
    """Samples from the start of a shard, and the error that ends them early; empty if there is none."""
    if not shard.bytes:
        return [], "the file has no bytes, as after a download that failed"
    samples: list[_Sample] = []
    try:
        for sample in islice(_samples(read, 0, shard.bytes, is_whole=True), limit):
            samples.append(sample)
    except BrokenTarError as error:
        found = "" if samples else storage.looks_like(read(0, BLOCK))
        return samples, f"this is no tar but {found}" if found else str(error)
    return samples, ""


def _samples(read: ReadRange, start: int, stop: int, is_whole: bool = False) -> Iterator[_Sample]:
    """Rows in order; the found part of the last row is yielded before a broken header is reported."""
    sample, broken = None, None
    try:
        for member in members(read, start, stop, is_whole):
            key, extension = _key_and_extension(member.name)
            if sample is not None and key and composed_form(sample.key) != composed_form(key):
                yield sample
                sample = None
            if key:
                sample = sample or _Sample(key, member.start)
                sample.add(extension, member)
            elif is_whole and member.payload + member.size > stop:
                raise BrokenTarError(f"the tar ends inside the member {member.name}")
    except BrokenTarError as error:
        broken = error
    if sample is not None:
        yield sample
    if broken:
        raise broken


def _key_and_extension(name: str) -> tuple[str, str]:
    """Split at the first dot of the last part; no key for a hidden file or a README."""
    folder, slash, last = name.removeprefix("./").rpartition("/")
    stem, dot, extension = last.partition(".")
    return (folder + slash + stem, extension.lower()) if stem and dot else ("", "")


def _fault(sample: _Sample, images: list[str], stop: int) -> str:
    """Why a row is bad according to its headers, empty if it is not; `stop` is where the bytes end."""
    cut = [name for name, member in sample.members.items() if member.payload + member.size > stop]
    if cut:
        return f"the tar ends inside the member {cut[0]}"
    image = _image(sample, images)
    if image is None:
        return f"no image: none of {', '.join(images)} is among the members {listed(sample.members)}"
    if image.absent:
        return f"the image is {image.absent}"
    return sample.fault or ("" if image.size else "the image has no bytes")


def _image(sample: _Sample, images: list[str]) -> Member | None:
    return next((sample.members[name] for name in images if name in sample.members), None)


def _unused_images(sample: _Sample, images: list[str]) -> list[str]:
    """Names of members that end like images and are not the row's: a key ends at its first dot and has one image."""
    used = _image(sample, images)
    return [
        member.name
        for member in sample.members.values()
        if member is not used and member.name.lower().endswith(_IMAGE_NAMES)
    ]


def _check_order(samples: Iterable[_Sample], images: list[str], shard: Shard) -> None:
    """Refuse a tar whose images and captions are in different places: every row would be bad."""
    halves: dict[str, bool] = {}
    for sample in samples:
        is_half = _image(sample, images) is None
        if sample.key in halves and (is_half or halves[sample.key]):
            raise ValueError(
                f"{shard.path}: the members of {sample.key} are not next to each other; pack it again in the order of "
                "names (tar --sort=name)"
            )
        halves[sample.key] = is_half


def _content(sample: _Sample, content: bytes, columns: Columns) -> Content:
    fault = _fault(sample, alternatives(columns.image), len(content))
    return row_content(sample.key, _readers(sample, lambda start, stop: content[start:stop]), columns, fault)


def _readers(sample: _Sample, read: ReadRange) -> dict[str, Reader]:
    return {
        name: partial(_absent, name, member.absent)
        if member.absent
        else partial(read, member.payload, member.payload + member.size)
        for name, member in sample.members.items()
    }


def _absent(name: str, why: str) -> bytes:
    raise ValueError(f"the member {name} is {why}")


def _names(samples: list[_Sample], cells: list[dict[str, Any]]) -> set[str]:
    """Columns of a shard: all members, and the JSON fields of its first rows."""
    return {"__key__"}.union(*(sample.members for sample in samples), *cells)


def _block_reader(shard: Shard) -> ReadRange:
    """A reader of whole blocks, so that headers close to each other share a request."""
    block = LOCAL_BLOCK if storage.is_local(shard.path) else REMOTE_BLOCK
    held, at = b"", 0

    def read(start: int, stop: int) -> bytes:
        nonlocal held, at
        if not at <= start <= stop <= at + len(held):
            held, at = storage.read_bytes(shard.path, start, max(stop, start + block)), start
        return held[start - at : stop - at]

    return read
