"""A YAML file as plain data: strict, finite, and with an error that names the place for everything that is not.

YAML 1.2's core schema, not PyYAML's 1.1: `1e-3` is a number, `no` and `12:30` are text.
"""

import math
import re
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

from simcore.errors import Problem, ScenarioError

LARGEST_FILE_B = 4_000_000
LARGEST_NUMBER = 2**63
MOST_VALUES = 200_000  # after aliases are followed
DEEPEST = 40


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars; a key that is given twice is an error."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own way; `add_implicit_resolver` copies it

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[object, yaml.Node] = {}
        for key, _ in node.value:
            name = getattr(key, "value", None)
            if isinstance(name, str) and name in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} is given twice", key.start_mark)
            seen[name if isinstance(name, str) else id(key)] = key
        return super().construct_mapping(node, deep=deep)


def _add(tag: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


_add("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF")
_add("int", r"^[-+]?(?:0|[1-9][0-9_]*)$", "-+0123456789")
_add(
    "float",
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf)|\.nan|\.NaN)$",
    "-+.0123456789",
)
_add("null", r"^(?:~|null|Null|NULL|)$", "~nN")
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^$"), [""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])


def read_document(path: Path) -> dict[str, Any]:
    """The mapping that a file holds. Raises `ScenarioError` for a file that is missing, unreadable or not a YAML mapping."""
    document = parse_yaml(_text(path), str(path))
    if not isinstance(document, dict):
        given = "an empty file" if document is None else f"a {_kind(document)}"
        raise ScenarioError(
            f"{path} is not a scenario", [Problem(str(path), given, "a mapping: name, cluster, workload, planner")]
        )
    problems = list(_value_problems(document))
    if problems:
        raise ScenarioError(f"{path} holds values that cannot be used", problems[:20])
    return document


def parse_yaml(text: str, where: str) -> Any:
    """One YAML value; `where` names its origin in the `ScenarioError` raised for a mistake in it."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"{where} line {mark.line + 1}, column {mark.column + 1}" if mark else where
        advice = "Indent with spaces: YAML allows no tabs." if "\\t" in str(error.problem) else ""
        problem = Problem(line, str(error.problem or error.context), "YAML", advice)
    except yaml.reader.ReaderError as error:
        problem = Problem(
            f"{where} position {error.position}", "a character that YAML does not allow", "printable text"
        )
    except (ValueError, OverflowError) as error:
        problem = Problem(where, str(error), "numbers with a reasonable count of digits")
    except RecursionError:
        problem = Problem(where, "lists or mappings nested very deeply", f"at most {DEEPEST} levels")
    raise ScenarioError(f"{where} is not YAML", [problem])


def _text(path: Path) -> str:
    allowed = "a readable YAML file"
    try:
        if path.is_file() and path.stat().st_size > LARGEST_FILE_B:
            raise ScenarioError(
                f"{path} is too large", [Problem(str(path), f"{path.stat().st_size} B", f"at most {LARGEST_FILE_B} B")]
            )
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        found = Problem(f"{path} byte {error.start}", f"0x{error.object[error.start]:02x}", "text in UTF-8")
        raise ScenarioError(f"{path} is not text", [found]) from error
    except FileNotFoundError as error:
        raise ScenarioError(f"{path} does not exist", [Problem("scenario", str(path), allowed, _near(path))]) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = "a folder" if path.is_dir() else getattr(error, "strerror", None) or str(error)
        raise ScenarioError(f"{path} cannot be read", [Problem("scenario", reason, allowed, _near(path))]) from error


def _near(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    found = sorted(p.name for p in folder.glob("*.yaml"))[:8] if folder.is_dir() else []
    return f"{folder} holds {', '.join(found)}." if found else ""


def _value_problems(document: Any) -> Iterator[Problem]:
    """Values that no field can take: keys that are no names, numbers that are not finite or absurdly large, deep nesting."""
    waiting: list[tuple[str, Any, int]] = [("", document, 0)]
    count = 0
    while waiting:
        path, value, depth = waiting.pop()
        count += 1
        if count > MOST_VALUES:
            yield Problem(path, f"more than {MOST_VALUES} values", "a smaller scenario")
            return
        if depth > DEEPEST:
            yield Problem(path, "lists or mappings nested very deeply", f"at most {DEEPEST} levels")
        elif isinstance(value, dict):
            for key, inner in value.items():
                if not isinstance(key, str):
                    yield Problem(path or "scenario", f"the key {key!r}", "keys that are names")
                waiting.append((_join(path, key), inner, depth + 1))
        elif isinstance(value, list):
            waiting += [(_join(path, i), inner, depth + 1) for i, inner in enumerate(value)]
        elif isinstance(value, (int, float)) and not (math.isfinite(value) and abs(value) < LARGEST_NUMBER):
            yield Problem(path, _short(value), "a finite number below 2^63")
        elif not isinstance(value, (int, float, str, type(None))):
            yield Problem(path, f"a {_kind(value)}", "text, numbers, lists and mappings")


def _join(path: str, key: object) -> str:
    text = str(key)[:80]
    return f"{path}.{text}" if path else text


def _short(value: float) -> str:
    return "a number of more than 40 digits" if isinstance(value, int) and abs(value) > 10**40 else str(value)


def _kind(value: object) -> str:
    return {"str": "text", "list": "list", "int": "number", "float": "number", "bool": "truth value"}.get(
        type(value).__name__, type(value).__name__
    )
