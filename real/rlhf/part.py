"""What a rank has of a model, and the columns of a batch that its methods take and return."""

from dataclasses import dataclass

import torch
from torch import Tensor

from real.groups import Groups
from real.rlhf.placement import Portions
from real.rlhf.spans import Spans
from simcore.hybridflow.grouping import Degrees

Columns = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Part:
    """How the model is split, how much of a batch a rank takes at a time, where, and what records it; `groups` are those of the
    pool, which its models share."""

    degrees: Degrees
    portions: Portions
    device: torch.device
    spans: Spans
    groups: Groups
