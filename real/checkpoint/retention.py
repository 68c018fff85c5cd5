"""Which checkpoints stay."""

from real.checkpoint.errors import CheckpointError
from real.checkpoint.storage import Storage
from simcore.errors import Problem


def to_remove(storage: Storage, keep: int) -> list[str]:
    """Names beyond the last `keep`, by step; never what `latest` names. Raises CheckpointError for less than one."""
    if keep < 1:
        raise CheckpointError("nothing would be kept", [Problem("keep", str(keep), "1 or more")])
    names, latest = storage.names(), storage.latest()
    return [name for name in names[: max(len(names) - keep, 0)] if name != latest]


def prune(storage: Storage, keep: int) -> list[str]:
    """Remove them, and leftovers of removals that were cut short; returns their names."""
    found = to_remove(storage, keep)
    for name in found:
        storage.remove(name)
    return found
