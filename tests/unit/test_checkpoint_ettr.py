"""ETTR from simulated failures beside its closed forms, and beside a job that is played second by second."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simcore.checkpoint import ettr
from simcore.errors import InputError

JOB = ettr.Job(iteration_s=5.0, every=60, stall_s=2.0, save_s=40.0, load_s=60.0, restart_s=300.0, mtbf_s=4 * 3600.0)


def played(job: ettr.Job, between_s: float) -> float:
    """Kept training between two failures, as a job would live it: train, start a save when the last one is over, go on."""
    now, trained, busy_until = float(job.recovery_s), 0.0, 0.0
    kept, saves = 0.0, []
    while now <= between_s:
        now += float(job.work_s)
        trained += float(job.work_s)
        start = max(now, busy_until)
        busy_until = start + float(job.save_s)
        saves.append((busy_until, trained))
        now = max(start + float(job.stall_s), now)
    for done, upto in saves:
        if done <= between_s:
            kept = upto
    return kept


@settings(max_examples=60, deadline=None)
@given(
    every=st.integers(1, 40),
    stall=st.integers(0, 64),
    background=st.integers(0, 512),
    load=st.integers(0, 64),
    between=st.integers(1, 5000),
)
def test_what_is_kept_is_what_a_job_lives_through(
    every: int, stall: int, background: int, load: int, between: int
) -> None:
    job = ettr.Job(iteration_s=4.0, every=every, stall_s=stall, save_s=stall + background, load_s=load, mtbf_s=1e3)
    # a second start is bound to the first one's end where a save takes longer than the training between two
    if stall + background <= 4 * every + stall:
        assert float(ettr.useful_s(job, between + 0.5)) == played(job, between + 0.5)


def test_simulated_failures_agree_with_the_closed_form() -> None:
    found = ettr.measured(JOB, np.random.default_rng(1), failures=200_000)
    assert abs(float(found.ettr) - float(ettr.expected(JOB))) < 4 * float(found.error)
    assert float(found.error) < 0.002


def test_failures_come_from_the_seed() -> None:
    first, again = (ettr.measured(JOB, np.random.default_rng(3)).ettr for _ in range(2))
    other = ettr.measured(JOB, np.random.default_rng(4)).ettr
    assert first == again != other


def test_jobs_in_an_array_meet_the_same_failures() -> None:
    every = np.array([10, 60, 400])
    together = ettr.measured(replace(JOB, every=every), np.random.default_rng(5)).ettr
    alone = [float(ettr.measured(replace(JOB, every=int(n)), np.random.default_rng(5)).ettr) for n in every]
    np.testing.assert_allclose(together, alone)


@pytest.mark.parametrize("shape", [0.7, 1.0, 1.5])
def test_the_mean_time_between_failures_is_what_was_asked_for(shape: float) -> None:
    drawn = ettr.intervals_s(500.0, 400_000, np.random.default_rng(0), shape)
    assert drawn.mean() == pytest.approx(500.0, rel=0.01)


def test_a_failure_free_job_loses_its_stalls_alone() -> None:
    job = replace(JOB, mtbf_s=1e12)
    assert float(ettr.expected(job)) == pytest.approx(300.0 / 302.0, rel=1e-4)


@pytest.mark.parametrize("stall_s", [1.0, 10.0, 60.0])
def test_the_best_interval_of_a_synchronous_save_is_dalys(stall_s: float) -> None:
    """A save that stalls until it is complete, and failures far apart: what Young and Daly assume."""
    job = replace(JOB, iteration_s=0.1, stall_s=stall_s, save_s=stall_s)
    best_s = ettr.best_every(job) * 0.1
    assert best_s == pytest.approx(float(ettr.daly_s(stall_s, job.mtbf_s)), rel=0.02)
    assert best_s == pytest.approx(float(ettr.young_s(stall_s, job.mtbf_s)), rel=0.1)


def test_the_best_interval_is_the_best_of_all() -> None:
    job = replace(JOB, mtbf_s=2000.0)
    all_of_them = ettr.expected(replace(job, every=np.arange(1, 2000)))
    assert ettr.best_every(job, most=2000) == 1 + int(all_of_them.argmax())


def test_the_measured_best_interval_is_near_the_expected_one() -> None:
    candidates = [5, 10, 20, 40, 80, 160, 320]
    found = ettr.measured_best_every(JOB, candidates, np.random.default_rng(0))
    best = ettr.best_every(JOB)
    assert best / 2 <= found <= best * 2


def test_a_save_in_the_background_is_not_due_again_before_it_is_over() -> None:
    job = replace(JOB, every=1, stall_s=0.0)
    assert float(job.stalled_s) == 35.0
    assert float(ettr.expected(job)) < float(ettr.expected(replace(job, every=8)))


def test_the_papers_two_readings() -> None:
    job = replace(JOB, every=100, iteration_s=2.0, save_s=20.0, load_s=30.0)
    assert float(ettr.paper_half_save(job)) == pytest.approx(200 / (200 + 110 + 30))
    assert float(ettr.paper_whole_save(job)) == pytest.approx(1 - (20 + 30 + 100) / 250)


def test_a_jobs_mtbf_shrinks_with_its_devices() -> None:
    assert ettr.job_mtbf_s(50_000 * 3600.0, 10_000) == 5 * 3600.0


def test_times_that_make_no_sense_are_named_together() -> None:
    with pytest.raises(InputError) as caught:
        ettr.expected(replace(JOB, iteration_s=0.0, load_s=-1.0, mtbf_s=float("nan")))
    assert {p.field for p in caught.value.problems} == {"iteration_s", "load_s", "mtbf_s"}
