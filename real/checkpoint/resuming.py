"""One training, saved by two ranks of tensor parallelism and gone on with in other ways: what stays the same bit by bit.

`python -m real.checkpoint.resuming --model smollm2-135m` runs it with pretrained weights and AdamW's moments, each way in processes
of its own, and prints losses. What a way reads has to be the very bits that were saved. What it computes from them is the same bit
by bit where the same numbers are added in the same order; `WAYS` says where that is.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from costmodels.files import write_atomically
from real.launch import launch
from simcore.errors import InputError, Problem

JOB, RUN = "job.json", "run.json"
TOKENS, WEIGHTS = "tokens.safetensors", "weights.safetensors"
MODELS = ("small", "smollm2-135m")


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How ranks share a model. `same_as`: the way whose losses it repeats bit by bit, None if it adds in an order of its own."""

    name: str
    kind: str
    ranks: int
    same_as: str | None = None
    why: str = ""


FIRST = Way(name="TP 2, without a break", kind="tp", ranks=2)
WAYS = (
    Way(name="TP 2", kind="tp", ranks=2, same_as=FIRST.name, why="the same products and the same sums over ranks"),
    Way(name="one process", kind="alone", ranks=1, why="products that TP adds up from two ranks are one sum each"),
    Way(name="FSDP2 1", kind="fsdp", ranks=1, same_as="one process", why="one rank has all rows of every product"),
    Way(name="DP 4", kind="dp", ranks=4, why="gradients are sums of four ranks' sums"),
    Way(name="DP 4 again", kind="dp", ranks=4, same_as="DP 4", why="the same sums in the same order"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Steps before the checkpoint and after it, of a batch of `rows` sequences of `tokens` tokens.

    `materials`: folder with weights and tokens of a pretrained model, made once for all processes (`prepared`).
    """

    model: str = "small"
    materials: str = ""
    before: int = 2
    after: int = 3
    rows: int = 4
    tokens: int = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one way did after the checkpoint. Digests are of all tensors put together, model and moments, in hexadecimal."""

    losses: tuple[float, ...]
    loaded: str
    final: str
    seconds: float = 0.0
    nbytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A way beside the run without a break."""

    way: Way
    run: Run
    exact_state: bool
    """The state that was loaded is the one that was saved, bit by bit."""
    same_bits: bool | None
    """Losses and final state are those of `way.same_as`, bit by bit; None where that is not expected."""
    difference: float
    """Largest relative difference of a loss from the run without a break."""


def judged(first: Run, runs: Mapping[str, Run], ways: Sequence[Way] = WAYS) -> list[Verdict]:
    """Every way in `runs`, by its name, beside `first` and beside the way that it should repeat."""
    known = {FIRST.name: first, **runs}
    found = []
    for way in ways:
        run, other = runs[way.name], known.get(way.same_as or "")
        apart = max(abs(a - b) / abs(b) for a, b in zip(run.losses, first.losses, strict=True))
        same = None if other is None else (run.losses, run.final) == (other.losses, other.final)
        found.append(
            Verdict(way=way, run=run, exact_state=run.loaded == first.loaded, same_bits=same, difference=apart)
        )
    return found


def prepared(job: Job, folder: Path) -> Job:
    """The job with its weights in `folder` as safetensors, and tokens: additions in words. Nothing to do for the small model."""
    if job.model == "small":
        return job
    import torch
    from safetensors.torch import save_file, save_model

    from real.rlhf.pretrained import tokenizer, weights

    shape = (job.before + job.after, job.rows, job.tokens, 2)
    numbers = torch.randint(10, 99, shape, generator=torch.Generator().manual_seed(0)).tolist()
    texts = [
        [" ".join(f"If you add {a} and {b}, you get {a + b}." for a, b in row) for row in step] for step in numbers
    ]
    tokens = [[tokenizer()(text)["input_ids"][: job.tokens + 1] for text in step] for step in texts]
    model = weights()
    model.config.save_pretrained(folder)
    save_model(model, str(folder / WEIGHTS))
    save_file({"tokens": torch.tensor(tokens)}, folder / TOKENS)
    return replace(job, materials=str(folder))


def resumed(job: Job, root: Path) -> tuple[Run, list[Verdict]]:
    """The experiment under `root`, which must not hold checkpoints yet. Raises CannotRun where a process fails."""
    runs = {}
    for way in (FIRST, *WAYS):
        with tempfile.TemporaryDirectory(prefix="resuming-") as folder:
            Path(folder, JOB).write_text(json.dumps(asdict(job)))
            start = "start" if way is FIRST else "resume"
            launch("real.checkpoint.resume_worker", way.ranks, Path(folder), arguments=(str(root), way.kind, start))
            told = json.loads(Path(folder, RUN).read_text())
        runs[way.name] = Run(**{**told, "losses": tuple(told["losses"])})
    first = runs.pop(FIRST.name)
    return first, judged(first, runs)


def tell(folder: Path, run: Run) -> None:
    """Called by one process of a run."""
    write_atomically(folder / RUN, json.dumps(asdict(run)))


def text(job: Job, first: Run, verdicts: Sequence[Verdict]) -> str:
    """A table for people."""
    rows = [
        ["way", "state", "same bits as", *(f"loss {job.before + i}" for i in range(job.after)), "apart", "load", "read"]
    ]
    rows += [
        [FIRST.name, "saved", "", *(f"{x:.7f}" for x in first.losses), "", "", f"{first.nbytes / 1e6:.0f} MB saved"]
    ]
    for v in verdicts:
        repeats = "-" if v.same_bits is None else f"{v.way.same_as}: {'yes' if v.same_bits else 'NO'}"
        state = "exact" if v.exact_state else "DIFFERENT"
        load = [f"{v.run.seconds:.1f} s", f"{v.run.nbytes / 1e6:.0f} MB"]
        rows += [[v.way.name, state, repeats, *(f"{x:.7f}" for x in v.run.losses), f"{v.difference:.1e}", *load]]
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 if a state is not exact, or a way does not repeat what it should."""
    parser = argparse.ArgumentParser(
        prog="python -m real.checkpoint.resuming", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", default="small", help=" or ".join(MODELS))
    parser.add_argument("--root", type=Path, help="where the checkpoint goes and stays; a temporary folder by default")
    for name, help_ in (
        ("before", "steps before the checkpoint"),
        ("after", "steps after it"),
        ("tokens", "of a sequence"),
    ):
        parser.add_argument(f"--{name}", type=int, default=getattr(Job(), name), help=help_)
    given = parser.parse_args(arguments)
    if given.model not in MODELS:
        raise InputError("unknown model", [Problem("--model", given.model, ", ".join(MODELS))])
    job = Job(model=given.model, before=given.before, after=given.after, tokens=given.tokens)
    with tempfile.TemporaryDirectory(prefix="resuming-") as temporary:
        first, verdicts = resumed(prepared(job, Path(temporary)), given.root or Path(temporary) / "checkpoints")
    sys.stdout.write(text(job, first, verdicts) + "\n")
    return int(any(not v.exact_state or v.same_bits is False for v in verdicts))


if __name__ == "__main__":
    sys.exit(main())
