"""Between this format, Hugging Face safetensors and torch's distributed checkpoints.

Whole tensors pass through memory a shard at a time where the format has shards, a tensor at a time otherwise.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import save_file

from real.checkpoint.checkpointer import PER_RANK, save
from real.checkpoint.dcp import is_dcp, read_dcp, write_dcp
from real.checkpoint.errors import CheckpointError
from real.checkpoint.inspecting import check_files, opened, shard_bytes
from real.checkpoint.memory import part_of
from real.checkpoint.metadata import Metadata
from real.checkpoint.storage import Storage
from real.checkpoint.tools import located
from real.checkpoint.values import SKIPPED, from_plain
from real.checkpoint.writing import stem_of
from simcore.checkpoint.boxes import whole
from simcore.errors import Problem
from simcore.progress import Progress

LARGEST_FILE_B = 5 * 10**9
"""Of a safetensors file, as Hugging Face's own tools cut them."""


@dataclass(frozen=True, slots=True)
class Source:
    """What was read: tensors by role and name, the whole trees where the format keeps them, the step if it is known."""

    tensors: Mapping[str, Mapping[str, Any]]
    trees: Mapping[str, Any] | None = None
    step: int | None = None
    left_out: tuple[str, ...] = ()


def converted(source: str, target: str, to: str, step: int, progress: Progress | None) -> tuple[str, list[str]]:
    """Read `source` in the format that it is in, write `target` in format `to`; returns what was written and what is not in it."""
    read = read_any(source, progress)
    if to == "windtunnel":
        state = read.tensors if read.trees is None else read.trees
        name = save(target, state, step=step if read.step is None else read.step)
        return f"{target.rstrip('/')}/{name}", list(read.left_out)
    values = [] if read.trees is None else [f"values of {role}" for role in read.trees if _has_values(read.trees[role])]
    left_out = [*read.left_out, *values]
    if to == "safetensors":
        stems: dict[str, dict[str, torch.Tensor]] = {}
        for role in sorted(read.tensors, key=lambda role: role != "model"):
            stem = stem_of(role)
            while stem in stems:
                stem += "_"
            stems[stem] = dict(_flat({role: read.tensors[role]}))
        written = [write_safetensors(tensors, Path(target), stem) for stem, tensors in stems.items()]
        return written[0] if written else target, left_out
    write_dcp(dict(_flat(read.tensors)), Path(target))
    return target, left_out


def _has_values(tree: Any) -> bool:
    """Whether anything in it is no tensor."""
    if isinstance(tree, Mapping | list | tuple):
        return any(map(_has_values, tree.values() if isinstance(tree, Mapping) else tree))
    return not isinstance(tree, torch.Tensor)


def read_any(source: str, progress: Progress | None) -> Source:
    """A checkpoint of any of the formats."""
    path = Path(source)
    if path.is_dir() and is_dcp(path):
        return Source(_by_role(read_dcp(path, progress).items()))
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path] if path.suffix == ".safetensors" else []
    if files:
        return Source(_by_role(read_safetensors(files)))
    storage, name = located(source)
    metadata = opened(storage, name)
    kept = {role: tree for role, tree in metadata.values.items() if role not in PER_RANK}
    tensors = whole_state(storage, name, metadata, progress)
    named = {f"{role}/{n}" if n != role else role: t for role, of in tensors.items() for n, t in of.items()}
    trees = {role: from_plain(tree, lambda full: named.get(full, SKIPPED)) for role, tree in kept.items()}
    own = tuple(f"{role}, which belongs to ranks" for role in metadata.values if role in PER_RANK)
    return Source(tensors, trees, metadata.step, own)


def whole_state(storage: Storage, name: str, metadata: Metadata, progress: Progress | None) -> dict[str, Any]:
    """Every tensor that ranks share, put together, by role and the rest of its name. Raises CheckpointError for damage."""
    check_files(storage, name, metadata)
    shared = [t for t in metadata.tensors if t.role not in PER_RANK]
    tensors = {t.name: torch.empty(t.shape, dtype=getattr(torch, t.dtype)) for t in shared}
    for row in range(len(metadata.shards)):
        spec, box = metadata.tensors[metadata.tensor[row]], metadata.shards.box(row)
        if spec.name not in tensors:
            continue
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
    named = {**tensors, **{alias: tensors[of] for alias, of in metadata.aliases.items() if of in tensors}}
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


def write_safetensors(tensors: Mapping[str, torch.Tensor], target: Path, stem: str = "model") -> str:
    """Files `stem`... of up to 5 GB and, if they are several, the index that Hugging Face's loaders look for.

    Tensors that share memory are written under each of their names.
    """
    target.mkdir(parents=True, exist_ok=True)
    groups = _groups(tensors)
    if len(groups) == 1:
        return _put(groups[0], target / f"{stem}.safetensors")
    weight_map: dict[str, str] = {}
    for i, group in enumerate(groups):
        file = f"{stem}-{i + 1:05d}-of-{len(groups):05d}.safetensors"
        _put(group, target / file)
        weight_map |= dict.fromkeys(group, file)
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = target / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2))
    return str(index)


def _groups(tensors: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Tensors of each file, in their order."""
    groups: list[dict[str, torch.Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        nbytes = tensor.numel() * tensor.element_size()
        if groups[-1] and filled + nbytes > LARGEST_FILE_B:
            groups.append({})
            filled = 0
        groups[-1][name] = tensor
        filled += nbytes
    return groups


def _put(tensors: Mapping[str, torch.Tensor], path: Path) -> str:
    """One file, to be read by whoever may read its folder: safetensors leaves it to its owner alone."""
    save_file({name: t.clone() for name, t in tensors.items()}, path, metadata={"format": "pt"})
    path.chmod(path.parent.stat().st_mode & 0o666)
    return str(path)
