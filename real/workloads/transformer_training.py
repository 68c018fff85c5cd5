"""Transformer training for real: data parallel, ZeRO (FSDP2) and tensor parallel, on a Llama."""

import torch

from real.here import most_ranks
from real.model import DTYPES
from real.ranks import run_ranks as run
from simcore.errors import Problem
from simcore.plan import Plan

__all__ = ["lacking", "run"]


def lacking(plan: Plan) -> list[Problem]:
    """What keeps the plan from running here."""
    chosen, mesh, model = plan.decisions, plan.decisions["parallelism"], plan.workload["model"]
    gpus = torch.cuda.device_count()
    most, what = most_ranks()
    dtypes = [d for d in DTYPES if gpus or d == "float32"]
    rules = [
        ("n_ranks", plan.n_ranks, plan.n_ranks <= most, f"at most {most}, the {what}"),
        ("planner.detail", chosen.get("detail"), chosen.get("detail") == "layer", "layer: one task for each module"),
        ("planner.pp", mesh["pp"], mesh["pp"] == 1, "1: pipelines are only simulated"),
        ("planner.cp", mesh["cp"], mesh["cp"] == 1, "1: context parallelism is only simulated"),
        ("planner.recompute", chosen["recompute"], chosen["recompute"] == "none", "none"),
        ("planner.zero", chosen["zero"], chosen["zero"] == 0 or mesh["tp"] == 1, "0 together with tensor parallelism"),
        ("planner.tp", mesh["tp"], model["kv_heads"] % mesh["tp"] == 0, f"a divisor of kv_heads ({model['kv_heads']})"),
        ("planner.overlap", chosen["overlap"], chosen["zero"] < 2 or not chosen["overlap"] or mesh["dp"] == 1,
         "false with zero 2 and 3 on a CPU, where FSDP2 waits for its collectives"),
        ("workload.precision", plan.workload["precision"], plan.workload["precision"] in dtypes, ", ".join(dtypes)),
        ("workload.model.gated", model["gated"], bool(model["gated"]) and model["norm"] == "rmsnorm", "a Llama: gated, rmsnorm"),
        ("workload.model.tied_embeddings", model["tied_embeddings"], not model["tied_embeddings"], "false"),
        ("workload.model.vocab", model["vocab"], model["vocab"] >= 256, "at least 256: tokens are bytes"),
        ("workload.seq_len", plan.workload["seq_len"], plan.workload["seq_len"] <= 65536, "at most 65536"),
    ]  # fmt: skip
    return [Problem(field, repr(given), allowed) for field, given, holds, allowed in rules if not holds]
