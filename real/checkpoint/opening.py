"""From a path or an address to the storage behind it."""

import os
from pathlib import Path

from real.checkpoint.remote import Remote
from real.checkpoint.storage import Local, Storage


def open_storage(path: "str | os.PathLike[str] | Storage") -> Storage:
    """`Local` for folders (also as file://...), `Remote` for other addresses. Raises InputError where fsspec knows none."""
    if isinstance(path, str):
        if "://" not in path:
            return Local(Path(path))
        return Local(Path(path.removeprefix("file://"))) if path.startswith("file://") else Remote(path)
    return Local(Path(path)) if isinstance(path, os.PathLike) else path
