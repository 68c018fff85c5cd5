"""How fast a folder writes and reads."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory


def store_rates(folder: Path, *, quick: bool = False) -> Mapping[str, float]:
    """Bytes per second of one stream and the time to a first byte, as a catalogue entry has them. Writes are synced."""
    size = (32 if quick else 256) * 2**20
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".bench-") as inside:
        path = Path(inside) / "data"
        block = os.urandom(2**20) * 8
        start = time.perf_counter()
        with path.open("wb") as file:
            for _ in range(size // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        write = size / (time.perf_counter() - start)
        with path.open("rb") as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start = time.perf_counter()
            while file.read(len(block)):
                pass
            read = size / (time.perf_counter() - start)
        start = time.perf_counter()
        for i in range(20):
            (Path(inside) / f"small{i}").write_bytes(b"x")
        request = (time.perf_counter() - start) / 20
    return {
        "read_B_per_s": read,
        "write_B_per_s": write,
        "stream_read_B_per_s": read,
        "stream_write_B_per_s": write,
        "request_s": request,
    }
