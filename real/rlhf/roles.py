"""What a rank does of each model. Methods take and return columns of a batch, rows of this rank's shard."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from real.rlhf.advantages import advantages
from real.rlhf.engine import HybridEngine, Key
from real.rlhf.job import Job
from real.rlhf.losses import divergence_loss, language_loss, policy_loss, value_loss
from real.rlhf.models import Critic, actor_model, hidden_states, logprobs, logprobs_of, optimizer_of
from real.rlhf.parallel import MATRICES, local, mesh, part_of, put, sharded, sum_gradients, tensor_parallel, whole
from real.rlhf.placement import Portions
from real.rlhf.probe import Probe
from real.rlhf.sampling import generate, gumbel
from real.rlhf.spans import Spans
from real.rlhf.task import task_of
from simcore.hybridflow.grouping import Degrees, grouping
from simcore.hybridflow.resharding import resharding

Columns = dict[str, Tensor]
PREFILL, DECODE = "r0/prefill", "r0/decode"
"""Parts of generation as a plan names them where all replicas have alike to do."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a rank has of a model: how it is split, how much of a batch it takes at a time, where, and what records it."""

    degrees: Degrees
    portions: Portions
    device: torch.device
    spans: Spans


class Actor:
    """Trains as p-t-d and generates as p_g-t_g on the same ranks; p is 1."""

    def __init__(self, job: Job, part: Part) -> None:
        self.job, self.part, self.device = job, part, part.device
        device, of = part.device, resharding(part.degrees, "hybridflow")
        training = mesh(of.grouping.groups("tp"), device)
        self.generating = mesh(of.grouping.groups("gen_tp"), device)["member"]
        micro_dp = mesh(of.grouping.groups("micro_dp"), device)
        self.replicas = training["replica"].get_group()
        self.model = actor_model(job).to(device)
        tensor_parallel(self.model, training["member"], part.spans)
        self.engine = HybridEngine(of, dist.get_rank(), len(self.model.model.layers), micro_dp["member"].get_group())
        self.engine.shards = {key: local(p.data) for key, p in self._matrices(self.model).items()}
        self.generator = _skeleton(self.model, self.generating)
        self.optimizer = optimizer_of(self.model.parameters(), job.learning_rate, job.adam_epsilon)

    def generate(self, batch: Columns, *, iteration: int, sample: bool) -> Columns:
        """Answers to `prompts`, of sequences numbered `row`: `tokens` and `mask`."""
        job, spans = self.job, self.part.spans
        spans.part(DECODE)
        noise = gumbel(job.seed, iteration, batch["row"], job.response_len, int(job.model["vocab"])) if sample else None
        self._to_generation()
        spans.part(PREFILL)
        tokens, mask = generate(
            self.generator,
            batch["prompts"],
            job.response_len,
            noise,
            end=job.end,
            prompts_read=lambda: spans.part(DECODE),
        )
        self._to_training()
        return {"tokens": tokens, "mask": mask}

    @torch.no_grad()
    def log_prob(self, batch: Columns) -> Columns:
        """`logprob` of `tokens`."""
        return {"logprob": _forward(self.part, batch, lambda some: logprobs(self.model, some, self.job.prompt_len))}

    def advantages(self, batch: Columns, *, multiplier: float) -> Columns:
        """`advantages` and, where there is a critic, `returns`."""
        return advantages(self.job, batch, multiplier)

    def update(self, batch: Columns) -> Columns:
        """One step of the optimiser on a minibatch."""
        job = self.job
        text = batch.pop("pretrain", batch["tokens"][:0])
        answers, tokens = len(batch["tokens"]), _over_replicas(batch["mask"].sum(), self.replicas)
        words = _over_replicas(torch.tensor(text[:, 1:].numel(), device=self.device), self.replicas)
        both = torch.cat([batch["tokens"], text])

        def loss(rows: slice) -> Tensor:
            hidden = hidden_states(self.model, both[rows])
            some = {name: column[rows] for name, column in batch.items()}
            read = text[max(rows.start - answers, 0) : max(rows.stop - answers, 0)]
            parts, n = [], len(some["tokens"])
            if n:
                parts.append(self._policy_loss(hidden[:n], some, tokens))
            if len(read):
                parts.append(job.pretrain * language_loss(self._logprobs(hidden[n:], read, 1), tokens=words))
            return torch.stack(parts).sum()

        _gradients(self.part, len(both), loss)
        sum_gradients(self.model, self.replicas, self.part.spans)
        _step(self.part, self.optimizer)
        return {}

    def parameters(self) -> Columns:
        """All of them, whole."""
        return whole(self.model)

    def resharded(self) -> tuple[int, int]:
        """Bytes that the last transition brought from other ranks, and that matrices take now."""
        return self.engine.received_B, self.engine.held_B()

    def _policy_loss(self, hidden: Tensor, some: Columns, tokens: Tensor) -> Tensor:
        """Of some answers, with the distance to the reference model where that is part of the loss."""
        job, mask = self.job, some["mask"]
        logprob = self._logprobs(hidden, some["tokens"], job.prompt_len)
        found = policy_loss(logprob, some["logprob"], some["advantages"], mask, clip=job.clip, tokens=tokens)
        if job.algorithm != "grpo":
            return found
        return found + job.kl * divergence_loss(logprob, some["reference_logprob"], mask, tokens=tokens)

    def _logprobs(self, hidden: Tensor, tokens: Tensor, prompt_len: int) -> Tensor:
        return logprobs_of(hidden, self.model.lm_head.weight, tokens, prompt_len)

    def _matrices(self, model: nn.Module) -> dict[Key, nn.Parameter]:
        layers = enumerate(model.model.layers)
        return {(i, name): layer.get_submodule(name).weight for i, layer in layers for name in MATRICES}

    def _to_generation(self) -> None:
        self.part.spans.part("transition")
        for (layer, name), matrix in self.engine.gather(self.part.spans).items():
            module = self.generator.model.layers[layer].get_submodule(name)
            module.weight = part_of(matrix, MATRICES[name], self.generating)
        self._bind()

    def _to_training(self) -> None:
        self.part.spans.part("transition")
        for (layer, name), matrix in self.engine.generated.items():
            module = self.generator.model.layers[layer].get_submodule(name)
            module.weight = part_of(torch.empty_like(matrix, device="meta"), MATRICES[name], self.generating)
        self.engine.release()
        self._bind()

    def _bind(self) -> None:
        """The training model's matrices are where the engine keeps them."""
        for key, parameter in self._matrices(self.model).items():
            put(parameter, self.engine.shards[key])


class CriticRole:
    """Values and their training; tensor parallel within a replica, and sharded over replicas (FSDP2) or the same on all."""

    def __init__(self, job: Job, part: Part) -> None:
        self.job, self.part = job, part
        over = mesh(grouping(part.degrees).groups("tp"), part.device)
        self.replicas = over["replica"].get_group()
        self.model = Critic(job).to(part.device)
        tensor_parallel(self.model, over["member"], part.spans)
        if part.portions.sharded:
            sharded(self.model, self.model.model.layers, over["replica"])
        self.optimizer = optimizer_of(self.model.parameters(), job.critic_learning_rate, job.adam_epsilon)

    @torch.no_grad()
    def values(self, batch: Columns) -> Columns:
        """`values` before each token of the response."""
        return {"values": _forward(self.part, batch, lambda some: self.model(some, self.job.prompt_len))}

    def update(self, batch: Columns) -> Columns:
        """One step of the optimiser on a minibatch."""
        tokens = _over_replicas(batch["mask"].sum(), self.replicas)
        clip = self.job.value_clip

        def loss(rows: slice) -> Tensor:
            some = {name: column[rows] for name, column in batch.items()}
            values = self.model(some["tokens"], self.job.prompt_len)
            return value_loss(values, some["values"], some["returns"], some["mask"], clip=clip, tokens=tokens)

        _gradients(self.part, len(batch["tokens"]), loss)
        if not self.part.portions.sharded:
            sum_gradients(self.model, self.replicas, self.part.spans)
        _step(self.part, self.optimizer)
        return {}

    def parameters(self) -> Columns:
        """All of them, whole."""
        return whole(self.model)


class ReferenceRole:
    """The policy as it was, for the distance to it."""

    def __init__(self, job: Job, part: Part) -> None:
        self.job, self.part = job, part
        self.model = actor_model(job).to(part.device).requires_grad_(False)
        tensor_parallel(self.model, mesh(grouping(part.degrees).groups("tp"), part.device)["member"], part.spans)

    @torch.no_grad()
    def log_prob(self, batch: Columns) -> Columns:
        """`reference_logprob` of `tokens`."""
        found = _forward(self.part, batch, lambda some: logprobs(self.model, some, self.job.prompt_len))
        return {"reference_logprob": found}


class Scorer:
    """Rewards and costs: checks of the task instead of models."""

    def __init__(self, job: Job, *_: object) -> None:
        self.task = task_of(job)

    def reward(self, batch: Columns) -> Columns:
        """`reward` and `length` of each sequence."""
        length = batch["mask"].sum(1).to(torch.float32)
        return {"reward": self.task.reward(batch["tokens"], batch["mask"]), "length": length}

    def cost(self, batch: Columns) -> Columns:
        """`cost` of each sequence."""
        return {"cost": self.task.cost(batch["tokens"], batch["mask"])}


ROLES: Mapping[str, type] = {
    "actor": Actor,
    "critic": CriticRole,
    "reference": ReferenceRole,
    "reward": Scorer,
    "cost": Scorer,
    "probe": Probe,
}


def _forward(part: Part, batch: Columns, run: Callable[[Tensor], Tensor]) -> Tensor:
    """What `run` makes of all `tokens`, a portion at a time."""
    tokens = batch["tokens"]
    part.spans.part("m0/s0/fwd")
    return torch.cat([run(some) for some in tokens.split(part.portions.forward_microbatch or max(len(tokens), 1))])


def _gradients(part: Part, size: int, loss: Callable[[slice], Tensor]) -> None:
    """Those of the sum of the losses of all portions of `size` rows; there are none before."""
    each = part.portions.microbatch or size
    for m, first in enumerate(range(0, size, each)):
        part.spans.part(f"m{m}/s0c0/fwd")
        found = loss(slice(first, min(first + each, size)))
        part.spans.part(f"m{m}/s0c0/bwd")
        found.backward()  # type: ignore[no-untyped-call]
    part.spans.part(None)


def _step(part: Part, optimizer: torch.optim.Optimizer) -> None:
    part.spans.part("optimizer/s0")
    optimizer.step()
    optimizer.zero_grad()
    part.spans.part(None)


def _over_replicas(count: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum over training replicas, in float32."""
    total = count.to(torch.float32)
    if group.size() > 1:
        dist.all_reduce(total, group=group)
    return total


def _skeleton(model: LlamaForCausalLM, over: object) -> LlamaForCausalLM:
    """A model to generate with, matrices without memory; embedding, norms, head and rotations are those of `model`."""
    with torch.device("meta"):
        made = LlamaForCausalLM(model.config)
    tensor_parallel(made, over)  # type: ignore[arg-type]
    made.model.embed_tokens, made.model.norm, made.lm_head = model.model.embed_tokens, model.model.norm, model.lm_head
    made.model.rotary_emb = model.model.rotary_emb
    for own, trained in zip(made.model.layers, model.model.layers, strict=True):
        own.input_layernorm, own.post_attention_layernorm = trained.input_layernorm, trained.post_attention_layernorm
    return made.eval()
