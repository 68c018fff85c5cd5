"""Whole training iterations: the columns of `training.csv`; seconds of an iteration come out, and bytes of a rank's memory.

Times are taken from iter_time_s, or from tokens a second where it is missing; rows with neither are left out.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from costmodels import fitted as fits
from costmodels import memory
from costmodels.arithmetic import native_dtype
from costmodels.catalog import Catalog
from costmodels.prediction import Floats, Prediction
from costmodels.tables.table import Fitted, TableSpec, rows_of
from costmodels.transformer import training_flops
from simcore.cost import CostModel
from simcore.training.choice import Choice
from simcore.training.configurations import RECOMPUTE, Configurations
from simcore.training.moe_parts import ExpertParts
from simcore.training.overheads import ARCHITECTURES, NONE, Overheads
from simcore.training.quick import Quick
from simcore.training.quick_parts import Parts
from simcore.training.rows import Job, Reader, seconds_of

if TYPE_CHECKING:
    import pandas as pd

MICROBATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
CHUNKS = (1, 2, 3, 4, 5, 6, 8)

DEEPSPEED_STATES = memory.States(weights=2.0, gradients=2.0, optimizer=18.0)
"""DeepSpeed's ZeRO 1 keeps and reduces gradients in 16 bits; a shard has a float32 copy of weights, two moments, its gradients in
float32, and a 16-bit buffer to gather from."""

DEEPSPEED_OVERHEAD_B = 6.5e9
"""Context, communicators, and the flat buffers in which gradients are reduced (500 M values of 16 bits, twice)."""


def predict(frame: "pd.DataFrame", catalog: Catalog, fitted: Fitted | None = None) -> Prediction:
    """(rows,) seconds of an iteration, NaN where a row does not say enough."""
    known = fitted if fitted is not None else fits.load("training")
    seconds, error = np.full(len(frame), np.nan), np.full(len(frame), np.nan)
    extrapolated = np.ones(len(frame), dtype=np.bool_)
    for i, job in enumerate(jobs_of(frame, catalog)):
        if job is not None:
            seconds[i] = iteration(job, known)
            error[i] = known.get("error", {}).get(kind_of(job), np.nan)
            extrapolated[i] = kind_of(job) != "seen"
    return Prediction(seconds=seconds, error=error, extrapolated=extrapolated)


def kind_of(job: Job) -> str:
    """Which error to expect: dense models on architectures of the fit, on others, or experts."""
    if job.model.experts is not None:
        return "experts"
    return "seen" if job.cluster.devices[0].architecture in ARCHITECTURES else "unseen"


def predict_memory(frame: "pd.DataFrame", catalog: Catalog, _fitted: Fitted | None = None) -> Floats:
    """(rows,) bytes of the fullest rank, NaN as in `predict`."""
    found = np.full(len(frame), np.nan)
    for i, job in enumerate(jobs_of(frame, catalog)):
        if job is not None:
            quick, choice = settled(job, NONE)
            found[i] = float(quick.memory_B(table_of(choice))[0])
    return found


def memory_errors(frame: "pd.DataFrame", catalog: Catalog) -> Floats:
    """(rows,) signed relative errors of `predict_memory`, NaN where no memory was published."""
    out = np.full(len(frame), np.nan)
    if "mem_gib_per_gpu" in frame.columns:
        published = (frame["mem_gib_per_gpu"] > 0).to_numpy()
        known = frame[published].reset_index(drop=True)
        out[published] = predict_memory(known, catalog) / (known["mem_gib_per_gpu"].to_numpy() * 2.0**30) - 1.0
    return out


def jobs_of(frame: "pd.DataFrame", catalog: Catalog) -> list[Job | None]:
    reader = Reader(catalog)
    return [reader.job(row) for row in rows_of(frame)]


def iteration(job: Job, known: Mapping[str, Any]) -> float:
    """Seconds of one iteration of a job."""
    quick, choice = settled(job, overheads_of(job, known["parameters"]))
    return job.share * float(quick.seconds(table_of(choice))[0])


def overheads_of(job: Job, parameters: Mapping[str, Any]) -> Overheads:
    """The fitted numbers of all jobs, over them those of the job's framework, and of it on an architecture."""
    architecture = job.cluster.devices[0].architecture
    levels = (job.framework, f"{job.framework}/{architecture}")
    return Overheads.read({**parameters, **{k: v for level in levels for k, v in parameters.get(level, {}).items()}})


def quick_of(job: Job, overheads: Overheads) -> Quick:
    cost = CostModel(job.cluster, NONE)
    if job.model.experts is not None:
        parts: Parts = ExpertParts(
            job.workload, job.cluster, cost, experts=job.model.experts, ep=job.ep, by_layer=False
        )
    else:
        parts = Parts(job.workload, job.cluster, cost, early_stop=job.early_stop, by_layer=False)
    return Quick(
        parts,
        lambda table, i: _chosen(job.choice, table, i),
        overheads=overheads,
        overlap=job.choice.overlap,
        gathers_beside=job.choice.overlap_param_gather,
        ends_count=job.choice.ends_count_as_layers,
        states=DEEPSPEED_STATES if job.framework == "deepspeed" else None,
        overhead_B=overhead_B(job),
        transient=1.0,
        settles=True,
    )


def overhead_B(job: Job) -> float:
    """Nothing where the allocator's own count was published."""
    if job.allocated_only:
        return 0.0
    return DEEPSPEED_OVERHEAD_B if job.framework == "deepspeed" else memory.OVERHEAD_B


def settled(job: Job, overheads: Overheads) -> tuple[Quick, Choice]:
    """With what the row leaves open chosen: the fastest that fits."""
    quick = quick_of(job, overheads)
    options = _options(job)
    if len(options) == 1:
        return quick, options[0]
    table = table_of(*options)
    seconds, fits_in = quick.seconds(table), quick.memory_B(table) <= job.cluster.devices[0].memory_B
    best = int(np.where(fits_in, seconds, np.inf).argmin()) if fits_in.any() else int(quick.memory_B(table).argmin())
    return quick, options[best]


def _options(job: Job) -> list[Choice]:
    choices = [job.choice]
    if "microbatch" in job.open:
        replica = max(job.workload.global_batch // job.choice.dp, 1)
        sizes = [m for m in MICROBATCHES if replica % m == 0] + ([replica] if replica not in MICROBATCHES else [])
        choices = [replace(c, microbatch=m) for c in choices for m in sizes]
    if "chunks" in job.open:
        layers = job.workload.model.layers
        choices = [replace(c, vpp=v) for c in choices for v in CHUNKS if layers % (c.pp * v) == 0] or choices
    return choices


def table_of(*choices: Choice) -> Configurations:
    """One row for each choice."""
    rows = [(c.dp, c.tp, c.pp, c.cp, c.vpp, c.microbatch, RECOMPUTE.index(c.recompute), c.zero) for c in choices]
    return Configurations(*np.array(rows, dtype=np.int64).T)


def _chosen(choice: Choice, table: Configurations, i: int) -> Choice:
    return replace(choice, microbatch=int(table.microbatch[i]), vpp=int(table.vpp[i]))


def roofline(frame: "pd.DataFrame", catalog: Catalog) -> Floats:
    """Model FLOPs over the peak of all devices."""
    out = np.full(len(frame), np.nan)
    for i, job in enumerate(jobs_of(frame, catalog)):
        if job is not None:
            device, work = job.cluster.devices[0], job.workload
            peak = device.flop_per_s[native_dtype(job.peak_dtype, device)]
            out[i] = (
                job.flops_share
                * training_flops(work.model, work.seq_len, work.global_batch)
                / (peak * job.cluster.n_ranks)
            )
    return out


def prepare(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Rows with a time, which is put into `iteration_s`; `kind` and `class` are for the scoreboard."""
    rows = rows_of(frame)
    prepared = frame.assign(
        iteration_s=[seconds_of(row) for row in rows],
        kind=["experts" if isinstance(row.get("moe"), str) else "dense" for row in rows],
        trust=[str(row.get("confidence")).split(" ")[0] for row in rows],
    )
    return prepared[prepared["iteration_s"] > 0].reset_index(drop=True)


TABLE = TableSpec(
    columns=("gpu", "n_gpus", "model", "seq_len", "precision", "gbs"),
    numbers=("n_gpus", "seq_len", "iter_time_s"),
    measured="iteration_s",
    groups=("gpu", "kind", "trust", "precision", "source"),
    predict=predict,
    roofline=roofline,
    prepare=prepare,
    memory=memory_errors,
)
