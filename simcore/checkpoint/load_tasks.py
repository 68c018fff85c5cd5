"""Tasks of a load, into the parallelism that saved or another one.

convert/read, convert/write, read/metadata, planning, read/model/s0, deserialise/model/s0, copy/model/s0, place/model/s0,
pack/model/s0, exchange/model/s0, barrier/meet, barrier
"""

from dataclasses import dataclass

import numpy as np

from simcore.checkpoint.jobs import ALL, LOADERS, ROOT, CheckpointJob, host
from simcore.checkpoint.training_states import ROLES
from simcore.checkpoint.writers import placed_B, read_B
from simcore.draft import Draft
from simcore.plan import Collective, Read, Write
from simcore.training.choice import Choice, stage_name
from simcore.training.ops import REPLICAS


def load_tasks(job: CheckpointJob, saved: Choice) -> Draft:
    """A load of what was saved under `saved` into the job's own choice; ranks read one role after the other, and take apart what
    they have while they read on, unless they do one thing at a time."""
    draft = Draft()
    resharded = _differs(saved, job.choice)
    begin = _converted(draft, job) if resharded and job.system.converts else []
    metadata = Read(group=ALL, store=job.store, nbytes=job.metadata_B)
    known = [draft.add("read/metadata", metadata, begin)]
    sizes = _sizes(job, saved)
    read_B = max(sum(sizes[stage, name].read for name in ROLES) for stage in range(job.choice.pp))
    known.append(draft.add("planning", job.read_planning(saved, read_B), known))
    done: list[str] = []
    before: dict[int, str] = {}
    for name in ROLES:
        for stage in range(job.choice.pp):
            after = [before[stage]] if job.in_turn and stage in before else known
            before[stage] = _role(draft, job, f"{name}/s{stage}", stage_name(stage), sizes[stage, name], after)
            done.append(before[stage])
    if job.workload.loader_B:
        done.append(_loader(draft, job, saved, known))
    draft.add("barrier/meet", Collective(kind="barrier", group=ALL, along=(ALL,), nbytes=0, stream="io"), done)
    draft.add("barrier", host(ROOT, "barrier", messages=job.messages), ["barrier/meet", *done])
    return draft


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """Bytes of one role that a rank of a stage reads, gets from others, and copies to where they belong; `items` tensors."""

    read: int
    received: int
    placed: int
    items: int


def _sizes(job: CheckpointJob, saved: Choice) -> dict[tuple[int, str], _Sizes]:
    work = job.workload.training
    read, received = read_B(work, saved, job.choice, once=job.system.reads_once, flat=job.flat)
    placed = placed_B(work, saved, job.choice, flat=job.flat)
    placed = np.where(received > 0, 0, placed)  # what is exchanged is packed and filled in on its way
    return {
        (stage, name): _Sizes(
            read=int(read[stage, role]),
            received=int(received[stage, role]),
            placed=int(placed[stage, role]) if job.system.raw else 0,
            items=sum(k.role == name for k in job.kinds) * job.most_tensors,
        )
        for stage in range(job.choice.pp)
        for role, name in enumerate(ROLES)
    }


def _differs(saved: Choice, wanted: Choice) -> bool:
    def key(choice: Choice) -> tuple[int, ...]:
        return (choice.shards, choice.tp, choice.pp, choice.vpp, choice.zero)

    return key(saved) != key(wanted)


def _role(draft: Draft, job: CheckpointJob, name: str, group: str, sizes: _Sizes, after: list[str]) -> str:
    """One role of a stage: read, taken apart, copied to the device and to its place, handed on to others that want it."""
    nbytes = sizes.read
    requests = job.requests(nbytes, sizes.items)
    streams = min(job.parallel_streams, requests)
    op = Read(group=group, store=job.store, nbytes=nbytes, requests=requests, streams=streams)
    found = draft.add(f"read/{name}", op, after)
    phase = "verify" if job.system.raw else "unpickle"
    found = draft.add(f"deserialise/{name}", host(group, phase, elements=nbytes, items=sizes.items), (found,))
    if not (job.on_host and job.system.raw):
        found = draft.add(f"copy/{name}", host(group, "h2d", elements=nbytes), (found,))
    if sizes.placed:
        found = draft.add(f"place/{name}", host(group, "place", elements=sizes.placed), (found,))
    if not sizes.received:
        return found
    most = max(nbytes, sizes.received)
    if job.system.raw:
        found = draft.add(f"pack/{name}", host(group, "pack", elements=0, items=sizes.items), (found,))
    exchange = Collective(
        kind="all_to_all", group=group, along=REPLICAS, nbytes=most, dtype="float32", stream="exchange"
    )
    return draft.add(f"exchange/{name}", exchange, (found,))


def _loader(draft: Draft, job: CheckpointJob, saved: Choice, after: list[str]) -> str:
    """Each loader reads its own buffers back; with another number of replicas they are dealt anew (`System.deals`)."""
    dealt = saved.dp != job.choice.dp
    buffers = saved.dp if not job.system.deals else -(-saved.dp // job.choice.dp) + 1
    files = buffers if dealt else 1
    group = ROOT if dealt and not job.system.deals else LOADERS
    nbytes, workers = int(job.workload.loader_B) * files, job.workload.loader_workers * files
    streams = min(job.parallel_streams, workers)
    op = Read(group=group, store=job.store, nbytes=nbytes, requests=workers, streams=streams)
    found = draft.add("read/loader", op, after)
    phase = "verify" if job.system.raw else "unpickle"
    found = draft.add("deserialise/loader", host(group, phase, elements=nbytes), (found,))
    return draft.add("collect", host(group, "collect", elements=nbytes), (found,)) if dealt else found


def _converted(draft: Draft, job: CheckpointJob) -> list[str]:
    """All files read and written anew by all ranks together, a tensor at a time (Lian et al. 2024, section 3)."""
    share = -(-job.written.total_B // job.choice.n_ranks)
    requests = job.requests(share)
    read = draft.add("convert/read", Read(group=ALL, store=job.store, nbytes=share, requests=requests))
    found = draft.add("convert/deserialise", host(ALL, "unpickle", elements=share), (read,))
    found = draft.add("convert/serialise", host(ALL, "pickle", elements=share), (found,))
    written = Write(group=ALL, store=job.store, nbytes=share, requests=requests)
    return [draft.add("convert/write", written, (found,))]
