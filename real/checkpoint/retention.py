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


def prune(storage: Storage, keep: int, *, reuse: bool = False) -> list[str]:
    """Remove them; returns their names. `reuse`: the files of the last one are left for the next save to write over."""
    found = to_remove(storage, keep)
    for name in found:
        if reuse and name == found[-1]:
            storage.retire(name)
        else:
            storage.remove(name)
    return found
