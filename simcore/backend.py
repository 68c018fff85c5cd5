"""What a backend is, and where the two are found. `real` is named as a string: simcore never imports torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from simcore.errors import InputError, Problem
from simcore.plan import Plan
from simcore.progress import Progress
from simcore.trace import Trace

if TYPE_CHECKING:
    from simcore.scenario import Scenario

BACKENDS = {"sim": "simcore.sim:SimBackend", "real": "real.backend:RealBackend"}


class Backend(Protocol):
    """Runs plans. `check` returns everything that stands in the way; `run` raises `CannotRun` or `DoesNotFit` for the same."""

    name: str

    @classmethod
    def from_scenario(cls, scenario: "Scenario") -> "Backend": ...

    def check(self, plan: Plan) -> list[Problem]: ...

    def run(self, plan: Plan, *, progress: Progress | None = None) -> Trace: ...


def open_backend(name: str, scenario: "Scenario") -> Backend:
    """The backend called `name`, ready for the scenario's cluster and options."""
    if name not in BACKENDS:
        raise InputError("unknown backend", [Problem("backend", repr(name), ", ".join(BACKENDS))])
    module, attribute = BACKENDS[name].split(":")
    try:
        found = getattr(import_module(module), attribute)
    except ModuleNotFoundError as missing:
        if name != "real":
            raise
        advice = "Install it with: pip install 'windtunnel[real]'"
        raise InputError(
            f"the {name} backend needs {missing.name}", [Problem("backend", name, "sim", advice)]
        ) from missing
    return cast(type[Backend], found).from_scenario(scenario)
