"""Between this format, Hugging Face safetensors and torch's distributed checkpoints.

Whole tensors pass through memory a shard at a time where the format has shards, a tensor at a time otherwise.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import save_file

from real.checkpoint.checkpointer import save
from real.checkpoint.dcp import is_dcp, read_dcp, write_dcp
from real.checkpoint.errors import CheckpointError
from real.checkpoint.inspecting import opened, shard_bytes
from real.checkpoint.memory import part_of
from real.checkpoint.metadata import Metadata
from real.checkpoint.storage import Storage
from real.checkpoint.tools import located
from simcore.checkpoint.boxes import whole
from simcore.errors import Problem
from simcore.progress import Progress

LARGEST_FILE_B = 5 * 10**9
"""Of a safetensors file, as Hugging Face's own tools cut them."""
INDEX = "model.safetensors.index.json"


def converted(source: str, target: Path, to: str, step: int, progress: Progress | None) -> str:
    """Read `source` in the format that it is in, write `target` in format `to`; returns what was written."""
    state, found_step = read_any(source, progress)
    if to == "windtunnel":
        return str(target / save(target, state, step=step if found_step is None else found_step))
    flat = dict(_flat(state))
    if to == "safetensors":
        return write_safetensors(flat, target)
    write_dcp(flat, target)
    return str(target)


def read_any(source: str, progress: Progress | None) -> tuple[dict[str, Any], int | None]:
    """The state and its step, if that is known."""
    path = Path(source)
    if path.is_dir() and is_dcp(path):
        return _by_role(read_dcp(path, progress).items()), None
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path] if path.suffix == ".safetensors" else []
    if files:
        return _by_role(read_safetensors(files)), None
    storage, name = located(source)
    metadata = opened(storage, name)
    return whole_state(storage, name, metadata, progress), metadata.step


def whole_state(storage: Storage, name: str, metadata: Metadata, progress: Progress | None) -> dict[str, Any]:
    """Every tensor of a checkpoint put together, by role and the rest of its name. Raises CheckpointError for damage."""
    tensors = {t.name: torch.empty(t.shape, dtype=getattr(torch, t.dtype)) for t in metadata.tensors}
    for row in range(len(metadata.shards)):
        spec, box = metadata.tensors[metadata.tensor[row]], metadata.shards.box(row)
        if progress is not None:
            progress(row / len(metadata.shards), spec.name)
        data = shard_bytes(storage, name, metadata, row)
        if xxhash.xxh3_64_intdigest(data) != int(metadata.checksum[row]):
            problem = Problem(f"{name}, shard {metadata.words(row)}", "another checksum", "the one that was written")
            raise CheckpointError("the checkpoint is damaged", [problem])
        part_of(tensors[spec.name], whole(spec.shape), box).copy_(
            torch.frombuffer(data, dtype=getattr(torch, spec.dtype)).view(box.lengths)
        )
    state: dict[str, Any] = {}
    named = {**tensors, **{alias: tensors[of] for alias, of in metadata.aliases.items()}}
    for full, tensor in named.items():
        role, _, rest = full.partition("/")
        state.setdefault(role, {})[rest or role] = tensor
    return state


def _flat(state: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors by name: those of the model by their own, others with their role in front."""
    for role, tensors in state.items():
        for name, tensor in tensors.items():
            yield (name if role == "model" else f"{role}/{name}"), tensor


def _by_role(named: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The other way: what has no role in front of its name is the model's."""
    state: dict[str, Any] = {}
    for full, value in named:
        role, found, name = full.partition("/")
        state.setdefault(role if found else "model", {})[name if found else full] = value
    return state


def read_safetensors(files: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of safetensors files by name."""
    for path in files:
        with safe_open(path, framework="pt") as opened_file:
            for name in opened_file.keys():  # noqa: SIM118 - it is not a dict
                yield name, opened_file.get_tensor(name)


def write_safetensors(tensors: Mapping[str, torch.Tensor], target: Path) -> str:
    """Files of up to 5 GB and, if they are several, the index that Hugging Face's loaders look for.

    Tensors that share memory are written under each of their names.
    """
    target.mkdir(parents=True, exist_ok=True)
    groups: list[dict[str, torch.Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        nbytes = tensor.numel() * tensor.element_size()
        if groups[-1] and filled + nbytes > LARGEST_FILE_B:
            groups.append({})
            filled = 0
        groups[-1][name] = tensor.clone() if tensor.numel() else tensor
        filled += nbytes
    if len(groups) == 1:
        save_file(groups[0], target / "model.safetensors", metadata={"format": "pt"})
        return str(target / "model.safetensors")
    weight_map: dict[str, str] = {}
    for i, group in enumerate(groups):
        file = f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors"
        save_file(group, target / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(group, file)
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
    (target / INDEX).write_text(index)
    return str(target / INDEX)
