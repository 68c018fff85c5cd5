"""Topologies, workloads and planners, found by file name: `planner: fixed` is `simcore/planners/fixed.py`."""

import pkgutil
from importlib import import_module
from pathlib import Path
from types import ModuleType

from simcore.errors import Problem, ScenarioError
from simcore.validation import shortened, suggestion

HERE = Path(__file__).parent
FOLDERS = {"cluster": "topologies", "workload": "workloads", "planner": "planners"}
KEYS = {"cluster": "topology", "workload": "name", "planner": "name"}
"""Sections of a scenario, the folder their parts are in, and the key that names the part."""


def names(section: str) -> tuple[str, ...]:
    """The parts that a section can name, sorted."""
    found = pkgutil.iter_modules([str(HERE / FOLDERS[section])])
    return tuple(sorted(module.name for module in found if not module.name.startswith("_")))


def find(section: str, name: object) -> ModuleType:
    """The module with a part's `Params` and function. Raises `ScenarioError` for a name that no file has."""
    known, field = names(section), f"{section}.{KEYS[section]}"
    if not isinstance(name, str) or name not in known:
        given = "nothing" if name is None else shortened(name)
        problem = Problem(field, given, ", ".join(known), suggestion(name, known))
        raise ScenarioError(f"unknown {field}", [problem])
    return import_module(f"simcore.{FOLDERS[section]}.{name}")
