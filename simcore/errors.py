"""Every error a user can meet.

WindtunnelError (ValueError)
├── InputError          a file, an option or a field is wrong; carries every problem found
│   ├── ScenarioError   in a scenario
│   └── DataError       in a table of measurements or a catalogue entry
├── PlanError           a plan that cannot be what it says (unknown dependency, cycle, rank out of range)
├── DoesNotFit          memory: what is lacking, how much and where
├── CannotRun           this backend cannot run this plan; says what is lacking
└── Incomparable        traces of different plans
"""

from costmodels.errors import DataError, InputError, Problem, WindtunnelError

__all__ = [
    "CannotRun",
    "DataError",
    "DoesNotFit",
    "Incomparable",
    "InputError",
    "PlanError",
    "Problem",
    "ScenarioError",
    "WindtunnelError",
]


class ScenarioError(InputError):
    """A scenario is wrong."""


class PlanError(WindtunnelError):
    """A plan contradicts itself or the cluster."""


class DoesNotFit(WindtunnelError):  # noqa: N818 - reads as the sentence it is
    """The plan needs more memory than a device has."""


class CannotRun(WindtunnelError):  # noqa: N818
    """This backend cannot run this plan."""


class Incomparable(WindtunnelError):  # noqa: N818
    """Two traces do not belong to one plan."""
