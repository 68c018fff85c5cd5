"""One process of `real.checkpoint.resuming`: a Llama on ranks that share it in one of four ways, saved or gone on with.

Started as `python -m real.checkpoint.resume_worker FOLDER ROOT KIND start|resume`; rank 0 leaves its `Run` in FOLDER.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from safetensors.torch import load_file, load_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from real.checkpoint.checkpointer import Checkpointer
from real.checkpoint.memory import bytes_of
from real.checkpoint.resuming import JOB, TOKENS, WEIGHTS, Job, Run, tell
from real.model import build_model
from real.process import joined

SMALL = {"layers": 2, "hidden": 48, "ffn": 96, "heads": 4, "kv_heads": 2, "head_dim": 12, "vocab": 256, "max_len": 64}
LEARNING_RATE = {"small": 3e-3, "smollm2-135m": 1e-4}


def model_of(job: Job) -> LlamaForCausalLM:
    """The same on every rank."""
    if not job.materials:
        return build_model({**SMALL, "tied_embeddings": True}, "float32", seed=0)
    config = LlamaConfig.from_pretrained(job.materials)
    config.quantization_config = None  # of the file that the weights came from; they are float32
    model = LlamaForCausalLM(config).float()
    load_model(model, Path(job.materials, WEIGHTS))
    return model


def batch(job: Job, step: int) -> torch.Tensor:
    """(rows, tokens + 1) token numbers of a step: random ones for the small model."""
    if job.materials:
        return load_file(Path(job.materials, TOKENS))["tokens"][step]
    generator = torch.Generator().manual_seed(step)
    return torch.randint(SMALL["vocab"], (job.rows, job.tokens + 1), generator=generator)


class Training:
    """A model, its optimizer and this rank's share of every batch."""

    def __init__(self, job: Job, kind: str) -> None:
        self.job, self.share = job, slice(None)
        self.inner = model_of(job)
        self.model: nn.Module = self.inner
        if kind == "tp":
            tensor_parallel(self.inner)
        elif kind == "fsdp":
            mesh = init_device_mesh("cpu", (dist.get_world_size(),))
            for module in (*self.inner.model.layers, self.inner):
                fully_shard(module, mesh=mesh)
        elif kind == "dp":
            self.model = DistributedDataParallel(self.inner, gradient_as_bucket_view=True)
            self.share = slice(dist.get_rank(), None, dist.get_world_size())
        rate = LEARNING_RATE[job.model]
        self.optimizer = torch.optim.AdamW(self.inner.parameters(), lr=rate, foreach=False)
        for (
            parameter
        ) in self.inner.parameters():  # what AdamW makes at its first step, so that there is something to fill
            moments = {n: torch.zeros_like(parameter) for n in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {"step": torch.tensor(0.0), **moments}

    def state(self) -> dict[str, Any]:
        """Model and moments by names of parameters, the tied head under both of its names."""
        kept = self.optimizer.state
        moments = {name: dict(kept[p]) for name, p in self.inner.named_parameters()}
        return {"model": dict(self.inner.named_parameters(remove_duplicate=False)), "optimizer": moments}

    def steps(self, first: int, stop: int) -> list[float]:
        """Train; the loss of each step over the whole batch."""
        losses = []
        for step in range(first, stop):
            tokens = batch(self.job, step)[self.share]
            self.optimizer.zero_grad()
            logits = self.model(tokens[:, :-1], use_cache=False).logits
            loss = cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            self.optimizer.step()
            losses.append(self._mean(loss.detach()))
        return losses

    def _mean(self, loss: torch.Tensor) -> float:
        if self.model is not self.inner:
            dist.all_reduce(loss)
            loss /= dist.get_world_size()
        return float(loss)


def tensor_parallel(model: LlamaForCausalLM) -> None:
    """Cut the layers' matrices; attention only where ranks get whole heads (SmolLM2-135M has 9 and 3, so its stay whole)."""
    size = dist.get_world_size()
    plan: dict[str, ParallelStyle] = {"mlp.gate_proj": ColwiseParallel(), "mlp.up_proj": ColwiseParallel()}
    plan["mlp.down_proj"] = RowwiseParallel()
    if model.config.num_attention_heads % size == 0 and model.config.num_key_value_heads % size == 0:
        plan |= {f"self_attn.{n}_proj": ColwiseParallel() for n in "qkv"} | {"self_attn.o_proj": RowwiseParallel()}
    mesh = init_device_mesh("cpu", (size,))
    parallelize_module(model, mesh, {f"model.layers.*.{n}": style for n, style in plan.items()}, src_data_rank=None)


def digest(state: dict[str, Any]) -> str:
    """Of every tensor put together, in the order of names; collective where they are cut."""
    hashed = xxhash.xxh3_64()
    for role in sorted(state):
        for name, leaf in sorted(state[role].items()):
            for key, tensor in sorted(leaf.items()) if isinstance(leaf, dict) else [("", leaf)]:
                whole = tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()
                hashed.update(f"{role}/{name}/{key}".encode())
                hashed.update(bytes_of(whole.contiguous()))
    return hashed.hexdigest()


def run(job: Job, kind: str, root: Path, *, resume: bool) -> Run:
    """Train up to the checkpoint and save, or load; then go on. The same on every rank."""
    training = Training(job, kind)
    checkpointer = Checkpointer(root)
    if not resume:
        training.steps(0, job.before)
        parallelism = {kind: dist.get_world_size()}
        saving = checkpointer.save(training.state(), step=job.before, parallelism=parallelism)
        written_B, seconds, first = saving.written_B, sum(saving.phases_s.values()), job.before
    else:
        began = time.perf_counter()
        loaded = checkpointer.load(training.state())
        written_B, seconds, first = loaded.read_B, time.perf_counter() - began, loaded.step
    found = digest(training.state())
    losses = training.steps(first, first + job.after)
    return Run(
        losses=tuple(losses), loaded=found, final=digest(training.state()), seconds=seconds, nbytes=_total(written_B)
    )


def _total(nbytes: int) -> int:
    total = torch.tensor(nbytes)
    dist.all_reduce(total)
    return int(total)


def main() -> None:
    """One process."""
    folder, root, kind, start = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    job = Job(**json.loads((folder / JOB).read_text()))
    with joined(cuda=False):
        done = run(job, kind, root, resume=start == "resume")
        if dist.get_rank() == 0:
            tell(folder, done)


if __name__ == "__main__":
    main()
