"""The pickles in the files of a checkpoint, read so that a stranger's checkpoint runs no code."""

import io
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint._traverse import set_element  # as the planner whose method is replaced
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from tips_ray import storage
from tips_ray.runs.checkpoint import CheckpointInfo
from tips_ray.runs.checkpoint_blocks import BlockFile, DamagedBlockError

METADATA = ".metadata"
"""Torch's file that says where each tensor is; it is a pickle."""
_IN_METADATA = "torch.distributed.checkpoint.metadata"
_PLAIN = {
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *((_IN_METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING")),
    *((_IN_METADATA, f"{name}StorageMetadata") for name in ("Bytes", "Chunk", "Tensor")),
    (_IN_METADATA, "TensorProperties"),
}
"""Module and name of all that `METADATA` of a checkpoint of ours names, besides torch's dtypes; none runs code."""


class PlainReader(FileSystemReader):
    """Reads `METADATA`, which torch would unpickle whatever it names."""

    refused: pickle.UnpicklingError | None = None
    """Why `METADATA` was not read; torch hides it behind an error of its own."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        try:
            with open(Path(self.path) / METADATA, "rb") as file:
                metadata = _MetadataUnpickler(file).load()
            if not isinstance(metadata, Metadata):
                raise pickle.UnpicklingError(f"{type(metadata).__name__} in {METADATA}")
        except pickle.UnpicklingError as error:
            self.refused = error
            raise
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class BlockReader(PlainReader):
    """Reads the tensors from the stored files, block by block, where `METADATA` alone was fetched to a folder."""

    def __init__(self, folder: Path, checkpoint: CheckpointInfo) -> None:
        super().__init__(folder)
        self.checkpoint = checkpoint

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        spans: dict[str, list[tuple[int, int]]] = {}
        for part in (self.storage_data[item.storage_index] for item in plan.items):
            spans.setdefault(part.relative_path, []).append((part.offset, part.length))
        self.fs = _StoredFiles(self.checkpoint, spans)
        in_order = sorted(plan.items, key=lambda item: self.storage_data[item.storage_index].offset)
        return super().read_data(replace(plan, items=in_order), planner)


class _StoredFiles(FileSystem):
    """The files of a checkpoint as torch's reader opens them."""

    def __init__(self, checkpoint: CheckpointInfo, spans: Mapping[str, list[tuple[int, int]]]) -> None:
        self.checkpoint, self.spans = checkpoint, spans

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[io.IOBase]:
        name = Path(path).name
        if name not in self.checkpoint.manifest["files"]:
            raise DamagedBlockError(f"{name} is not in its manifest")
        entry = self.checkpoint.manifest["files"][name]
        with BlockFile(storage.join(self.checkpoint.uri, name), entry, self.spans[name]) as file:
            yield file


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        is_dtype = module_name == "torch" and isinstance(getattr(torch, global_name, None), torch.dtype)
        if is_dtype or (module_name, global_name) in _PLAIN:
            return super().find_class(module_name, global_name)
        raise pickle.UnpicklingError(f"{module_name}.{global_name} in {METADATA}")


class PlainPlanner(DefaultLoadPlanner):
    """Reads what is no tensor, such as the optimizer's numbers, without running what it names."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        try:
            found = torch.load(value, weights_only=True)
        except pickle.UnpicklingError:
            raise pickle.UnpicklingError(f"the value of {name}") from None
        set_element(self.original_state_dict, self.mappings[name], found)
