"""What happens when: plans, clusters, planners, the engine and reports.

    import simcore
    simcore.load("scenarios/quickstart.yaml").plan()

`simcore.api` has the commands as Python calls. Names are loaded when they are first asked for.
"""

from importlib import import_module

_HOMES = {
    "Cluster": "simcore.cluster",
    "Plan": "simcore.plan",
    "Report": "simcore.reporting.report",
    "Scenario": "simcore.scenario",
    "Task": "simcore.plan",
    "Trace": "simcore.trace",
    "WindtunnelError": "simcore.errors",
    "load": "simcore.scenario",
    "simulate": "simcore.engine.simulate",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
