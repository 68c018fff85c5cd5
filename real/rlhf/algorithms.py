"""The dataflow of PPO, GRPO, ReMax and Safe-RLHF on models wherever they are (HybridFlow, figure 6): generate, prepare, train."""

from collections.abc import Mapping

import torch
from ray.exceptions import RayError

from real.rlhf.controller import Model, Remote, fetch, finish, put
from real.rlhf.job import Job
from real.rlhf.losses import next_multiplier
from real.rlhf.protocols import Protocol, dp_proto, three_d_all_micro_dp, three_d_proto
from real.rlhf.task import task_of
from simcore.hybridflow.grouping import grouping

ANSWER = ("tokens", "mask")


class Dataflow:
    """Iterations of `job` on `models` by role."""

    def __init__(self, job: Job, models: Mapping[str, Model]) -> None:
        self.job, self.models, self.task = job, models, task_of(job)
        self.pools = list({id(model.pool): model.pool for model in models.values()}.values())
        self.done, self.multiplier = 0, 0.0
        groups = {role: grouping(model.degrees) for role, model in models.items()}
        self.training: dict[str, Protocol] = {role: three_d_proto(of) for role, of in groups.items()}
        self.generating = three_d_all_micro_dp(groups["actor"])

    def iteration(self) -> dict[str, float]:
        """One batch of answers and the updates on it; means of reward, length and cost. Raises `CannotRun` if a process fails."""
        try:
            batch = self._iteration()
            finish(self.pools)
            told = [name for name in ("reward", "length", "cost") if name in batch.columns]
            return {name: fetch(batch, name).mean().item() for name in told}
        except RayError:
            finish(self.pools)  # says which process failed first
            raise
        finally:
            self.done += 1

    def _iteration(self) -> Remote:
        job, asked = self.job, self._asked()
        batch = self._prepared(asked | self._generated(asked, sample=True), asked)
        batch = batch | self._advantages(batch)
        if job.algorithm == "safe_rlhf":
            mean = fetch(batch, "cost").mean().item()
            self.multiplier = next_multiplier(self.multiplier, mean, limit=job.cost_limit, rate=job.multiplier_rate)
        for epoch in range(job.epochs):
            for i in range(job.minibatches):
                part = batch.rows(i * job.minibatch, (i + 1) * job.minibatch)
                self._update(part, f"u{epoch * job.minibatches + i}")
        return batch

    def _asked(self) -> Remote:
        job, prompts = self.job, self.task.prompts(self.done)
        columns = {"prompts": prompts.repeat_interleave(job.answers, 0), "row": torch.arange(job.sequences)}
        if job.algorithm == "safe_rlhf":
            columns["pretrain"] = self.task.pretraining(self.done)
        return put(columns)

    def _generated(self, asked: Remote, *, sample: bool) -> Remote:
        takes = ("prompts", "row")
        return self.models["actor"].call(
            "generate",
            self.generating,
            asked,
            takes,
            ANSWER,
            named="generate" if sample else "generate_greedy",
            iteration=self.done,
            sample=sample,
        )

    def _prepared(self, batch: Remote, asked: Remote) -> Remote:
        found = batch
        if self.job.algorithm == "remax":
            greedy = self._scored("reward", self._generated(asked, sample=False), "reward_greedy")
            found = found | greedy.renamed(baseline="reward")
        for role, gives, named in (
            ("actor", "logprob", "log_prob"),
            ("reference", "reference_logprob", "ref_log_prob"),
        ):
            model = self.models[role]
            found = found | model.call("log_prob", self.training[role], batch, ("tokens",), (gives,), named)
        if self.job.has_critic:
            found = found | self.models["critic"].call(
                "values", self.training["critic"], batch, ("tokens",), ("values",)
            )
        for role in ("reward", "cost"):
            if role in self.models:
                found = found | self._scored(role, batch)
        return found

    def _scored(self, role: str, batch: Remote, named: str = "") -> Remote:
        model = self.models[role]
        gives = ("reward", "length") if role == "reward" else ("cost",)
        return model.call(role, dp_proto(model.degrees.n_ranks), batch, ANSWER, gives, named)

    def _advantages(self, batch: Remote) -> Remote:
        more = {"ppo": ("values",), "safe_rlhf": ("values", "cost"), "remax": ("baseline",), "grpo": ()}
        takes = ("mask", "logprob", "reference_logprob", "reward", *more[self.job.algorithm])
        gives = ("advantages", "returns") if self.job.has_critic else ("advantages",)
        actor = self.models["actor"]
        return actor.call("advantages", self.training["actor"], batch, takes, gives, multiplier=self.multiplier)

    def _update(self, part: Remote, number: str) -> None:
        """One minibatch, with the number of the update; critic and actor at the same time where they are in different pools."""
        if self.job.has_critic:
            takes = (*ANSWER, "values", "returns")
            self.models["critic"].call("update", self.training["critic"], part, takes, (), f"update_critic/{number}")
        more = {"grpo": ("reference_logprob",), "safe_rlhf": ("pretrain",)}.get(self.job.algorithm, ())
        takes = (*ANSWER, "logprob", "advantages", *more)
        self.models["actor"].call("update", self.training["actor"], part, takes, (), f"update_actor/{number}")
