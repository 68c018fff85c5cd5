"""What a request to a folder takes, beside its bytes; rates are measured by saving and loading (`real.checkpoint.calibrating`)."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

REQUESTS = 20


def request_seconds(folder: Path) -> float:
    """Mean seconds to make a file of one byte, which need not be durable."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".bench-") as inside:
        start = time.perf_counter()
        for i in range(REQUESTS):
            (Path(inside) / f"small{i}").write_bytes(b"x")
        return (time.perf_counter() - start) / REQUESTS
