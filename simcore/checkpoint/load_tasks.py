"""Tasks of a load, into the parallelism that saved or another one.

convert/read, convert/write, read/metadata, planning, read/model/s0, deserialise/model/s0, copy/model/s0, exchange/model/s0, barrier
"""

from simcore.checkpoint.jobs import ALL, LOADERS, ROOT, CheckpointJob, host
from simcore.checkpoint.training_states import ROLES
from simcore.checkpoint.writers import read_B
from simcore.draft import Draft
from simcore.plan import Collective, Read, Write
from simcore.training.choice import Choice, stage_name
from simcore.training.ops import REPLICAS


def load_tasks(job: CheckpointJob, saved: Choice) -> Draft:
    """A load of what was saved under `saved` into the job's own choice; ranks read one role after the other, and take apart what
    they have while they read on."""
    draft = Draft()
    resharded = _differs(saved, job.choice)
    begin = _converted(draft, job) if resharded and job.system.converts else []
    metadata = Read(group=ALL, store=job.store, nbytes=job.metadata_B)
    known = [draft.add("read/metadata", metadata, begin)]
    known.append(draft.add("planning", job.planning(), known))
    read, received = read_B(job.workload.training, saved, job.choice, once=job.system.reads_once, flat=job.flat)
    done = []
    for role, name in enumerate(ROLES):
        for stage in range(job.choice.pp):
            items = sum(k.role == name for k in job.kinds) * job.most_tensors
            sizes = int(read[stage, role]), int(received[stage, role]), items
            done.append(_role(draft, job, f"{name}/s{stage}", stage_name(stage), sizes, known))
    if job.workload.loader_B:
        done.append(_loader(draft, job, saved, known))
    draft.add("barrier/meet", Collective(kind="barrier", group=ALL, along=(ALL,), nbytes=0, stream="io"), done)
    draft.add("barrier", host(ROOT, "barrier", messages=job.messages), ["barrier/meet", *done])
    return draft


def _differs(saved: Choice, wanted: Choice) -> bool:
    def key(choice: Choice) -> tuple[int, ...]:
        return (choice.shards, choice.tp, choice.pp, choice.vpp, choice.zero)

    return key(saved) != key(wanted)


def _role(
    draft: Draft, job: CheckpointJob, name: str, group: str, sizes: tuple[int, int, int], after: list[str]
) -> str:
    """One role of a stage: read, taken apart, copied to the device, handed on to others that want it.

    `sizes` are the bytes that a rank reads and that it gets from others, and in how many tensors.
    """
    nbytes, received, items = sizes
    requests = job.requests(nbytes, items)
    streams = min(job.parallel_streams, requests)
    op = Read(group=group, store=job.store, nbytes=nbytes, requests=requests, streams=streams)
    found = draft.add(f"read/{name}", op, after)
    phase = "checksum" if job.system.raw else "unpickle"
    found = draft.add(f"deserialise/{name}", host(group, phase, elements=nbytes), (found,))
    found = draft.add(f"copy/{name}", host(group, "h2d", elements=nbytes), (found,))
    if not received:
        return found
    exchange = Collective(
        kind="all_to_all", group=group, along=REPLICAS, nbytes=max(nbytes, received), dtype="float32", stream="exchange"
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
    phase = "checksum" if job.system.raw else "unpickle"
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
