"""How a transformer is spread over ranks: sizes of the mesh, what is sharded and recomputed, and what stands in the way."""

from dataclasses import asdict, dataclass
from typing import Any

from costmodels.layers import Slice
from simcore.errors import Problem
from simcore.workloads.transformer_training import Workload

MOST_PASSES = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallelism:
    """Mesh sizes from slow to fast: pp, dp, cp, tp; `vpp` model chunks on each pipeline stage."""

    dp: int = 1
    tp: int = 1
    pp: int = 1
    cp: int = 1
    vpp: int = 1
    microbatch: int = 1  # sequences
    zero: int = 0
    recompute: str = "none"
    sequence_parallel: bool = False
    overlap: bool = True
    bucket_B: float = 25 * 2**20
    first_bucket_B: float = 2**20
    detail: str = "chunk"

    @property
    def n_ranks(self) -> int:
        return self.dp * self.tp * self.pp * self.cp

    @property
    def shards(self) -> int:
        """Ranks that hold the same weights and different tokens: what ZeRO shards over."""
        return self.dp * self.cp

    def microbatches(self, workload: Workload) -> int:
        """Microbatches that each replica works through in an iteration."""
        return workload.global_batch // (self.dp * self.microbatch)

    @property
    def schedule(self) -> str:
        return "interleaved" if self.vpp > 1 else "1f1b"

    @property
    def vocab_parallel(self) -> bool:
        return self.tp > 1 and self.detail == "chunk"

    def part(self, workload: Workload) -> Slice:
        """What one rank sees of a microbatch."""
        return Slice(
            batch=self.microbatch,
            seq_len=workload.seq_len,
            cp=self.cp,
            tp=self.tp,
            sequence_parallel=self.sequence_parallel,
            dtype=workload.precision,
            fused=self.detail == "chunk",
            vocab_parallel=self.vocab_parallel,
        )

    def decisions(self, workload: Workload) -> dict[str, Any]:
        """In the words of the field; enough for another program to bind the plan to modules."""
        fields = asdict(self)
        mesh = {name: fields.pop(name) for name in ("dp", "tp", "pp", "cp", "vpp")}
        return {
            "parallelism": mesh,
            **fields,
            "microbatches": self.microbatches(workload),
            "schedule": self.schedule,
            "precision": workload.precision,
            "grad_precision": workload.grad_precision,
            "optimizer": "adamw",
            "vocab_parallel": self.vocab_parallel,
        }


def problems_of(p: Parallelism, workload: Workload, n_ranks: int) -> list[Problem]:
    """Everything that keeps `p` from being a plan on `n_ranks` ranks; fields as `planner.tp`."""
    shape = workload.shape
    rules = [
        ("tp", p.tp, shape.heads % p.tp == 0, f"a divisor of the model's heads ({shape.heads})"),
        ("tp", p.tp, p.tp <= shape.kv_heads or p.tp % shape.kv_heads == 0, f"a divisor or multiple of kv_heads ({shape.kv_heads})"),
        ("tp", p.tp, shape.ffn % p.tp == 0, f"a divisor of the model's ffn ({shape.ffn})"),
        ("pp", p.pp, p.pp * p.vpp <= shape.layers + 2, f"with vpp at most layers + 2 ({shape.layers + 2}) chunks"),
        ("vpp", p.vpp, p.vpp == 1 or p.pp > 1, "1 without pipeline parallelism"),
        ("cp", p.cp, workload.seq_len % (2 * p.cp) == 0 or p.cp == 1, f"a divisor of half of seq_len ({workload.seq_len})"),
        ("zero", p.zero, p.zero < 3 or p.vpp == 1, "0 to 2 with interleaving"),
        ("sequence_parallel", p.sequence_parallel, not p.sequence_parallel or p.tp > 1, "false without tensor parallelism"),
        ("detail", p.detail, p.detail == "chunk" or (p.pp == 1 and p.cp == 1), "chunk with pipeline or context parallelism"),
        ("detail", p.detail, p.detail == "chunk" or not p.sequence_parallel, "chunk with sequence parallelism"),
        ("recompute", p.recompute, p.detail == "chunk" or p.recompute == "none", "none with detail: layer"),
        ("sequence_parallel", p.sequence_parallel, not p.sequence_parallel or workload.seq_len % (p.cp * p.tp) == 0,
         f"false where tp and cp do not divide the sequence ({workload.seq_len} tokens)"),
    ]  # fmt: skip
    found = [Problem(f"planner.{name}", str(given), allowed) for name, given, holds, allowed in rules if not holds]
    if p.n_ranks != n_ranks:
        given = f"dp {p.dp} x tp {p.tp} x pp {p.pp} x cp {p.cp} = {p.n_ranks} ranks"
        advice = "Leave dp out and it takes what is left."
        found.append(Problem("planner.dp", given, f"{n_ranks} ranks, those of the cluster", advice))
    if workload.global_batch % (p.dp * p.microbatch):
        given = f"dp {p.dp} x microbatch {p.microbatch}"
        found.append(
            Problem("planner.microbatch", given, f"a divisor of workload.global_batch ({workload.global_batch})")
        )
    elif p.vpp > 1 and p.microbatches(workload) % p.pp:
        given = f"{p.microbatches(workload)} microbatches on {p.pp} stages"
        found.append(Problem("planner.vpp", given, "with interleaving a number of microbatches that pp divides"))
    found += _too_long(p, workload)
    return found


def _too_long(p: Parallelism, workload: Workload) -> list[Problem]:
    """A plan lists every pass of every microbatch; a list of millions is a mistake in some size."""
    parts = p.pp * p.vpp if p.detail == "chunk" else workload.shape.layers
    passes = 2 * p.microbatches(workload) * parts
    if passes <= MOST_PASSES:
        return []
    given = f"{p.microbatches(workload)} microbatches through {parts} parts"
    advice = "Take larger microbatches or a smaller global_batch."
    return [Problem("planner.microbatch", given, f"at most {MOST_PASSES} passes in an iteration", advice)]
