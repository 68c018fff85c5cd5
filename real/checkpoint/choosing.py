"""Which checkpoint is meant."""

from real.checkpoint.errors import CheckpointError
from real.checkpoint.storage import Storage, order
from simcore.errors import Problem


def choose(storage: Storage, name: str | None, step: int | None) -> str:
    """The name of a committed checkpoint: as given, of a step, or the last. Raises CheckpointError listing what there is."""
    names = storage.names()
    if name is not None:
        found, given = name, name
    elif step is not None:
        found, given = max((n for n in names if order(n)[0] == step), key=order, default=""), f"step {step}"
    else:
        found = storage.latest() or ""
        given = f"`latest`, which names {found}" if found else "`latest`, which is not there"
    if found not in names:
        known = ", ".join(names[-10:]) or "nothing; no checkpoint is there"
        raise CheckpointError("no such checkpoint", [Problem("checkpoint", given, known)])
    return found
