"""A role that has no model: hands on what it gets, so that what a call takes by itself can be measured."""

import time

from torch import Tensor

Columns = dict[str, Tensor]


class Probe:
    """Made as other roles are."""

    def __init__(self, *_: object) -> None:
        pass

    def echo(self, batch: Columns, *, after_s: float = 0.0) -> Columns:
        """The batch, after so many seconds."""
        time.sleep(after_s)
        return {name: column.clone() for name, column in batch.items()}
