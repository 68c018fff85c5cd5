"""The steps of a load: choose a checkpoint, read what it holds, agree on who reads what, read, and give the state back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from real.checkpoint.agreeing import gather_layouts, gather_problems, merged_wanted
from real.checkpoint.choosing import choose
from real.checkpoint.errors import CorruptCheckpoint, corrupt
from real.checkpoint.inspecting import check_files
from real.checkpoint.leaves import Described, Piece, describe
from real.checkpoint.metadata import FILE, Metadata, decode
from real.checkpoint.ranks import Ranks
from real.checkpoint.reading import Loader
from real.checkpoint.storage import Storage
from real.checkpoint.values import SKIPPED, from_plain
from simcore.checkpoint.boxes import Box, whole
from simcore.checkpoint.loading import read_plan
from simcore.errors import WindtunnelError


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was loaded. `state` has the roles that were asked for: the tensors that were given, filled, and saved values.

    `by_rank[role][r]` is what rank r saved of a role that every rank keeps by itself. `read_B` is what this rank read.
    """

    name: str
    step: int
    n_ranks: int
    parallelism: Mapping[str, int]
    state: dict[str, Any]
    by_rank: dict[str, dict[int, Any]]
    read_B: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """One load of one rank; `state` has the tensors to fill."""

    storage: Storage
    ranks: Ranks
    state: Mapping[str, Any]
    per_rank: tuple[str, ...]
    threads: int

    def __call__(
        self, name: str | None, step: int | None, by_rank: Sequence[int] | None, read_groups: Sequence[int] | None
    ) -> Loaded:
        """See `Checkpointer.load`."""
        chosen = self._agreed_choice(name, step)
        metadata, described, own, layouts = self._described(chosen, by_rank)
        wanted = merged_wanted(layouts, metadata.tensors, metadata.aliases)
        groups = None if read_groups is None else np.asarray(read_groups, dtype=np.int64)
        plan = read_plan(metadata.shards, wanted, groups)
        targets = _targets(metadata, described)
        loader = Loader(self.storage, chosen, metadata, plan, self.ranks, targets, self.threads)
        read_B = loader.run()
        damage = CorruptCheckpoint("the checkpoint cannot be loaded", loader.problems[:20]) if loader.problems else None
        gather_problems(self.ranks, damage)
        state, kept = self._values(metadata, described, own)
        return Loaded(chosen, metadata.step, metadata.n_ranks, metadata.parallelism, state, kept, read_B)

    def _agreed_choice(self, name: str | None, step: int | None) -> str:
        chosen, mistake = "", None
        if self.ranks.rank == 0:
            try:
                chosen = choose(self.storage, name, step)
            except WindtunnelError as error:
                mistake = error
        return gather_problems(self.ranks, mistake, chosen.encode())[0].decode()

    def _described(
        self, chosen: str, by_rank: Sequence[int] | None
    ) -> tuple[Metadata, Described, list[int], list[dict[str, Any]]]:
        """What the checkpoint has, and what this rank and all ranks want; every rank raises if one cannot go on."""
        described, mistake = None, None
        try:
            metadata = decode(self.storage.metadata(chosen), f"{chosen}/{FILE}")
            shared = {role: tree for role, tree in self.state.items() if role not in self.per_rank}
            own = [r for r in ([self.ranks.rank] if by_rank is None else by_rank) if 0 <= r < metadata.n_ranks]
            described = self._with_own(describe(shared, self.ranks.rank, ()), chosen, metadata, own)
        except WindtunnelError as error:
            mistake = error
        layouts = gather_layouts(self.ranks, described, mistake)
        assert described is not None  # or everybody has raised
        return metadata, described, own, layouts

    def _with_own(self, described: Described, chosen: str, metadata: Metadata, own: Sequence[int]) -> Described:
        """Tensors of roles that ranks keep by themselves are made here: nobody has them yet."""
        prefixes = tuple(f"{role}/{rank}/" for role in self.per_rank if role in self.state for rank in own)
        known = {t.name: t for t in metadata.tensors}
        names = {a: n for a, n in metadata.aliases.items() if a.startswith(prefixes)} | {
            n: n for n in known if n.startswith(prefixes)
        }
        specs = {name: replace(known[saved], name=name) for name, saved in names.items()}
        own_names = set(names.values())
        rows = np.isin(metadata.tensor, [i for i, t in enumerate(metadata.tensors) if t.name in own_names])
        check_files(self.storage, chosen, metadata, np.unique(metadata.file[rows]).tolist())
        fresh = {n: torch.empty(t.shape, dtype=getattr(torch, t.dtype)) for n, t in specs.items()}
        pieces = [Piece(t, whole(t.shape), fresh[n]) for n, t in specs.items() if t.nbytes]
        return replace(
            described,
            pieces=(*described.pieces, *pieces),
            specs={**described.specs, **specs},
            leaves={**described.leaves, **fresh},
        )

    def _values(
        self, metadata: Metadata, described: Described, own: Sequence[int]
    ) -> tuple[dict[str, Any], dict[str, dict[int, Any]]]:
        """Trees of the roles that were asked for, with tensors in them."""
        leaf = lambda name: described.leaves.get(name, SKIPPED)  # noqa: E731
        state: dict[str, Any] = {}
        kept: dict[str, dict[int, Any]] = {}
        for role in self.state:
            plain = metadata.values.get(role, {})
            if role not in self.per_rank:
                state[role] = from_plain(plain, leaf)
                continue
            if not isinstance(plain, dict):
                raise corrupt(metadata_name(metadata), f"values of {role}", type(plain).__name__, "an object of ranks")
            kept[role] = {r: from_plain(plain[str(r)], leaf) for r in own if str(r) in plain}
        return state, kept


def metadata_name(metadata: Metadata) -> str:
    """How errors call it."""
    return f"the metadata of step {metadata.step}"


def _targets(metadata: Metadata, described: Described) -> dict[tuple[int, Box], list[Piece]]:
    """This rank's memory by (position of the saved tensor, box)."""
    position = {t.name: i for i, t in enumerate(metadata.tensors)}
    targets: dict[tuple[int, Box], list[Piece]] = {}
    for piece in described.pieces:
        saved = position.get(metadata.aliases.get(piece.spec.name, piece.spec.name))
        if saved is not None:
            targets.setdefault((saved, piece.box), []).append(piece)
    return targets
