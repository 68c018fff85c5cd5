"""Which worker begins with what, so that none is left with a long test when the others are done."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def dealt(items: Sequence[tuple[str, T]], seconds: Mapping[str, float], workers: int) -> list[T]:
    """`items` of files in an order of which `--dist worksteal` gives each worker an equal part, one after the other.

    Each part begins with long files, whole and dealt out so that they take about as long in all parts; `seconds` says which are
    long. Short ones follow, of which a worker that is done takes some from another.
    """
    files: dict[str, list[T]] = {}
    for file, item in items:
        files.setdefault(file, []).append(item)
    parts: list[list[T]] = [[] for _ in range(workers)]
    busy_s = [0.0] * workers
    for file in sorted(set(files) & set(seconds), key=lambda f: (-seconds[f], f)):
        first = busy_s.index(min(busy_s))
        parts[first] += files.pop(file)
        busy_s[first] += seconds[file]
    rest = [item for of_file in files.values() for item in of_file]
    for i, part in enumerate(parts):
        room = (len(items) - sum(map(len, parts[:i]))) // (workers - i) - len(part)
        part += rest[: max(room, 0)]
        rest = rest[max(room, 0) :]
    return [item for part in parts for item in part] + rest
