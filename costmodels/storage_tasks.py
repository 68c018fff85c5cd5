"""From the words of a storage measurement to what was moved, by which program, from or to which store; and its seconds.

Of most rows the store is known by a few words only ("4x Gen5 NVMe"): they are mapped to an entry of the catalogue and a number of
drives. MLPerf Storage does not measure a store: training asks for what it needs, and submissions end where it stalls too long.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.catalog import Catalog
from costmodels.prediction import Bools, Floats
from costmodels.served_models import shape_of
from costmodels.specs import StoreSpec
from costmodels.storage import array, limits, loading_B_per_s, transfer_seconds
from costmodels.transformer import total_elements

Fitted = Mapping[str, Any]
GB = 1e9
UNSIZED_B = 1e12
"""Of a rate without a size: so many that a start does not count."""
RATES = {"mib/s": 2**20, "gib/s": 2**30, "tib/s": 2**40, "gb/s": 1e9, "mb/s": 1e6, "tb/s": 1e12}
TIMES = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "min": 60.0}
SAMPLES_B = {"unet3d": 146_600_628.0, "resnet50": 114_660.07, "cosmoflow": 2_828_486.0}
"""Of a file or record, mean; MLPerf Storage v1.0, workload configurations."""
STORES = (
    (r"page cache|/dev/shm|tmpfs", "dev_shm"),
    (r"gp3|ebs", "ebs_gp3"),
    (r"s3\b|object|gcs|blob", "object_store"),
    (r"hdfs", "hdfs"),
    (r"gpfs|spectrum", "gpfs"),
    (r"lustre|exascaler", "lustre"),
    (r"3fs|weka|beegfs", "flash_cluster"),
    (r"\bnfs|nas\b|filestore", "nfs"),
    (r"980 pro|pm9a3", "nvme_gen4"),
    (r"gen5|pcie5|pcie 5", "nvme_gen5"),
    (r"gen3|pcie3|pcie 3", "nvme_gen3"),
    (r"nvme|ssd|local|gen4|pcie4|pcie 4", "nvme_gen4"),
)
"""Words of a store and its entry in the catalogue, the first that is there."""
TOOLS = (
    *("torch.save", "nogds", "gds", "bounce", "fio", "aio", "ds_io", "python", "hf safetensors", "safetensors default"),
    *("mmap", "tensorizer", "runai", "fastsafetensors"),
)
"""Words of a program, the first that is there."""
ALONE = ("hf safetensors",)
"""Programs that read one request after the other."""
HOSTS_B_PER_S = {"g5.12xlarge": 2.0e9, "g5.48xlarge": 2.375e9, "p4d": 2.375e9, "p5.": 10e9}
"""Of an instance to its block store. AWS EC2 documentation, EBS-optimized instances: baseline bandwidth (g5.12xlarge 16 Gbit/s)."""
ARRAY = 4.0
"""Drives of "an array" that says no more."""
SAVED_B = 14.0
"""Bytes of a parameter in a full checkpoint: weights in 16 bits, float32 copy and two moments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One row as the model sees it. `kind`: loader (MLPerf), transfer, phase (of a checkpoint), start (of an engine), metadata."""

    kind: str
    nbytes: float
    store: str = ""
    drives: float = 1.0
    tool: str = ""
    write: bool = False
    streams: float | None = None
    clients: float = 1.0
    host_B_per_s: float = inf
    store_B_per_s: float | None = None
    request_B: float | None = None
    accelerators: float = 1.0
    compute_s: float = 0.0
    batch_B: float = 0.0
    phase: str = ""
    ranks: float = 1.0


def task_of(row: dict[str, Any]) -> Task | None:
    """None where the row does not say what was moved or where to."""
    work, tool = str(row["workload"]).lower(), str(row["tool"]).lower()
    if "dataloader" in work:
        return _loader(work, _number(row["n_gpus"]))
    if "checkpoint save phase" in work or "checkpoint load phase" in work:
        return _phase(row, work)
    where = f"{row['hardware']} | {row['storage']}".lower()
    store = _store(where)
    if store is None or any(word in work for word in ("graysort", "broadcast")) or "dcp" in work:
        return None
    if "metadata" in work:
        return Task(kind="metadata", nbytes=0.0, store=store, phase="missing" if "enoent" in work else "open")
    nbytes, clients = _moved(row, work)
    if nbytes is None:
        return None
    return Task(
        kind="start" if "engine" in str(row["metric"]) else "transfer",
        nbytes=nbytes,
        store=store,
        drives=_drives(where),
        tool=next((t for t in TOOLS if t in tool), "any"),
        write=any(word in work for word in ("write", "save", "store")),
        streams=_streams(row),
        clients=max(clients, _clients(where)),
        host_B_per_s=next((v for k, v in HOSTS_B_PER_S.items() if k in where), inf) if "ebs" in where else inf,
        store_B_per_s=_stated(where, work),
        request_B=4096.0 if "4 kib blocks" in work else None,
    )


def _number(value: object, default: float = 0.0) -> float:
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return default
    return found if isfinite(found) else default


def _loader(work: str, accelerators: float) -> Task | None:
    found = re.search(r"(\w+) dataloader, batch (\d+), compute ([\d.]+) s", work)
    if not found or found[1] not in SAMPLES_B:
        return None
    batch_B = SAMPLES_B[found[1]] * float(found[2])
    compute_s = float(found[3])
    return Task(
        kind="loader",
        nbytes=GB,
        phase=found[1],
        batch_B=batch_B,
        compute_s=compute_s,
        accelerators=max(accelerators, 1),
    )


def _phase(row: dict[str, Any], work: str) -> Task | None:
    """A rank's own part of a model of so many billion parameters: float32 weights, or two moments of it."""
    size = re.search(r"(\d+(?:\.\d+)?)\s*b\b", str(row["model_or_object"]).lower())
    ranks = _number(row["n_gpus"])
    found = re.search(r"phase: ([\w ]+?) ?\(", work)
    if not size or not found or not ranks:
        return None
    each = 8.0 if "optimizer" in work else 4.0
    name = found[1].replace("first ", "")
    return Task(kind="phase", nbytes=float(size[1]) * 1e9 * each / ranks, phase=name, ranks=ranks, write="save" in work)


def _store(where: str) -> str | None:
    cloud = "azure" in where
    if "io2" in where:
        return "ebs_io2"
    found = next((name for words, name in STORES if re.search(words, where)), None)
    if cloud and found in ("nvme_gen4", "nvme_gen5"):
        newer = found == "nvme_gen5" or "h100" in where or "mi300" in where or ("h200" in where and "gen4" not in where)
        return "azure_nvme_gen5" if newer else "azure_nvme_gen4"
    return found


def _drives(where: str) -> float:
    nodes = re.search(r"(\d+) storage nodes", where)
    if nodes:
        return float(nodes[1])
    found = re.search(r"(\d+)\s*x\s*(?:[\d.]+\s*tb |pcie |local )*(?:gen\d|nvme|ssd|pcie)", where)
    return float(found[1]) if found else ARRAY if "array" in where else 1.0


def _clients(where: str) -> float:
    found = re.search(r"(\d+)\+? clients", where)
    return float(found[1]) if found else 1.0


def _streams(row: dict[str, Any]) -> float | None:
    text = str(row["concurrency"]).lower()
    if "queue depth" in text or "nan" in text:
        return None
    threads = re.search(r"^(\d+)\s*(?:$|thr|\.0)", text)
    return float(threads[1]) if threads else None


def _stated(where: str, work: str) -> float | None:
    """What a row says itself of its store's largest rate, or of the port of its one client."""
    volume = re.search(r"([\d.]+)\s*mib/s\)", where)
    if volume:
        return float(volume[1]) * 2**20
    together = re.search(r"~\s*([\d.]+)\s*gb/s read(?! each)", where)
    if together and "write" not in work:
        return float(together[1]) * 1e9
    client = re.search(r"client node (\d+)x(\d+)\s*gb", where)
    return float(client[1]) * float(client[2]) * 1e9 / 8 if client else None


def _moved(row: dict[str, Any], work: str) -> tuple[float | None, float]:
    """Bytes in all, and writers that move them."""
    size, model = _number(row["size_gb"]), str(row["model_or_object"])
    if "full checkpoint save" in work:
        return _saved(model, size, _number(row["n_gpus"]))
    if size:
        return size * GB, 1.0
    if str(row["unit"]).lower() in RATES:
        return UNSIZED_B, 1.0
    return _weights_B(model), 1.0


def _weights_B(model: str) -> float | None:
    """Of a model in 16 bits by its name."""
    experts = {"mixtral-8x22b": 141e9, "mixtral-8x7b": 46.7e9}
    name = model.lower().split(" (")[0]
    shape = shape_of(name)
    elements = experts.get(name) or (total_elements(shape) if shape else 0)
    return 2.0 * elements or None


def _saved(model: str, size: float, gpus: float) -> tuple[float | None, float]:
    """A full checkpoint is written by one replica: as many ranks, a power of two, as 18 bytes a parameter need of 24 GB each."""
    found = re.search(r"(\d+(?:\.\d+)?)\s*b\b", model.lower())
    if not found:
        return (size * GB, max(gpus, 1.0)) if size else (None, 1.0)
    billions = float(found[1])
    writers = 2.0 ** np.ceil(np.log2(max(billions * 18.0 / 24.0, 1.0)))
    return size * GB or billions * GB * SAVED_B, min(writers, max(gpus, 1.0)) if gpus else writers


def stores_of(tasks: Iterable[Task | None], catalog: Catalog) -> dict[str, StoreSpec]:
    """The stores of all tasks, by name, read once."""
    return {name: catalog.store(name) for name in sorted({t.store for t in tasks if t is not None and t.store})}


def task_seconds(task: Task | None, stores: Mapping[str, StoreSpec], p: Fitted) -> float:
    """Seconds of one task."""
    if task is None:
        return float("nan")
    if task.kind == "loader":
        stall = p["stall"].get(task.phase, p["stall"]["typical"])
        return task.nbytes / loading_B_per_s(task.accelerators, task.batch_B, task.compute_s, float(stall))
    if task.kind == "phase":
        own = p["phases"].get(task.phase)
        if own is None:
            return float("nan")
        if task.phase == "planning":
            return float(own["start_s"]) * task.ranks
        return float(own["start_s"]) + task.nbytes * float(own["s_per_B"])
    if task.kind == "metadata":
        return float(p["open_s"]["missing" if task.phase == "missing" else opened(stores[task.store])])
    return float(transfers([task], stores).seconds(p)[0])


def opened(store: StoreSpec) -> str:
    """The class of stores that opening a file depends on."""
    return "shared" if store.shared else "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfers:
    """Tasks that move bytes, as arrays: what does not depend on anything fitted."""

    nbytes: Floats
    whole: Floats
    streams: Floats
    requests: Floats
    hosts: Floats
    clients: Floats
    write: Bools
    engine: Floats
    tools: list[str]
    tool_at: NDArray[np.intp]
    stores: list[str]
    store_at: NDArray[np.intp]

    def seconds(self, p: Fitted) -> Floats:
        share = np.array([float(p["stores"].get(n, 1.0)) for n in self.stores])[self.store_at]
        own = [p["tools"].get(n, p["tools"]["any"]) for n in self.tools]
        keys = ("read_B_per_s", "write_B_per_s", "start_s")
        read, written, start = (np.array([float(o[k]) for o in own])[self.tool_at] for k in keys)
        bounds = (self.whole * share, self.streams * float(p["stream"]), self.requests * share, self.hosts)
        rate = np.where(self.write, written, read) * self.clients
        return transfer_seconds(self.nbytes, bounds, rate, start) + self.engine * float(p["engine_start_s"])


def transfers(tasks: Sequence[Task], stores: Mapping[str, StoreSpec]) -> Transfers:
    found = [_limits(t, stores[t.store]) for t in tasks]
    columns = [np.array([f[i] for f in found], dtype=np.float64) for i in range(3)]
    tools, tool_at = np.unique([t.tool for t in tasks], return_inverse=True)
    names, store_at = np.unique([t.store for t in tasks], return_inverse=True)
    return Transfers(
        nbytes=np.array([t.nbytes for t in tasks], dtype=np.float64),
        whole=columns[0],
        streams=columns[1],
        requests=columns[2],
        hosts=np.array([t.host_B_per_s * t.clients for t in tasks], dtype=np.float64),
        clients=np.array([t.clients for t in tasks], dtype=np.float64),
        write=np.array([t.write for t in tasks], dtype=np.bool_),
        engine=np.array([t.kind == "start" for t in tasks], dtype=np.float64),
        tools=tools.tolist(),
        tool_at=tool_at,
        stores=names.tolist(),
        store_at=store_at,
    )


def _limits(task: Task, store: StoreSpec) -> tuple[float, float, float]:
    streams = task.streams
    if streams is None:
        streams = 1.0 if task.tool in ALONE else inf
    found = limits(
        array(store, task.drives), write=task.write, streams=streams * task.clients, request_B=task.request_B or inf
    )
    return (task.store_B_per_s, *found[1:]) if task.store_B_per_s else found
