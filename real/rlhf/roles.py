"""What a rank does of each model. Methods take and return columns of a batch, rows of this rank's shard.

Of a pipeline every stage gets the rows; only its last stage returns columns.
"""

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import LlamaForCausalLM

from real.rlhf.advantages import advantages
from real.rlhf.generator import Generator
from real.rlhf.job import Job
from real.rlhf.losses import divergence_loss, language_loss, policy_loss, value_loss
from real.rlhf.models import Critic, actor_model, hidden_states, logprobs_of, optimizer_of
from real.rlhf.parallel import sharded, sum_gradients, tensor_parallel, training_mesh, whole
from real.rlhf.part import Columns, Part
from real.rlhf.passes import gradients, score, step
from real.rlhf.probe import Probe
from real.rlhf.sampling import generate, gumbel
from real.rlhf.stages import Elsewhere, Stage, cut
from real.rlhf.task import task_of
from simcore.hybridflow.grouping import grouping

PREFILL, DECODE = "r0/prefill", "r0/decode"
"""Parts of generation as a plan names them where all replicas have alike to do."""


class Actor:
    """Trains as p-t-d and generates as 1-t_g on the same ranks."""

    def __init__(self, job: Job, part: Part) -> None:
        self.job, self.part, self.device = job, part, part.device
        over = training_mesh(part.degrees, part.device, part.groups)
        self.stage, self.replicas = _stage(job, part, over), over["dp"].get_group()
        self.model = cut(actor_model(job), self.stage, "lm_head").to(part.device)
        tensor_parallel(self.model, over["tp"], part.spans)
        self.generator = Generator(self.model, part, self.stage, over["pp"].get_group())
        self.optimizer = optimizer_of(self.model.parameters(), job.learning_rate, job.adam_epsilon)

    def generate(self, batch: Columns, *, iteration: int, sample: bool) -> Columns:
        """Answers to `prompts`, of sequences numbered `row`: `tokens` and `mask`."""
        job, spans = self.job, self.part.spans
        spans.part(DECODE)
        noise = gumbel(job.seed, iteration, batch["row"], job.response_len, int(job.model["vocab"])) if sample else None
        model = self.generator.open()
        spans.part(PREFILL)
        tokens, mask = generate(
            model,
            batch["prompts"],
            job.response_len,
            noise,
            end=job.end,
            prompts_read=lambda: spans.part(DECODE),
        )
        self.generator.close()
        return {"tokens": tokens, "mask": mask}

    def log_prob(self, batch: Columns) -> Columns:
        """`logprob` of `tokens`."""
        return _scored(self.part, self.stage, self.model, batch["tokens"], self.job.prompt_len, "logprob")

    def advantages(self, batch: Columns, *, multiplier: float) -> Columns:
        """`advantages` and, where there is a critic, `returns`."""
        return advantages(self.job, batch, multiplier)

    def update(self, batch: Columns) -> Columns:
        """One step of the optimiser on a minibatch; rows of `pretrain`, text not to be unlearnt, follow those of answers."""
        text = batch.pop("pretrain", batch["tokens"][:0])
        answers, tokens = len(batch["tokens"]), _over_replicas(batch["mask"].sum(), self.stage, self.replicas)
        words = _over_replicas(torch.tensor(text[:, 1:].numel(), device=self.device), self.stage, self.replicas)

        def loss(given: Tensor, rows: slice) -> Tensor:
            hidden = hidden_states(self.model, given)
            if not self.stage.last:
                return hidden
            some, read = _rows(batch, rows), text[max(rows.start - answers, 0) : max(rows.stop - answers, 0)]
            parts, n = [], len(some["tokens"])
            if n:
                parts.append(self._policy_loss(hidden[:n], some, tokens()))
            if len(read):
                parts.append(self.job.pretrain * language_loss(self._logprobs(hidden[n:], read, 1), tokens=words()))
            return torch.stack(parts).sum()

        complete = gradients(self.part, self.stage, torch.cat([batch["tokens"], text]), loss)
        sum_gradients(self.model, self.replicas, self.part.spans, complete, self.stage.number)
        step(self.stage, self.optimizer)
        return {}

    def parameters(self) -> Columns:
        """Those of this rank's stage, whole."""
        return whole(self.model)

    def resharded(self) -> tuple[int, int, int]:
        """Bytes of matrices that the last transition brought from other ranks, of all else, and that matrices take now."""
        engine = self.generator.engine
        return engine.received_B, self.generator.whole_B, engine.held_B()

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


class CriticRole:
    """Values and their training; each stage sharded over replicas (FSDP2) or the same on all."""

    def __init__(self, job: Job, part: Part) -> None:
        self.job, self.part = job, part
        over = training_mesh(part.degrees, part.device, part.groups)
        self.stage, self.replicas = _stage(job, part, over), over["dp"].get_group()
        self.model = cut(Critic(job), self.stage, "value").to(part.device)
        tensor_parallel(self.model, over["tp"], part.spans)
        if part.portions.sharded:
            layers = [layer for layer in self.model.model.layers if not isinstance(layer, Elsewhere)]
            sharded(self.model, layers, over["dp"])
        self.optimizer = optimizer_of(self.model.parameters(), job.critic_learning_rate, job.adam_epsilon)

    def values(self, batch: Columns) -> Columns:
        """`values` before each token of the response."""

        def run(given: Tensor, _: slice) -> Tensor:
            found: Tensor = self.model(given, self.job.prompt_len)
            return found

        found = score(self.part, self.stage, batch["tokens"], run)
        return {"values": found} if self.stage.last else {}

    def update(self, batch: Columns) -> Columns:
        """One step of the optimiser on a minibatch."""
        tokens = _over_replicas(batch["mask"].sum(), self.stage, self.replicas)
        clip = self.job.value_clip

        def loss(given: Tensor, rows: slice) -> Tensor:
            found: Tensor = self.model(given, self.job.prompt_len)
            if not self.stage.last:
                return found
            some = _rows(batch, rows)
            return value_loss(found, some["values"], some["returns"], some["mask"], clip=clip, tokens=tokens())

        complete = gradients(self.part, self.stage, batch["tokens"], loss)
        if not self.part.portions.sharded:
            sum_gradients(self.model, self.replicas, self.part.spans, complete, self.stage.number)
        step(self.stage, self.optimizer)
        return {}

    def parameters(self) -> Columns:
        """Those of this rank's stage, whole."""
        return whole(self.model)


class ReferenceRole:
    """The policy as it was, for the distance to it."""

    def __init__(self, job: Job, part: Part) -> None:
        self.job, self.part = job, part
        over = training_mesh(part.degrees, part.device, part.groups)
        self.stage = _stage(job, part, over)
        self.model = cut(actor_model(job), self.stage, "lm_head").to(part.device).requires_grad_(False)
        tensor_parallel(self.model, over["tp"], part.spans)

    def log_prob(self, batch: Columns) -> Columns:
        """`reference_logprob` of `tokens`."""
        return _scored(self.part, self.stage, self.model, batch["tokens"], self.job.prompt_len, "reference_logprob")


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


def _stage(job: Job, part: Part, over: DeviceMesh) -> Stage:
    back = part.groups.of(grouping(part.degrees).groups("pp"), "back") if part.degrees.pp > 1 else None
    return Stage(over["pp"].get_group(), back, int(job.model["hidden"]), part.spans)


def _scored(part: Part, stage: Stage, model: LlamaForCausalLM, tokens: Tensor, prompt_len: int, named: str) -> Columns:
    """Log-probabilities of all `tokens` after the prompt."""

    def run(given: Tensor, rows: slice) -> Tensor:
        hidden = hidden_states(model, given)
        return logprobs_of(hidden, model.lm_head.weight, tokens[rows], prompt_len) if stage.last else hidden

    found = score(part, stage, tokens, run)
    return {named: found} if stage.last else {}


def _rows(batch: Columns, rows: slice) -> Columns:
    return {name: column[rows] for name, column in batch.items()}


def _over_replicas(count: Tensor, stage: Stage, group: dist.ProcessGroup) -> Callable[[], Tensor]:
    """The sum over training replicas, in float32, for a last stage's loss: passes begin before every replica has counted."""
    total = count.to(torch.float32)
    shared = stage.last and group.size() > 1
    work = dist.all_reduce(total, group=group, async_op=True) if shared else None

    def found() -> Tensor:
        if work is not None:
            work.wait()
        return total

    return found
