"""No collection of cyclic garbage while a checkpoint is planned and moved.

A plan is tens of thousands of small objects, enough to make Python look at every object of the program in the middle of it: 0.2 s
where torch is loaded, on a load of 0.1 s.
"""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_inside = 0
_was_enabled = False


@contextmanager
def no_collection() -> Iterator[None]:
    """While any thread is inside, the collector is off; afterwards it is as it was before."""
    global _inside, _was_enabled
    with _lock:
        if not _inside:
            _was_enabled = gc.isenabled()
            gc.disable()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside and _was_enabled:
                gc.enable()
