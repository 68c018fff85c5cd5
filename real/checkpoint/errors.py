"""What can go wrong with a checkpoint.

CheckpointError (WindtunnelError)   a save or load did not happen: which file, which shard, why
└── CorruptCheckpoint               what is stored is not what was written
"""

from errno import errorcode

from simcore.errors import Problem, WindtunnelError


class CheckpointError(WindtunnelError):
    """A checkpoint could not be written or read."""


class CorruptCheckpoint(CheckpointError):  # noqa: N818 - reads as the sentence it is
    """A checkpoint is damaged, or was made to look like one."""


def corrupt(where: str, field: str, given: object, allowed: str) -> CorruptCheckpoint:
    """The error for one thing that is wrong in file `where`."""
    shown = str(given)
    shown = shown if len(shown) <= 200 else shown[:200] + "..."
    return CorruptCheckpoint(f"{where} is not a sound checkpoint", [Problem(field, shown, allowed)])


def storage_problem(file: str, error: OSError, advice: str = "") -> Problem:
    """An operating system's error as a problem of a file, with what may help."""
    known = {
        "ENOSPC": "Free space or save elsewhere; the last committed checkpoint is untouched.",
        "EDQUOT": "The quota is used up; free space or save elsewhere.",
        "EACCES": "Check the owner and the permissions of the folder.",
        "EPERM": "Check the owner and the permissions of the folder.",
        "EROFS": "The file system is mounted read-only.",
        "ENOENT": "Is the store still mounted?",
        "ESTALE": "Is the store still mounted?",
        "ENOTCONN": "Is the store still mounted?",
        "EIO": "The device reports an error; look at its health.",
        "": "Is the store reachable? What was committed before is untouched, and the next save tries again.",
    }
    code = errorcode.get(error.errno or 0, "")
    return Problem(
        file, f"{error.strerror or error} ({code or type(error).__name__})", "success", advice or known.get(code, "")
    )


def damaged(where: str, found: int, wanted: int) -> Problem:
    """A checksum that is not the one that was written."""
    advice = "The file was damaged after it was written; load an earlier checkpoint."
    return Problem(where, f"xxh3 {found:016x}", f"{wanted:016x}, as it was written", advice)
