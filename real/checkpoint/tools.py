"""What `windtunnel checkpoint` does, as functions that return plain data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from real.checkpoint.choosing import choose
from real.checkpoint.errors import CheckpointError, CorruptCheckpoint
from real.checkpoint.inspecting import diff, in_short, opened, plain_values, verify, written_B
from real.checkpoint.opening import open_storage
from real.checkpoint.retention import prune, to_remove
from real.checkpoint.storage import NAME, Storage
from simcore.errors import InputError, Problem
from simcore.progress import Progress

FORMATS = ("windtunnel", "safetensors", "dcp")


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was written, and what the result does not hold."""

    written: str
    left_out: tuple[str, ...] = ()


def located(path: str) -> tuple[Storage, str]:
    """The storage and the name of a checkpoint: PATH itself where it is one, else the last that was committed under PATH."""
    parent, _, last = path.rstrip("/").rpartition("/")
    if NAME.fullmatch(last):
        storage = open_storage(parent or ("/" if path.startswith("/") else "."))
        return storage, choose(storage, last, None)
    storage = open_storage(path)
    if not storage.names():
        raise CheckpointError("no checkpoint is there", [Problem("PATH", path, "a folder of checkpoints", _hint(path))])
    return storage, choose(storage, None, None)


def _hint(path: str) -> str:
    """What PATH may be instead."""
    if "://" in path:
        return ""
    if not Path(path).exists():
        return "There is no such file or folder."
    if (
        (Path(path) / ".metadata").is_file()
        or Path(path).suffix == ".safetensors"
        or any(Path(path).glob("*.safetensors"))
    ):
        return "It is another format: `windtunnel checkpoint convert` reads it."
    return "A checkpoint is a folder step-N with metadata.wtc in it; PATH is that, or the folder that holds it."


def summary(path: str) -> dict[str, Any]:
    """Facts, tensors and bytes that each rank wrote."""
    storage, name = located(path)
    metadata = opened(storage, name)
    counts = np.bincount(metadata.tensor, minlength=len(metadata.tensors)).tolist()
    return {
        "name": name,
        "step": metadata.step,
        "n_ranks": metadata.n_ranks,
        "parallelism": dict(metadata.parallelism),
        "nbytes": metadata.shards.total_B,
        "shards": len(metadata.shards),
        "files": len(metadata.files),
        "tensors": [
            {"name": t.name, "role": t.role, "dtype": t.dtype, "shape": list(t.shape), "nbytes": t.nbytes, "shards": n}
            for t, n in zip(metadata.tensors, counts, strict=True)
        ],
        "aliases": dict(metadata.aliases),
        "values": {name: in_short(value) for name, value in plain_values(metadata).items()},
        "written_B": written_B(metadata),
    }


def verified(path: str, progress: Progress | None = None) -> dict[str, Any]:
    """How much was read. Raises CorruptCheckpoint with every file and shard that is damaged."""
    storage, name = located(path)
    problems = verify(storage, name, progress)
    if problems:
        raise CorruptCheckpoint(f"{name} is damaged", problems)
    metadata = opened(storage, name)
    return {"name": name, "shards": len(metadata.shards), "nbytes": metadata.shards.total_B}


def differences(first: str, second: str, progress: Progress | None = None) -> list[dict[str, str]]:
    """Rows of what differs."""
    return [{"name": d.name, "what": d.what} for d in diff(located(first), located(second), progress)]


def pruned(path: str, keep: int, *, dry_run: bool = False) -> list[str]:
    """Names of checkpoints that were, or would be, removed; leftovers go as well."""
    storage = open_storage(path)
    if dry_run:
        return to_remove(storage, keep)
    found = to_remove(storage, keep)
    return [*storage.clean(frozenset()), *prune(storage, keep)] if found or keep else found


def convert(source: str, target: str | Path, to: str, step: int, progress: Progress | None = None) -> Conversion:
    """Read PATH in whatever format it is and write `target`: a folder, for this project's format also an address of fsspec."""
    if to not in FORMATS:
        raise InputError("unknown format", [Problem("--to", to, ", ".join(FORMATS))])
    if to != "windtunnel" and "://" in str(target):
        raise InputError("other formats are written to folders", [Problem("TARGET", str(target), "a folder")])
    from real.checkpoint.converting import converted

    written, left_out = converted(source, str(target), to, step, progress)
    return Conversion(written, tuple(left_out))
