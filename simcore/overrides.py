"""`--set cluster.nodes=4`: changes to a scenario's document before it is validated."""

import copy
from collections.abc import Sequence
from typing import Any

from simcore.document import parse_yaml
from simcore.errors import Problem, ScenarioError

FORM = "path=value, e.g. cluster.nodes=4 or cluster.pools.0.device=a100_sxm_80"
NAMED_SECTIONS = ("workload", "planner")  # `planner: fixed` is short for `planner: {name: fixed}`


def apply(document: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A changed copy. Values are YAML; numbers in the path are list positions. All mistakes in one `ScenarioError`.

    Names that are missing are added, and left to the schema to judge.
    """
    changed = copy.deepcopy(document)
    problems: list[Problem] = []
    for text in overrides:
        try:
            path, value = split(text)
            _put(changed, path, value, text)
        except ScenarioError as error:
            problems += error.problems
    if problems:
        raise ScenarioError("an override that cannot be applied", problems)
    return changed


def split(text: str) -> tuple[list[str], Any]:
    """`a.b.0=value` as its path and its value."""
    name, equals, value = text.partition("=")
    path = name.strip().split(".")
    if not equals or not all(path):
        raise ScenarioError("not an override", [Problem("--set", repr(text), FORM)])
    return path, parse_yaml(value, f"--set {name.strip()}")


def _put(document: dict[str, Any], path: list[str], value: Any, text: str) -> None:
    at: Any = document
    for depth, key in enumerate(path[:-1]):
        at = _step(at, key, path[: depth + 1], text)
    key = path[-1]
    if isinstance(at, list):
        at[_position(at, key, path, text)] = value
    elif isinstance(at, dict):
        at[key] = value
    else:
        raise _refused(path[:-1], at, text)


def _step(at: Any, key: str, path: list[str], text: str) -> Any:
    if isinstance(at, list):
        return at[_position(at, key, path, text)]
    if not isinstance(at, dict):
        raise _refused(path[:-1], at, text)
    inner = at.get(key)
    if inner is None:
        inner = at[key] = {}
    elif len(path) == 1 and key in NAMED_SECTIONS and isinstance(inner, str):
        inner = at[key] = {"name": inner}
    return inner


def _position(at: list[Any], key: str, path: list[str], text: str) -> int:
    if not (key.isascii() and key.isdigit() and int(key[:9]) < len(at)):
        allowed = f"a position from 0 to {len(at) - 1}" if at else "nothing: the list is empty"
        raise ScenarioError("no such item", [Problem(".".join(path), f"{key!r} in --set {text}", allowed)])
    return int(key)


def _refused(path: list[str], at: Any, text: str) -> ScenarioError:
    problem = Problem(".".join(path), f"{at!r}, so that --set {text} has nothing to go into", "a mapping or a list")
    return ScenarioError("no such field", [problem])
