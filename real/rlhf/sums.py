"""Sums of two digits for a model that knows language: the first number of the answer is right or not."""

import re

import torch
from torch import Tensor

from real.rlhf.job import Job
from real.rlhf.pretrained import tokenizer
from real.rlhf.task import generator
from simcore.errors import InputError, Problem

QUESTION = "2 + 3 = 5\n4 + 1 = 5\n{a} + {b} ="
"""Two lines show what is asked for. Every digit is a token, so all questions are as long as each other."""

QUESTION_LEN = 21

TEXT = "{a} and {b} are {c}. "
"""Correct text for the language-model loss."""


class Sums:
    """Say what a + b is, and nothing else; a new line ends the answer.

    Reward is 1 if the first number in the answer is the sum. Cost is the share of the longest answer that is used for anything but
    digits. Raises `InputError` if the job's `prompt_len` is not that of the question.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.tokenizer = job, tokenizer()
        self.digits = torch.tensor([self._tokens(str(i))[0] for i in range(10)])
        length = len(self._question(0, 0))
        if job.prompt_len != length:
            problem = Problem("prompt_len", str(job.prompt_len), f"{length}, the length of the question")
            raise InputError("a job does not suit its task", [problem])

    def prompts(self, iteration: int) -> Tensor:
        """Questions, digits at random."""
        pairs = self._pairs(iteration, 1, self.job.prompts)
        return torch.tensor([self._question(a, b) for a, b in pairs])

    def pretraining(self, iteration: int) -> Tensor:
        """Correct sums one after the other."""
        length = self.job.prompt_len + self.job.response_len
        pairs = self._pairs(iteration, 2, self.job.sequences * length)
        texts = [
            "".join(TEXT.format(a=a, b=b, c=a + b) for a, b in pairs[i :: self.job.sequences])
            for i in range(self.job.sequences)
        ]
        return torch.tensor([self._tokens(text)[:length] for text in texts])

    def reward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """1 where the first number is the sum of the question's digits."""
        response = tokens[:, self.job.prompt_len :]
        right = []
        for asked, answer, kept in zip(tokens[:, : self.job.prompt_len], response, mask, strict=True):
            a, b = re.findall(r"\d", self.tokenizer.decode(asked.tolist()))[-2:]
            said = re.search(r"\d+", self.tokenizer.decode(answer[kept].tolist()))
            right.append(float(said is not None and int(said[0]) == int(a) + int(b)))
        return torch.tensor(right)

    def cost(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Share of tokens that are neither digits nor the end."""
        response = tokens[:, self.job.prompt_len :]
        other = ~torch.isin(response, self.digits.to(tokens.device)) & (response != self.job.end)
        return (other & mask).float().mean(1)

    def _question(self, a: int, b: int) -> list[int]:
        return self._tokens(QUESTION.format(a=a, b=b))

    def _tokens(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text).input_ids
        return found

    def _pairs(self, iteration: int, purpose: int, count: int) -> list[tuple[int, int]]:
        drawn = torch.randint(10, (count, 2), generator=generator(self.job, iteration, purpose))
        return [(a, b) for a, b in drawn.tolist()]
