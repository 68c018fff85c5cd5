"""A checkpoint of tensor parallelism goes on in other ways: the state is exact, losses are the same bits where the sums are."""

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from real.checkpoint import resuming
from real.checkpoint.resume_worker import run
from real.checkpoint.resuming import FIRST, WAYS, Job, Run, judged, text
from tests.real.checkpoint_processes import ended, world

JOB = Job(model="small", before=2, after=3, tokens=16)


def done(way: resuming.Way, root: Path, folder: Path) -> Run:
    """Every rank's run, which have to be the same; read bytes and seconds apart."""

    def one(rank: int) -> None:
        found = run(JOB, way.kind, root, resume=way is not FIRST)
        (folder / f"{way.name} {rank}").write_text(json.dumps([found.losses, found.loaded, found.final]))

    assert ended(world(way.ranks, one)) == [0] * way.ranks
    texts = {(folder / f"{way.name} {rank}").read_text() for rank in range(way.ranks)}
    assert len(texts) == 1, way.name
    losses, loaded, final = json.loads(texts.pop())
    return Run(losses=tuple(losses), loaded=loaded, final=final)


@pytest.mark.slow
def test_training_goes_on_bit_by_bit_where_the_order_of_sums_allows(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    first = done(FIRST, root, tmp_path)
    runs = {way.name: done(way, root, tmp_path) for way in WAYS}
    verdicts = judged(first, runs)
    assert all(v.exact_state for v in verdicts)
    assert [v.same_bits for v in verdicts] == [True, None, True, None, True]
    assert verdicts[0].difference == 0.0
    assert all(v.difference < 1e-5 for v in verdicts)
    assert len({first.losses, *(r.losses for r in runs.values())}) > 1  # so that "the same bits" says something
    assert first.losses[-1] != first.losses[0] and first.final != first.loaded


def test_what_is_not_exact_is_said() -> None:
    good = Run(losses=(2.0, 1.0), loaded="a", final="b")
    runs = {way.name: good for way in WAYS}
    runs["TP 2"] = Run(losses=(2.0, 1.5), loaded="c", final="b")
    verdicts = judged(good, runs)
    assert [v.exact_state for v in verdicts] == [False, True, True, True, True]
    assert [v.same_bits for v in verdicts] == [False, None, True, None, True]
    assert verdicts[0].difference == pytest.approx(0.5)
    shown = text(Job(before=1, after=2), good, verdicts)
    assert "DIFFERENT" in shown and "TP 2, without a break: NO" in shown and "loss 2" in shown
