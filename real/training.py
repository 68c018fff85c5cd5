"""One rank of a training plan: its part of every task, in program order, with a span for each."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

from real.buckets import BucketReducer
from real.data import Batches
from real.groups import Groups
from real.marks import mark
from real.model import build_model
from real.precision.allocations import standing
from real.recorder import Recorder
from real.sharded import Where, shard_units
from real.tensor_parallel import Sum, shard, sum_over
from simcore.plan import Plan

STAGE = "stage0"
LEARNING_RATE = 3e-3


@dataclass(slots=True)
class Mesh:
    """This rank's place, and the groups it talks in; ranks count dp first, then tp."""

    dp: int
    tp: int
    dp_rank: int
    tp_rank: int
    dp_group: dist.ProcessGroup
    tp_group: dist.ProcessGroup
    device: torch.device
    devices: Any  # DeviceMesh


def mesh_of(plan: Plan, device: torch.device) -> Mesh:
    """The mesh of the plan's parallelism over the processes that are here."""
    sizes = plan.decisions["parallelism"]
    ranks = np.arange(sizes["dp"] * sizes["tp"]).reshape(sizes["dp"], sizes["tp"])
    devices = Groups().mesh(device, ranks, ("dp", "tp"))
    return Mesh(
        dp=sizes["dp"],
        tp=sizes["tp"],
        dp_rank=devices.get_local_rank("dp"),
        tp_rank=devices.get_local_rank("tp"),
        dp_group=devices.get_group("dp"),
        tp_group=devices.get_group("tp"),
        device=device,
        devices=devices,
    )


def start_libraries(plan: Plan, device: torch.device) -> None:
    """A step of a tiny model of the plan's kind: what is loaded at first use is there afterwards, and no memory model counts it."""
    shape = {**plan.workload["model"], "layers": 1, "hidden": 8, "ffn": 8, "vocab": 8, "max_len": 8}
    shape |= {"heads": 1, "kv_heads": 1, "head_dim": 8}
    model = build_model(shape, plan.workload["precision"], 0).to(device)
    tokens = torch.zeros(1, 8, dtype=torch.int64, device=device)
    cross_entropy(model(tokens, use_cache=False).logits.float().flatten(0, 1), tokens.flatten()).backward()
    torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True).step()


class Trainer:
    """The plan bound to a model, its data and its optimizer."""

    def __init__(self, plan: Plan, mesh: Mesh, recorder: Recorder) -> None:
        self.plan, self.mesh, self.recorder = plan, mesh, recorder
        self.chosen, self.work = plan.decisions, plan.workload
        self.microbatch = 0
        self.way = "fwd"
        model = build_model(self.work["model"], self.work["precision"], self.work["seed"])
        self.layers = len(model.model.layers)
        if mesh.tp > 1:
            shard(model, mesh.tp_rank, mesh.tp, self._summing)
        self.model = model.to(mesh.device)
        self.reducer: BucketReducer | None = None
        self.where: Where | None = None
        zero = self.chosen["zero"]
        if mesh.dp > 1 and zero >= 2:
            self.where = shard_units(self.model, mesh.devices["dp"], zero, recorder)
        elif mesh.dp > 1:
            names = self.chosen["buckets"][STAGE]
            self.reducer = BucketReducer(
                self.model, names, mesh.dp_group, recorder, zero=zero, overlap=self.chosen["overlap"]
            )
        trained = self.reducer.trained() if self.reducer else list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)
        self.whole: torch.Tensor | None = None
        self.batches = Batches(seed=self.work["seed"], seq_len=self.work["seq_len"], vocab=self.work["model"]["vocab"])

    def _summing(self, layer: int, half: str) -> Sum:
        """What f and g call: sum over the tensor-parallel group, as the plan's task of that half."""

        def total(way: str, tensor: torch.Tensor) -> None:
            short = "fwd" if way == "forward" else "bwd"
            at = f"m{self.microbatch}/{short}/layer{layer}"
            with self.recorder.blocking(f"{at}/{half}/all_reduce", tensor.numel() * tensor.element_size()):
                sum_over(self.mesh.tp_group, tensor)
            following = {("fwd", "attn"): "mlp", ("bwd", "mlp"): "attn"}.get((short, half))
            if following:
                self.recorder.switch(f"{at}/{following}")

        return total

    def _at(self, way: str, part: str) -> str:
        """The task that computes `part`: with tensor parallelism a layer begins with its first half."""
        half = ""
        if self.mesh.tp > 1 and part.startswith("layer"):
            half = "/attn" if way == "fwd" else "/mlp"
        return f"m{self.microbatch}/{way}/{part}{half}"

    def _between(self, x: torch.Tensor, before: str, after: str) -> torch.Tensor:
        """A point between two parts: forward goes on with `after`, backward with `before`."""
        forward, backward = self._at("fwd", after), self._at("bwd", before)
        return mark(x, lambda: self.recorder.switch(forward), lambda: self.recorder.switch(backward))

    def _through(self, tokens: torch.Tensor) -> torch.Tensor:
        """Mean loss of one microbatch (sequences, seq_len + 1)."""
        body = self.model.model
        self.recorder.switch(self._at("fwd", "embed"))
        x = body.embed_tokens(tokens[:, :-1])
        places = torch.arange(x.shape[1], device=x.device)[None]
        rotary = body.rotary_emb(x, places)
        names = ["embed", *(f"layer{i}" for i in range(self.layers)), "head"]
        for i, layer in enumerate(body.layers):
            x = self._between(x, names[i], names[i + 1])
            x = layer(x, position_embeddings=rotary, attention_mask=None, position_ids=places)
        x = self._between(x, names[-2], "head")
        logits = self.model.lm_head(body.norm(x))
        return cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())

    def prepare(self) -> None:
        """Fetch the next batch, as a data loader does beside training."""
        self.whole = self.batches.next(self.work["global_batch"]).to(self.mesh.device)

    def iteration(self) -> float:
        """Every microbatch forward and backward, gradients reduced, one step; returns the mean loss on this replica."""
        count, size = self.chosen["microbatches"], self.chosen["microbatch"]
        assert self.whole is not None
        mine = self.whole[self.mesh.dp_rank * count * size : (self.mesh.dp_rank + 1) * count * size]
        total = 0.0
        for m in range(count):
            self.microbatch = m
            if self.where:
                self.where.microbatch, self.where.way = m, "fwd"
                self.model.set_is_last_backward(m == count - 1)
            loss = self.call(mine[m * size : (m + 1) * size]) / count
            total += float(loss.detach())
            if self.where:
                self.where.way = "bwd"
            if self.reducer:
                self.reducer.before_backward(last=m == count - 1)
            self.recorder.switch(self._at("bwd", "head"))
            loss.backward()
            self.recorder.switch(None)
        self._step()
        return total

    def call(self, tokens: torch.Tensor) -> torch.Tensor:
        """The loss, through the root module so that FSDP2's hooks run."""
        if self.where is None:
            return self._through(tokens)
        inner = self.model.forward
        self.model.forward = lambda t: self._through(t)  # type: ignore[assignment, method-assign]
        try:
            return self.model(tokens)  # type: ignore[no-any-return]
        finally:
            self.model.forward = inner  # type: ignore[method-assign]

    def standing(self) -> list[torch.Tensor] | None:
        """Tensors that exist between iterations; None where FSDP2 keeps them."""
        buckets = self.reducer.buckets if self.reducer else []
        return None if self.where else standing(self.model, self.optimizer, [b.gradients for b in buckets])

    def close(self) -> None:
        """End what does not end by itself."""
        if self.reducer:
            self.reducer.close()

    def _step(self) -> None:
        if self.reducer:
            self.reducer.finish()
        self.recorder.switch("optimizer/s0")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.recorder.switch(None)
        if self.reducer:
            for bucket in self.reducer.buckets:
                if bucket.sharded:
                    bucket.shard.grad = torch.zeros_like(bucket.shard)
                    for parameter in bucket.parameters:
                        parameter.grad = None
            self.reducer.gather_weights()
