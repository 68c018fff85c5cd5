"""Tasks of one save, of one load, and of training beside them.

    agree, planning, gather/s0, collect, copy/model/writers0, serialise/model/writers0, dump/model/writers0, upload/model/writers0,
    system/model/writers0, barrier/meet, barrier, commit

What is copied to the host keeps training waiting; everything after that runs on the host and on the network beside it, one role
after the other on each rank. A synchronous save keeps training waiting to its end. Others than windtunnel know what they will
write before they do, and upload their metadata beside the rest rather than with the commit.
"""

from collections.abc import Iterable, Sequence

from simcore.checkpoint.jobs import ALL, LOADERS, ROOT, CheckpointJob, host
from simcore.checkpoint.training_states import ROLES
from simcore.draft import Draft
from simcore.plan import Collective, Task, Write
from simcore.training.choice import stage_name
from simcore.training.ops import REPLICAS


def blocking_tasks(draft: Draft, job: CheckpointJob, *, first: bool = False) -> list[str]:
    """What an asynchronous save keeps training waiting for; returns what to wait for. `first` plans even where plans are kept."""
    planned = [draft.add("agree", job.agreeing())] if job.system.raw else []
    if first or not job.system.cached_plan:
        planned = [draft.add("planning", job.planning(), planned)]
    waits = [*planned, *_gather(draft, job, planned)]
    done = list(waits)
    if job.workload.loader_B and not job.system.prefetches:
        done.append(draft.add("collect", host(LOADERS, "collect", elements=int(job.workload.loader_B)), waits))
    for role, name in enumerate(ROLES):
        for group, writers in job.writers.items():
            if job.copies and writers.role_B[role]:
                copy = host(group, "d2h", elements=writers.role_B[role], items=job.items(role, writers.shards))
                done.append(draft.add(f"copy/{name}/{group}", copy, waits))
    return done


def _gather(draft: Draft, job: CheckpointJob, after: Sequence[str]) -> list[str]:
    """Flat slices gathered to whole tensors, by systems that save no others."""
    found = []
    for stage in range(job.choice.pp):
        nbytes = job.gathered_B(stage)
        if nbytes:
            op = Collective(
                kind="all_gather", group=stage_name(stage), along=REPLICAS, nbytes=nbytes, stream="checkpoint"
            )
            found.append(draft.add(f"gather/s{stage}", op, after))
    return found


def background_tasks(draft: Draft, job: CheckpointJob, copied: Sequence[str]) -> str:
    written: list[str] = []
    if not job.system.raw:
        written.append(draft.add("upload/metadata", _upload(job, ROOT, job.metadata_B, 1, stream="metadata"), copied))
    before: dict[str, list[str]] = {}
    for role, name in enumerate(ROLES):
        for group, writers in job.writers.items():
            if writers.role_B[role]:
                items = job.items(role, writers.shards)
                after = before[group] if job.in_turn and group in before else copied
                before[group] = _file(draft, job, f"{name}/{group}", group, writers.role_B[role], items, after)
                written += before[group]
    if job.workload.loader_B:
        written += _loader_files(draft, job, copied)
    met = Collective(kind="barrier", group=ALL, along=(ALL,), nbytes=0, stream="io")
    draft.add("barrier/meet", met, written)
    done = draft.add("barrier", job.barrier(), ["barrier/meet", *written])
    return draft.add("commit", _upload(job, ROOT, job.metadata_B, 1), (done,)) if job.system.raw else done


def _file(
    draft: Draft, job: CheckpointJob, name: str, group: str, nbytes: int, items: int, after: Sequence[str]
) -> list[str]:
    """One file of each rank of a group, with so many tensors: made, and uploaded, for which a rank that is a core works itself."""
    phase = "checksum" if job.system.raw else "pickle"
    made = draft.add(f"serialise/{name}", host(group, phase, job.beside, elements=nbytes, items=items), after)
    if job.system.asynchronous and not job.system.raw:
        made = draft.add(f"dump/{name}", host(group, "dump", elements=nbytes), (made,))
    done = [draft.add(f"upload/{name}", _upload(job, group, nbytes, items), (made,))]
    if job.on_host and job.system.raw:
        done.append(draft.add(f"system/{name}", host(group, "system", job.beside, elements=nbytes), (made,)))
    return done


def _upload(job: CheckpointJob, group: str, nbytes: int, items: int, stream: str = "io") -> Write:
    requests = job.requests(nbytes, items)
    streams = min(job.parallel_streams, requests)
    return Write(group=group, store=job.store, nbytes=nbytes, requests=requests, streams=streams, stream=stream)


def _loader_files(draft: Draft, job: CheckpointJob, after: Sequence[str]) -> list[str]:
    """A file for each worker: all at a time and beside the others, or one after the other where files have one stream only."""
    workers, nbytes = job.workload.loader_workers, int(job.workload.loader_B)
    phase = "checksum" if job.system.raw else "pickle"
    made = draft.add("serialise/loader", host(LOADERS, phase, elements=nbytes), after)
    if job.system.parallel:
        requests = max(workers, job.requests(nbytes))
        op = Write(group=LOADERS, store=job.store, nbytes=nbytes, requests=requests, streams=workers, stream="loader")
        return [draft.add("upload/loader", op, (made,))]
    one = Write(group=LOADERS, store=job.store, nbytes=-(-nbytes // workers))
    return [draft.add(f"upload/loader/worker{i}", one, (made,)) for i in range(workers)]


def save_tasks(job: CheckpointJob, *, first: bool = False, stall_only: bool = False) -> Draft:
    """A save with nobody training beside it; `stall_only`: as far as training would wait for it."""
    draft = Draft()
    copied = blocking_tasks(draft, job, first=first)
    if not (stall_only and job.system.asynchronous):
        background_tasks(draft, job, copied)
    return draft


def window_tasks(job: CheckpointJob, iteration: Sequence[Task], count: int) -> Draft:
    """A save, and `count` iterations of training that start as soon as it lets them."""
    draft = Draft()
    waits = blocking_tasks(draft, job)
    if not job.system.asynchronous:
        waits = [background_tasks(draft, job, waits)]
        _iterations(draft, iteration, count, waits)
        return draft
    copied = list(waits)
    _iterations(draft, iteration, count, waits)
    background_tasks(draft, job, copied)
    return draft


def _iterations(draft: Draft, iteration: Sequence[Task], count: int, waits: Iterable[str]) -> None:
    """The same tasks again and again. An iteration starts when all ranks have ended the one before, as in a run of several."""
    needed = {name for task in iteration for name in task.after}
    ends = [task.id for task in iteration if task.id not in needed]
    after = tuple(waits)
    for i in range(count):
        for task in iteration:
            own = tuple(f"{name}/it{i}" for name in task.after)
            draft.tasks.append(Task(f"{task.id}/it{i}", task.op, own or after, task.activation_B))
        after = tuple(f"{name}/it{i}" for name in ends)
