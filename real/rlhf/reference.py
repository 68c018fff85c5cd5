"""RLHF in one plain process: what every placement must agree with.

Written to be read: no groups, no KV cache, all logits in memory, GAE by its definition.
"""

import torch
from torch import Tensor

from real.kernels.linear_logprob import reference_linear_logprob
from real.rlhf.advantages import advantages
from real.rlhf.job import Job
from real.rlhf.losses import divergence_loss, language_loss, next_multiplier, policy_loss, value_loss
from real.rlhf.models import Critic, actor_model, optimizer_of
from real.rlhf.sampling import gumbel
from real.rlhf.task import task_of

Batch = dict[str, Tensor]


class Reference:
    """Trains as `job` says, one `iteration` at a time."""

    def __init__(self, job: Job) -> None:
        self.job, self.task = job, task_of(job)
        self.actor, self.frozen = actor_model(job), actor_model(job).requires_grad_(False)
        self.optimizer = optimizer_of(self.actor.parameters(), job.learning_rate, job.adam_epsilon)
        if job.has_critic:
            self.critic = Critic(job)
            self.critic_optimizer = optimizer_of(self.critic.parameters(), job.critic_learning_rate, job.adam_epsilon)
        self.done, self.multiplier = 0, 0.0

    def iteration(self) -> dict[str, float]:
        """One batch of answers and the updates on it; means of reward, length and cost of the answers."""
        job = self.job
        batch = self._prepared()
        batch |= advantages(job, batch, self.multiplier)
        if job.algorithm == "safe_rlhf":
            mean_cost = batch["cost"].mean().item()
            self.multiplier = next_multiplier(
                self.multiplier, mean_cost, limit=job.cost_limit, rate=job.multiplier_rate
            )
        for _ in range(job.epochs):
            for first in range(0, job.sequences, job.minibatch):
                part = {name: column[first : first + job.minibatch] for name, column in batch.items()}
                if job.has_critic:
                    self._update_critic(part)
                self._update_actor(part)
        self.done += 1
        told = {"reward": batch["reward"], "length": batch["mask"].sum(1).float()}
        return {name: column.mean().item() for name, column in {**told, **_only(batch, "cost")}.items()}

    def parameters(self) -> dict[str, Tensor]:
        """Of actor and critic, by role and name."""
        found = {f"actor.{name}": p.detach() for name, p in self.actor.named_parameters()}
        if self.job.has_critic:
            found |= {f"critic.{name}": p.detach() for name, p in self.critic.named_parameters()}
        return found

    @torch.no_grad()
    def _prepared(self) -> Batch:
        job, vocab = self.job, int(self.job.model["vocab"])
        asked = self.task.prompts(self.done).repeat_interleave(job.answers, 0)
        noise = gumbel(job.seed, self.done, torch.arange(job.sequences), job.response_len, vocab)
        tokens, mask = self._answered(asked, noise)
        batch = {
            "tokens": tokens,
            "mask": mask,
            "logprob": self._logprobs(self.actor, tokens),
            "reference_logprob": self._logprobs(self.frozen, tokens),
            "reward": self.task.reward(tokens, mask),
        }
        if job.has_critic:
            batch["values"] = self.critic(tokens, job.prompt_len)
        if job.algorithm == "remax":
            greedy, greedy_mask = self._answered(asked, None)
            batch["baseline"] = self.task.reward(greedy, greedy_mask)
        if job.algorithm == "safe_rlhf":
            batch["cost"] = self.task.cost(tokens, mask)
            batch["pretrain"] = self.task.pretraining(self.done)
        return batch

    def _answered(self, prompts: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """As `sampling.generate`, but the whole sequence goes through the model for every token."""
        tokens = prompts
        for t in range(self.job.response_len):
            logits = self.actor(tokens).logits[:, -1]
            chosen = (logits if noise is None else logits + noise[:, t]).argmax(-1)
            ended = (tokens[:, self.job.prompt_len :] == self.job.end).any(1)
            tokens = torch.cat([tokens, torch.where(ended, self.job.end, chosen)[:, None]], dim=1)
        ends = tokens[:, self.job.prompt_len :] == self.job.end
        return tokens, ends.long().cumsum(1) - ends.long() == 0

    def _logprobs(self, model: torch.nn.Module, tokens: Tensor, prompt_len: int | None = None) -> Tensor:
        begin = self.job.prompt_len if prompt_len is None else prompt_len
        hidden = model.model(tokens).last_hidden_state[:, begin - 1 : -1]
        targets = tokens[:, begin:]
        found, _ = reference_linear_logprob(hidden.flatten(0, 1), model.lm_head.weight, targets.flatten())
        return found.view(targets.shape)

    def _update_actor(self, batch: Batch) -> None:
        job, mask = self.job, batch["mask"]
        tokens = mask.sum()
        logprob = self._logprobs(self.actor, batch["tokens"])
        loss = policy_loss(logprob, batch["logprob"], batch["advantages"], mask, clip=job.clip, tokens=tokens)
        if job.algorithm == "grpo":
            loss = loss + job.kl * divergence_loss(logprob, batch["reference_logprob"], mask, tokens=tokens)
        if job.algorithm == "safe_rlhf":
            text = batch["pretrain"]
            count = torch.tensor(text[:, 1:].numel())
            loss = loss + job.pretrain * language_loss(self._logprobs(self.actor, text, 1), tokens=count)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def _update_critic(self, batch: Batch) -> None:
        job, mask = self.job, batch["mask"]
        values = self.critic(batch["tokens"], job.prompt_len)
        loss = value_loss(values, batch["values"], batch["returns"], mask, clip=job.value_clip, tokens=mask.sum())
        self.critic_optimizer.zero_grad()
        loss.backward()
        self.critic_optimizer.step()


def _only(batch: Batch, *names: str) -> Batch:
    return {name: batch[name] for name in names if name in batch}
