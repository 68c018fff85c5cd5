"""Rows of a training table as jobs: which cluster, which workload, spread how, by which framework.

What a row leaves out is filled in as its framework does it; where the microbatch or the parallelism is not given, the fastest
that fits the memory is taken (`simcore.tables.training`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from costmodels.catalog import Catalog
from costmodels.errors import DataError
from costmodels.specs import DeviceSpec, LinkSpec
from costmodels.transformer import forward_flops_per_token
from simcore.cluster import Cluster
from simcore.network.fabric import HostFabric
from simcore.planners.fixed import MEGATRON_BUCKET
from simcore.training.choice import Choice
from simcore.training.shapes import Model, Row, number, read_model, text
from simcore.workloads.transformer_training import TransformerTraining

Framework = Literal["megatron", "deepspeed", "fsdp", "jax"]
UNFUSED = ("bigscience", "sc21", "2104.04473", "alpa", "deepspeed", "2205.05198", "korthikanti")
"""Words of frameworks and sources from before flash attention."""

OVERLAPPING = ("bridge", "nemo", "megatron-core")
"""Frameworks whose recipes overlap communication; Megatron-LM does so only where it is told to."""

WITH_DROPOUT = ("gpt", "bloom", "bert", "megatron")

UNPADDED = 0.5
"""Of the tokens that a padded batch of MLPerf's BERT would have: its sequences of at most 512 are 255 long on average."""

PRECISIONS = (
    ("nvfp4", "nvfp4"),
    ("mxfp8", "mxfp8"),
    ("fp8-mx", "mxfp8"),
    ("fp8-cs", "fp8_cs"),
    ("fp8", "fp8"),
    ("fp16", "float16"),
    ("float16", "float16"),
    ("bf16", "bfloat16"),
    ("bfloat16", "bfloat16"),
    ("fp32", "float32"),
    ("tf32", "tf32"),
)
"""Words of the column and what they mean, the first that is there."""

FULL_RACK = 64
"""Devices of an NVL72 rack that jobs use, whose sizes are powers of two."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row. `open` names what the row leaves open: microbatch, chunks. `recipe` is how linear layers multiply, `share` is the
    part of the padded tokens that is computed; `allocated_only`: its memory is what the allocator counts, without context and
    communicators. `early_stop` as in `Parts`."""

    cluster: Cluster
    workload: TransformerTraining
    choice: Choice
    model: Model
    framework: Framework
    recipe: str
    ep: int = 1
    open: frozenset[str] = frozenset()
    share: float = 1.0
    allocated_only: bool = False
    early_stop: bool = False

    @property
    def peak_dtype(self) -> str:
        """Whose peak of the data sheet the products are measured against."""
        return {"mxfp8": "fp8", "fp8_cs": "fp8", "nvfp4": "fp4"}.get(self.recipe, self.recipe)

    @property
    def flops_share(self) -> float:
        """Of a dense model's FLOPs of that shape; with experts those that a token visits."""
        share = self.share
        experts, shape = self.model.experts, self.model.shape
        if experts is not None:
            dense = forward_flops_per_token(shape, self.workload.seq_len, causal=False)
            active = replace(shape, ffn=experts.per_token * experts.ffn + experts.shared_ffn)
            share *= forward_flops_per_token(active, self.workload.seq_len, causal=False) / dense
        return share


class Reader:
    """Reads rows; clusters that have been built are kept."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._cluster = lru_cache(maxsize=256)(self._build)

    def job(self, row: Row) -> Job | None:
        """None where the row does not say enough, or the catalogue lacks the device."""
        device, model, recipe = self.device(str(row.get("gpu"))), read_model(row), precision_of(row)
        n, batch, seq_len = (number(row, name) for name in ("n_gpus", "gbs", "seq_len"))
        if device is None or model is None or recipe is None or n is None or batch is None or seq_len is None:
            return None
        if _offloads(row):
            return None
        framework = framework_of(row)
        each = [int(number(row, name) or 1) for name in ("tp", "pp", "cp")]
        ranks = each[0] * each[1] * each[2] * max(int(n) // (each[0] * each[1] * each[2]), 1)
        choice, unknown = choice_of(row, model, framework, ranks)
        workload = TransformerTraining(
            model=model.shape,
            seq_len=int(seq_len),
            global_batch=-(-int(batch) // choice.dp) * choice.dp,
            precision=recipe,
            dropout=framework in ("megatron", "deepspeed") and text(row, "model").startswith(WITH_DROPOUT),
        )
        return Job(
            cluster=self._cluster(device, ranks, int(number(row, "gpus_per_node") or 8), text(row, "interconnect")),
            workload=workload,
            choice=choice,
            model=model,
            framework=framework,
            recipe=recipe,
            ep=int(number(row, "ep") or 1),
            open=unknown,
            share=UNPADDED if "unpadded" in text(row, "model") else 1.0,
            allocated_only="allocated" in text(row, "notes"),
            early_stop=framework == "fsdp" and "default" in text(row, "sharding"),
        )

    @lru_cache(maxsize=512)  # noqa: B019 - readers live as long as a prediction
    def device(self, name: str) -> DeviceSpec | None:
        """As the catalogue spells it, or without what stands in brackets."""
        for spelling in (name, re.sub(r"\(.*?\)", "", name).strip(), name.split(" ")[0]):
            try:
                return self.catalog.device(spelling)
            except DataError:
                continue
        return None

    def _build(self, device: DeviceSpec, ranks: int, per_node: int, interconnect: str) -> Cluster:
        if "nvl72" in interconnect or device.name.startswith(("gb200", "gb300")):
            per_node = FULL_RACK
        local = min(per_node, ranks)
        near = self._near(device, local)
        far = self._far(device, interconnect, local)
        rank = np.arange(ranks)
        fabric = HostFabric(
            node=rank // local,
            local=rank % local,
            intra=[near],
            out=[far],
            into=[far],
            kind=np.zeros(ranks, dtype=np.int64),
        )
        return Cluster(
            name="table",
            devices=(device,),
            device_index=np.zeros(ranks, dtype=np.int64),
            fabric=fabric,
            intra=(near,),
            inter=(far,),
        )

    def _near(self, device: DeviceSpec, local: int) -> LinkSpec:
        peer = self.catalog.link(device.peer_link) if device.peer_link else None
        if peer is None or (peer.joins is not None and local > peer.joins):
            return self.catalog.link(device.host_link or "pcie4")
        return peer

    def _far(self, device: DeviceSpec, interconnect: str, local: int) -> LinkSpec:
        """A rank's share of its host's ports: "8x400Gb IB", "4x Intel OPA 100Gb/node", "1600 Gbps/node RoCE"."""
        link = self.catalog.link(_network(interconnect, device))
        total = _node_gbit(interconnect)
        if total is None:
            return link
        return replace(link, B_per_s=total / 8 * 1e9 / local)


def framework_of(row: Row) -> Framework:
    """The family of the framework that a row names."""
    named = f"{text(row, 'framework')} {text(row, 'sharding')} {text(row, 'source')}"
    if any(word in named for word in ("maxtext", "jax", "pax", "alpa")):
        return "jax"
    if "megatron" in named or "nemo" in named:
        return "deepspeed" if "deepspeed" in named else "megatron"
    if "deepspeed" in named or "zero" in named:
        return "deepspeed"
    return "fsdp" if "fsdp" in named else "megatron"


def precision_of(row: Row) -> str | None:
    """The recipe that linear layers multiply in, None for one that is not known.

    Megatron-Bridge prints a second recipe in brackets, which is mxfp8; MLPerf's BERT runs in fp8 where there is some.
    """
    named = text(row, "precision")
    found = next((dtype for word, dtype in PRECISIONS if word in named), None)
    if found == "fp8" and "megatron-bridge" in text(row, "source"):
        return "fp8_cs"
    if found is not None:
        return found
    if "alt" in named:
        return "mxfp8"
    if named:
        return None
    return (
        "fp8" if re.search(r"h100|h200|l40s|b200", text(row, "gpu")) and "mlperf" in text(row, "source") else "float16"
    )


def choice_of(row: Row, model: Model, framework: Framework, ranks: int) -> tuple[Choice, frozenset[str]]:
    """How the row's job is spread over `ranks`, and what the row leaves open."""
    tp, pp, cp = (int(number(row, name) or 1) for name in ("tp", "pp", "cp"))
    dp = ranks // (tp * pp * cp)
    microbatch, chunks = number(row, "mbs"), number(row, "vp")
    unknown = {"microbatch"} if microbatch is None else set()
    if chunks is None and pp > 1 and "interleaved" in text(row, "framework"):
        unknown.add("chunks")
    vpp = int(chunks or 1) if pp > 1 else 1
    zero = zero_of(row, framework) if dp * cp > 1 else 0
    overlaps = framework in ("fsdp", "jax") or any(word in text(row, "framework") for word in OVERLAPPING)
    modern = framework == "megatron" and _flash(row)
    narrow_sums = "pure" in text(row, "sharding")
    layers = model.shape.layers
    choice = Choice(
        dp=dp,
        tp=tp,
        pp=pp,
        cp=cp,
        vpp=vpp,
        microbatch=int(min(microbatch or 1.0, max((number(row, "gbs") or 1.0) / dp, 1.0))),
        zero=zero,
        recompute=_recompute(row),
        sequence_parallel=modern and tp > 1,
        overlap=overlaps,
        overlap_tensor=overlaps,
        overlap_param_gather=overlaps and zero in (1, 2),
        ends_count_as_layers=pp > 1 and layers % (pp * vpp) > 0 and (layers + 2) % (pp * vpp) == 0,
        attention="flash" if _flash(row) else "unfused",
        master_weights=not narrow_sums,
        bucket_B=(2.0 if narrow_sums else 4.0) * max(MEGATRON_BUCKET, 1_000_000 * dp),
    )
    return choice, frozenset(unknown)


def zero_of(row: Row, framework: Framework) -> int:
    """The stage of ZeRO that the column `sharding` amounts to."""
    sharding = text(row, "sharding")
    stage = re.search(r"zero-?\s*(\d)", sharding)
    if stage:
        return int(stage.group(1))
    if "grad_op" in sharding:
        return 2
    if "fsdp" in sharding or framework in ("fsdp", "jax"):
        return 3
    return 1 if "distributed optimizer" in sharding or _flash(row) else 0


def _recompute(row: Row) -> Literal["none", "selective", "full"]:
    said = text(row, "recompute")
    if said.startswith(("full", "old", "new")):
        return "full"
    return "selective" if "selective" in said else "none"


def _flash(row: Row) -> bool:
    """Megatron before 2023, DeepSpeed's fork of it and Alpa went through memory with the scores."""
    named = f"{text(row, 'framework')} {text(row, 'source')}"
    return "flashattention" in named or not any(word in named for word in UNFUSED)


def _offloads(row: Row) -> bool:
    """Whether states or parameters live in host memory; gathering parameters from there is not modelled."""
    said = f"{text(row, 'sharding')} {text(row, 'framework')}"
    return "offload" in said and "offload n" not in said


NETWORKS = (
    *(("opa", "omnipath_100"), ("omni", "omnipath_100"), ("roce", "roce_200"), ("efa", "efa_400")),
    *(("400gb ib", "infiniband_ndr"), ("ndr", "infiniband_ndr"), ("cx7", "infiniband_ndr")),
    *(("connectx-7", "infiniband_ndr"), ("hdr", "infiniband_hdr"), ("edr", "infiniband_edr"), ("ici", "ici_v5p")),
    *(("infiniband", "infiniband_ndr"), ("ethernet", "ethernet_100g")),
)
"""Words of the column `interconnect` and the link between hosts, the first that is there."""

USUAL = {"volta": "infiniband_edr", "pascal": "infiniband_edr", "ampere": "infiniband_hdr"}
"""What hosts with devices of an architecture usually have."""


def _network(interconnect: str, device: DeviceSpec) -> str:
    named = next((link for word, link in NETWORKS if word in interconnect), None)
    return named or USUAL.get(device.architecture, "infiniband_ndr")


def _node_gbit(interconnect: str) -> float | None:
    """Gbit/s of all ports of a host together, where the words say so."""
    whole = re.search(r"(\d+)\s*gb(?:ps|/s|it/s)?\s*(?:per |/)node", interconnect)
    ports = re.findall(r"(\d+)\s*x\s*(?:[a-z0-9-]+\s){0,5}?\(?(\d+)\s*gb", interconnect)
    if ports:
        return max(float(number) * float(rate) for number, rate in ports)
    return float(whole.group(1)) if whole else None


def seconds_of(row: Mapping[str, Any]) -> float:
    """Measured seconds of an iteration: given, or from tokens a second; NaN where neither is there."""
    given = number(row, "iter_time_s")
    if given is not None:
        return given
    batch, length = number(row, "gbs"), number(row, "seq_len")
    each, n = number(row, "tokens_per_s_per_gpu") or 0.0, number(row, "n_gpus") or 0.0
    rate = number(row, "tokens_per_s_total") or each * n
    return batch * length / rate if batch and length and rate else float("nan")
