"""What makes one save or load like the next."""

import os
from pathlib import Path

WARM_SAVES, WARM_LOADS = 4, 2
"""Runs that do not count: plans are made and kept in the first, memory is touched, and there are files to write over. Two files
take turns, and to write over one in memory for the first time takes 1.3 times as long as later on."""


def forget(root: Path) -> None:
    """Let the system drop what it keeps of files, so that they are read from the disk; of a store in memory nothing can go."""
    for path in (p for p in root.rglob("*") if p.is_file()):
        handle = os.open(path, os.O_RDONLY)
        try:
            drop(handle)
        finally:
            os.close(handle)


def drop(handle: int) -> None:
    """Let the system drop what it keeps of an open file, where a system can be told."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
