"""Transformers' Llama as actor, reference and critic, and what is read off their hidden states."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW
from transformers import LlamaForCausalLM

from real.kernels.linear_logprob import linear_logprob
from real.model import build_model
from real.rlhf import pretrained
from real.rlhf.job import Job
from real.rlhf.stages import Elsewhere


def actor_model(job: Job) -> LlamaForCausalLM:
    """The policy as training starts, which is the reference model too; the same on every process."""
    return _language_model(job, job.seed)


class Critic(nn.Module):
    """A Llama with one number for each token instead of logits."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.model = _language_model(job, job.seed + 1).model
        torch.manual_seed(job.seed + 2)
        self.value = nn.Linear(self.model.config.hidden_size, 1, bias=False)

    def forward(self, given: Tensor, prompt_len: int) -> Tensor:
        """(n, response) the value of what stands before each token of the response; of a stage that is not the last of a pipeline,
        what `hidden_states` gives."""
        hidden = hidden_states(self, given)
        if isinstance(self.value, Elsewhere):
            return hidden
        found: Tensor = self.value(hidden[:, prompt_len - 1 : -1])[..., 0]
        return found


def _language_model(job: Job, seed: int) -> LlamaForCausalLM:
    """With the weights of a package, or such as follow from the seed."""
    return pretrained.weights() if job.pretrained else build_model(job.model, "float32", seed)


def hidden_states(model: nn.Module, given: Tensor) -> Tensor:
    """(n, length, hidden) after the layers of a model, or of its stage, of tokens (n, length) or of hidden states before; the last
    stage ends with the norm."""
    named = {"inputs_embeds" if given.is_floating_point() else "input_ids": given}
    found: Tensor = model.model(**named, use_cache=False).last_hidden_state
    return found


def logprobs_of(hidden: Tensor, head: Tensor, tokens: Tensor, prompt_len: int) -> Tensor:
    """(n, response) log-probability of each token after the prompt, without its logits in memory; `head` is (vocab, hidden)."""
    targets = tokens[:, prompt_len:]
    found, _ = linear_logprob(hidden[:, prompt_len - 1 : -1].flatten(0, 1), head, targets.flatten())
    return found.view(targets.shape)


def logprobs(model: LlamaForCausalLM, tokens: Tensor, prompt_len: int) -> Tensor:
    """`logprobs_of` a whole model."""
    return logprobs_of(hidden_states(model, tokens), model.lm_head.weight, tokens, prompt_len)


def optimizer_of(parameters: Iterable[nn.Parameter], learning_rate: float, epsilon: float) -> AdamW:
    """Parameters that are spread alike in one group, because torch updates no list of whole and sharded ones at once."""
    groups: dict[object, list[nn.Parameter]] = {}
    for p in parameters:
        groups.setdefault(p.device_mesh if isinstance(p, DTensor) else None, []).append(p)
    return AdamW(
        [{"params": group} for group in groups.values()], lr=learning_rate, eps=epsilon, weight_decay=0.0, fused=True
    )
