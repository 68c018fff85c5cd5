"""What a rank does of each model. Methods take and return columns of a batch, rows of this rank's shard."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from real.rlhf import task
from real.rlhf.advantages import advantages
from real.rlhf.engine import HybridEngine, Key
from real.rlhf.job import Job
from real.rlhf.losses import divergence_loss, language_loss, policy_loss, value_loss
from real.rlhf.models import Critic, actor_model, logprobs, optimizer_of
from real.rlhf.parallel import MATRICES, local, mesh, part_of, put, sharded, sum_gradients, tensor_parallel, whole
from real.rlhf.sampling import generate, gumbel
from simcore.hybridflow.grouping import Degrees, grouping
from simcore.hybridflow.resharding import resharding

Columns = dict[str, Tensor]


class Actor:
    """Trains as p-t-d and generates as p_g-t_g on the same ranks; p is 1."""

    def __init__(self, job: Job, degrees: Degrees, device: torch.device) -> None:
        self.job, self.device = job, device
        of = resharding(degrees, "hybridflow")
        training = mesh(of.grouping.groups("tp"), device)
        self.generating = mesh(of.grouping.groups("gen_tp"), device)["member"]
        micro_dp = mesh(of.grouping.groups("micro_dp"), device)
        self.replicas = training["replica"].get_group()
        self.model = actor_model(job).to(device)
        tensor_parallel(self.model, training["member"])
        self.engine = HybridEngine(of, dist.get_rank(), len(self.model.model.layers), micro_dp["member"].get_group())
        self.engine.shards = {key: local(p.data) for key, p in self._matrices(self.model).items()}
        self.generator = _skeleton(self.model, self.generating)
        self.optimizer = optimizer_of(self.model.parameters(), job.learning_rate, job.adam_epsilon)

    def generate(self, batch: Columns, *, iteration: int, sample: bool) -> Columns:
        """Answers to `prompts`, of sequences numbered `row`: `tokens` and `mask`."""
        job = self.job
        noise = gumbel(job.seed, iteration, batch["row"], job.response_len, int(job.model["vocab"])) if sample else None
        self._to_generation()
        tokens, mask = generate(self.generator, batch["prompts"], job.response_len, noise)
        self._to_training()
        return {"tokens": tokens, "mask": mask}

    @torch.no_grad()
    def log_prob(self, batch: Columns) -> Columns:
        """`logprob` of `tokens`."""
        return {"logprob": logprobs(self.model, batch["tokens"], self.job.prompt_len)}

    def advantages(self, batch: Columns, *, multiplier: float) -> Columns:
        """`advantages` and, where there is a critic, `returns`."""
        return advantages(self.job, batch, multiplier)

    def update(self, batch: Columns) -> Columns:
        """One step of the optimiser on a minibatch."""
        job, mask = self.job, batch["mask"]
        tokens = _over_replicas(mask.sum(), self.replicas)
        logprob = logprobs(self.model, batch["tokens"], job.prompt_len)
        loss = policy_loss(logprob, batch["logprob"], batch["advantages"], mask, clip=job.clip, tokens=tokens)
        if job.algorithm == "grpo":
            loss = loss + job.kl * divergence_loss(logprob, batch["reference_logprob"], mask, tokens=tokens)
        if job.algorithm == "safe_rlhf":
            text = batch["pretrain"]
            count = _over_replicas(torch.tensor(text[:, 1:].numel(), device=self.device), self.replicas)
            loss = loss + job.pretrain * language_loss(logprobs(self.model, text, 1), tokens=count)
        self.optimizer.zero_grad()
        loss.backward()
        sum_gradients(self.model.parameters(), self.replicas)
        self.optimizer.step()
        return {}

    def parameters(self) -> Columns:
        """All of them, whole."""
        return whole(self.model)

    def resharded(self) -> tuple[int, int]:
        """Bytes that the last transition brought from other ranks, and that matrices take now."""
        return self.engine.received_B, self.engine.held_B()

    def _matrices(self, model: nn.Module) -> dict[Key, nn.Parameter]:
        layers = enumerate(model.model.layers)
        return {(i, name): layer.get_submodule(name).weight for i, layer in layers for name in MATRICES}

    def _to_generation(self) -> None:
        for (layer, name), matrix in self.engine.gather().items():
            module = self.generator.model.layers[layer].get_submodule(name)
            module.weight = part_of(matrix, MATRICES[name], self.generating)
        self._bind()

    def _to_training(self) -> None:
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
    """Values and their training; parameters are sharded over replicas (FSDP2) and, within one, tensor parallel."""

    def __init__(self, job: Job, degrees: Degrees, device: torch.device) -> None:
        self.job = job
        over = mesh(grouping(degrees).groups("tp"), device)
        self.replicas = over["replica"].get_group()
        self.model = Critic(job).to(device)
        tensor_parallel(self.model, over["member"])
        sharded(self.model, self.model.model.layers, over["replica"])
        self.optimizer = optimizer_of(self.model.parameters(), job.critic_learning_rate, job.adam_epsilon)

    @torch.no_grad()
    def values(self, batch: Columns) -> Columns:
        """`values` before each token of the response."""
        return {"values": self.model(batch["tokens"], self.job.prompt_len)}

    def update(self, batch: Columns) -> Columns:
        """One step of the optimiser on a minibatch."""
        mask = batch["mask"]
        tokens = _over_replicas(mask.sum(), self.replicas)
        values = self.model(batch["tokens"], self.job.prompt_len)
        clip = self.job.value_clip
        loss = value_loss(values, batch["values"], batch["returns"], mask, clip=clip, tokens=tokens)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {}

    def parameters(self) -> Columns:
        """All of them, whole."""
        return whole(self.model)


class ReferenceRole:
    """The policy as it was, for the distance to it."""

    def __init__(self, job: Job, degrees: Degrees, device: torch.device) -> None:
        self.job = job
        self.model = actor_model(job).to(device).requires_grad_(False)
        tensor_parallel(self.model, mesh(grouping(degrees).groups("tp"), device)["member"])

    @torch.no_grad()
    def log_prob(self, batch: Columns) -> Columns:
        """`reference_logprob` of `tokens`."""
        return {"reference_logprob": logprobs(self.model, batch["tokens"], self.job.prompt_len)}


class Scorer:
    """Rewards and costs: checks of the task instead of models."""

    def __init__(self, job: Job, *_: object) -> None:
        self.job = job

    def reward(self, batch: Columns) -> Columns:
        """`reward` and `length` of each sequence."""
        length = batch["mask"].sum(1).to(torch.float32)
        return {"reward": task.reward(batch["tokens"], batch["mask"], self.job.prompt_len), "length": length}

    def cost(self, batch: Columns) -> Columns:
        """`cost` of each sequence."""
        return {"cost": task.cost(batch["tokens"], batch["mask"], self.job.prompt_len)}


ROLES: Mapping[str, type] = {
    "actor": Actor,
    "critic": CriticRole,
    "reference": ReferenceRole,
    "reward": Scorer,
    "cost": Scorer,
}


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
