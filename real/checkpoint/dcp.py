"""torch's distributed checkpoints (DCP), read without executing anything and written by torch itself.

A DCP checkpoint is `.metadata`, a pickle, and files of items, each written by `torch.save`. The metadata is read by an unpickler
that knows the names of that format's classes and no others, and makes inert records of them: it never imports, never calls anything
of torch's, and keeps its memo in a dict, so a huge index allocates nothing. Items are read by `torch.load(weights_only=True)`.
"""

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as torch_dcp

from real.checkpoint.errors import CorruptCheckpoint, corrupt
from real.checkpoint.memory import part_of
from real.checkpoint.metadata import LARGEST_B, LARGEST_TENSOR_B
from simcore.checkpoint.boxes import Box, whole
from simcore.checkpoint.merging import merge_ranks
from simcore.checkpoint.overlaps import check_complete, check_disjoint
from simcore.checkpoint.shards import ITEM_B, TensorSpec
from simcore.errors import InputError
from simcore.progress import Progress

METADATA = ".metadata"
DATA_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
RECORDS = frozenset(
    (
        *(f"torch.distributed.checkpoint.metadata {n}" for n in ("Metadata", "MetadataIndex", "TensorStorageMetadata")),
        *(f"torch.distributed.checkpoint.metadata {n}" for n in ("TensorProperties", "ChunkStorageMetadata")),
        *(f"torch.distributed.checkpoint.metadata {n}" for n in ("BytesStorageMetadata", "StorageMeta")),
        "torch.distributed.checkpoint.metadata _MEM_FORMAT_ENCODING",
        "torch.distributed.checkpoint.filesystem _StorageInfo",
        "torch.serialization _get_layout",
        "pathlib PosixPath",
        "pathlib._local PosixPath",
    )
)
"""Classes and functions that the metadata may name; all become `Record`."""


class Record:
    """What a pickle says about an object: its class by name, its arguments and its state. Does nothing."""

    arguments: tuple[Any, ...]
    state: dict[str, Any]

    def __new__(cls, *arguments: Any) -> "Record":
        made = object.__new__(cls)
        made.arguments, made.state = arguments, {}
        return made

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {"": state}

    def __getitem__(self, field: str) -> Any:
        return self.state[field]

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.state.get("fqn"), self.state.get("offset")))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and type(self).__name__ == type(other).__name__ and self.state == other.state


class Size(tuple[int, ...]):
    """A shape as it is in a pickle."""

    __slots__ = ()


class _Inert(pickle._Unpickler):
    """The unpickler in Python: the one in C allocates its memo by the largest index that a file names."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in ITEM_B:
            return name  # a dtype is named, never called
        if f"{module} {name}" in PLAIN:
            return PLAIN[f"{module} {name}"]
        if f"{module} {name}" in RECORDS:
            return type(name, (Record,), {})
        raise pickle.UnpicklingError(f"it names {module}.{name}, which this format does not have")

    def get_extension(self, code: int) -> Any:
        raise pickle.UnpicklingError(f"it uses extension {code}, which this format does not have")


PLAIN: Mapping[str, Any] = {"torch Size": Size, "collections OrderedDict": OrderedDict}


def is_dcp(folder: Path) -> bool:
    """Whether a folder holds a checkpoint of DCP."""
    return (folder / METADATA).is_file()


def read_dcp(folder: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Tensors and plain values by their flat names. Raises CorruptCheckpoint for what is not a sound checkpoint of DCP.

    Values that `torch.load(weights_only=True)` refuses are refused.
    """
    where = str(folder / METADATA)
    try:
        return _read(folder, _unpickled(folder / METADATA), where, progress)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError, EOFError) as error:
        if isinstance(error, CorruptCheckpoint):
            raise
        raise corrupt(where, "structure", f"{type(error).__name__}: {error}", "what torch writes") from error


def _unpickled(path: Path) -> Record:
    if path.stat().st_size > LARGEST_B:
        raise corrupt(str(path), "size", path.stat().st_size, f"at most {LARGEST_B} bytes")
    try:
        found = _Inert(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # whatever a pickle that is not one makes of it
        raise corrupt(str(path), "metadata", f"{type(error).__name__}: {error}", "a metadata file of torch") from error
    if type(found).__name__ != "Metadata" or not isinstance(found, Record):
        raise corrupt(str(path), "metadata", type(found).__name__, "Metadata")
    return found


def _read(folder: Path, metadata: Record, where: str, progress: Progress | None) -> dict[str, Any]:
    entries, stored = metadata["state_dict_metadata"], metadata["storage_data"]
    by_name: dict[str, list[tuple[Any, Record]]] = {}
    for index, info in stored.items():
        by_name.setdefault(index["fqn"], []).append((index.state.get("offset"), info))
    specs = {n: _spec(n, e, where) for n, e in entries.items() if type(e).__name__ == "TensorStorageMetadata"}
    _check_chunks(specs, entries, where)
    _check_room(specs, by_name, folder, where)
    found: dict[str, Any] = {}
    for i, (name, entry) in enumerate(entries.items()):
        if progress is not None:
            progress(i / len(entries), name)
        if name in specs:
            found[name] = _tensor(folder, specs[name], entry, by_name.get(name, []), where)
        else:
            found[name] = _loaded(folder, name, by_name[name][0][1], where)
    return found


def _spec(name: str, entry: Record, where: str) -> TensorSpec:
    dtype, shape = (
        entry["properties"].state[""][0],
        tuple(entry["size"][0] if _nested(entry["size"]) else entry["size"]),
    )
    if dtype not in ITEM_B or not all(isinstance(n, int) and 0 <= n <= LARGEST_TENSOR_B for n in shape):
        raise corrupt(where, name, f"{dtype} of shape {shape}", "a known dtype and lengths")
    spec = TensorSpec(name, shape, dtype)
    if spec.nbytes > LARGEST_TENSOR_B:
        raise corrupt(where, name, f"{spec.nbytes} bytes", f"at most {LARGEST_TENSOR_B}")
    return spec


def _nested(size: Any) -> bool:
    return len(size) == 1 and isinstance(size[0], tuple)


def _box(chunk: Record) -> Box:
    return Box(tuple(chunk["offsets"]), tuple(chunk["sizes"]))


def _check_chunks(specs: Mapping[str, TensorSpec], entries: Mapping[str, Record], where: str) -> None:
    """Chunks make up their tensors."""
    try:
        shards = merge_ranks(
            [[(spec, _box(chunk)) for n, spec in specs.items() for chunk in entries[n]["chunks"]]], list(specs.values())
        )
        check_complete(shards)
        check_disjoint(shards)
    except InputError as error:
        raise CorruptCheckpoint(f"{where} is not a sound checkpoint", error.problems) from error


def _check_room(
    specs: Mapping[str, TensorSpec], by_name: Mapping[str, list[tuple[Any, Record]]], folder: Path, where: str
) -> None:
    """A tensor is no larger than the items that hold it, and those lie within their files: nothing is allocated for a claim."""
    for name, spec in specs.items():
        stored_B = 0
        for _, info in by_name.get(name, []):
            path = _path(folder, info, where)
            if info["offset"] < 0 or info["length"] < 0 or info["offset"] + info["length"] > path.stat().st_size:
                raise corrupt(
                    where, name, f"bytes {info['offset']} + {info['length']} of {path.name}", "within the file"
                )
            if info.state.get("transform_descriptors"):
                raise corrupt(where, name, "a transformed item", "items as torch.save writes them")
            stored_B += info["length"]
        if spec.nbytes > stored_B:
            raise corrupt(where, name, f"{spec.nbytes} bytes in items of {stored_B}", "items that hold the tensor")


def _path(folder: Path, info: Record, where: str) -> Path:
    name = info["relative_path"]
    path = folder / str(name)
    if not isinstance(name, str) or not DATA_FILE.fullmatch(name) or path.is_symlink() or not path.is_file():
        raise corrupt(where, "data file", repr(name), "a file in the same folder")
    return path


def _loaded(folder: Path, name: str, info: Record, where: str) -> Any:
    """What an item holds: a tensor or plain values, never an object of another class."""
    path = _path(folder, info, where)
    with path.open("rb") as file:
        file.seek(info["offset"])
        data = file.read(info["length"])
    try:
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many kinds for what it refuses
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise corrupt(
            f"{path}, {name}", "item", f"{type(error).__name__}: {first}", "tensors and plain values"
        ) from error


def _tensor(folder: Path, spec: TensorSpec, entry: Record, items: list[tuple[Any, Record]], where: str) -> torch.Tensor:
    """All chunks of a tensor put together."""
    boxes = {box.offsets: box for box in map(_box, entry["chunks"])}
    tensor = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype))
    for offset, info in items:
        box = boxes[tuple(offset if offset is not None else (0,) * len(spec.shape))]
        chunk = _loaded(folder, spec.name, info, where)
        if not isinstance(chunk, torch.Tensor) or (tuple(chunk.shape), chunk.dtype) != (box.lengths, tensor.dtype):
            raise corrupt(
                where, spec.name, f"an item at {box.offsets} of another kind", f"{spec.dtype} of shape {box.lengths}"
            )
        part_of(tensor, whole(spec.shape), box).copy_(chunk)
    return tensor


def write_dcp(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Whole tensors as a checkpoint that torch's own `dcp.load` reads, at any parallelism."""
    folder.mkdir(parents=True, exist_ok=True)
    torch_dcp.save(dict(tensors), storage_writer=torch_dcp.FileSystemWriter(folder), no_dist=True)
