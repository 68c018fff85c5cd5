"""SmolLM2-135M with its own weights and tokenizer on a task that can be checked; without the package, an error that says how."""

from importlib.util import find_spec

import pytest
import torch

from simcore.errors import InputError

pytest.importorskip("transformers")

from real.rlhf import learning, pretrained
from real.rlhf.job import Job
from real.rlhf.models import actor_model, logprobs
from real.rlhf.sampling import generate
from real.rlhf.sums import QUESTION, QUESTION_LEN, Sums
from real.rlhf.task import task_of

MISSING = [module for module in pretrained.NEEDED if find_spec(module) is None]
with_weights = pytest.mark.skipif(bool(MISSING), reason=f"needs extra llm ({', '.join(MISSING)} missing)")


def test_without_the_package_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(pretrained, "NEEDED", ("llm_smollm3", "gguf3"))
    with pytest.raises(InputError, match="without llm-smollm3, gguf3") as caught:
        pretrained.smollm2()
    assert "pip install" in caught.value.problems[0].advice
    assert learning.main(["--model", "smollm2-135m", "--algorithms", "ppo", "--seeds", "1"]) == 2
    assert "llm-smollm3" in capsys.readouterr().err


@pytest.fixture(scope="module")
def job() -> Job:
    return learning.STUDIES["smollm2-135m"].job("grpo", 0)


@with_weights
def test_sums_are_checked_through_the_tokenizer(job: Job) -> None:
    task = task_of(job)
    assert isinstance(task, Sums)
    asked = task.prompts(0)
    assert asked.shape == (job.prompts, job.prompt_len)
    assert not torch.equal(asked, task.prompts(1))
    text = pretrained.tokenizer().decode(asked[0].tolist())
    a, b = int(text[-7]), int(text[-3])
    assert text == QUESTION.format(a=a, b=b)
    said = [f" {a + b}\n", f" {a + b + 1}\n", f" maybe {a + b}", " none\n"]
    answers = [(task._tokens(s) + [job.end] * 9)[: job.response_len] for s in said]
    tokens = torch.cat([asked[:1].expand(len(said), -1), torch.tensor(answers)], dim=1)
    ends = torch.tensor(answers) == job.end
    mask = ends.long().cumsum(1) - ends.long() == 0
    assert task.reward(tokens, mask).tolist() == [1, 0, 1, 0]
    assert task.cost(tokens, mask)[0] == pytest.approx(1 / 4)  # the space before the number
    assert task.pretraining(0).shape == (job.sequences, job.prompt_len + job.response_len)


@with_weights
def test_a_job_with_other_questions_is_refused(job: Job) -> None:
    with pytest.raises(InputError, match=f"allowed: {QUESTION_LEN}"):
        task_of(Job(model=job.model, prompt_len=5))


@with_weights
@pytest.mark.slow
def test_the_model_knows_what_it_was_taught(job: Job) -> None:
    """The weights in the package, not such as follow from a seed: a well-known sentence goes on as it should."""
    torch.set_num_threads(1)
    model, words = actor_model(job), pretrained.tokenizer()
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    asked = torch.tensor([words("The capital of France is").input_ids])
    tokens, _ = generate(model, asked, 2, end=job.end)
    assert words.decode(tokens[0].tolist()).startswith("The capital of France is Paris")
    with torch.no_grad():
        assert logprobs(model, tokens, asked.shape[1])[0, 0] > -1.5
