"""From pydantic's errors to ours: which field, what was given, what is allowed, what to do."""

import difflib
from collections.abc import Sequence
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from simcore.errors import Problem

M = TypeVar("M", bound=BaseModel)
LONGEST = 80  # characters of a value that messages repeat


def validated(model: type[M], given: dict[str, Any], section: str, problems: list[Problem]) -> M | None:
    """The model made of `given`, or None after adding everything that is wrong to `problems`."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        problems += [_problem(model, section, e) for e in error.errors(include_url=False)]
        return None


def suggestion(given: object, allowed: Sequence[str]) -> str:
    """`Did you mean ...?`, empty where nothing comes close."""
    close = difflib.get_close_matches(str(given)[:LONGEST], allowed, n=2, cutoff=0.55)
    return f"Did you mean {' or '.join(close)}?" if close else ""


def shortened(value: object) -> str:
    """`repr` of a value from outside, cut where it gets long."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _problem(model: type[BaseModel], section: str, error: ErrorDetails) -> Problem:
    names, owner = _walk(model, error["loc"])
    field = ".".join([section, *names] if section else names) or "scenario"
    given, context = error["input"], error.get("ctx", {})
    match error["type"]:
        case "missing":
            return Problem(field, "nothing", f"required{_describe(owner, names)}")
        case "extra_forbidden":
            known = _known(owner)
            return Problem(
                field, "an unknown field", ", ".join(known) or "no fields", suggestion(error["loc"][-1], known)
            )
        case "literal_error" | "enum":
            allowed = str(context["expected"]).replace("'", "")
            return Problem(
                field, shortened(given), allowed, suggestion(given, allowed.replace(" or ", ", ").split(", "))
            )
        case "union_tag_invalid" | "union_tag_not_found":
            key = str(context["discriminator"]).strip("'")
            allowed = str(context.get("expected_tags", "a known kind")).replace("'", "")
            found = given.get(key) if isinstance(given, dict) else given
            known = allowed.split(", ")
            return Problem(
                f"{field}.{key}", "nothing" if found is None else shortened(found), allowed, suggestion(found, known)
            )
        case _:
            return Problem(field, shortened(given), _sentence(error["msg"]))


def _sentence(message: str) -> str:
    """Pydantic's `Input should be a valid integer` and `Value error, ...` as what is allowed."""
    for start in ("Input should be ", "Value error, ", "Assertion failed, "):
        message = message.removeprefix(start)
    return message


def _known(owner: type[BaseModel] | None) -> list[str]:
    return [f.alias or name for name, f in owner.model_fields.items()] if owner else []


def _describe(owner: type[BaseModel] | None, names: Sequence[str]) -> str:
    field = owner.model_fields.get(names[-1]) if owner and names else None
    return f": {field.description.rstrip('.')}" if field and field.description else ""


def _walk(model: type[BaseModel], location: Sequence[int | str]) -> tuple[list[str], type[BaseModel] | None]:
    """The path as the file has it, without pydantic's tags of unions, and the model that the last name belongs to."""
    names: list[str] = []
    current: list[Any] = [model]
    owner: type[BaseModel] | None = model
    for i, step in enumerate(location):
        models = [t for t in current if isinstance(t, type) and issubclass(t, BaseModel)]
        last = i == len(location) - 1
        if isinstance(step, int):
            names.append(str(step))
            current = [a for t in current for arg in get_args(t) for a in _alternatives(arg)]
        elif len(models) > 1 and (tagged := [m for m in models if _has_tag(m, step)]):
            current, owner = list(tagged), tagged[0]
        elif holders := [m for m in models if step in m.model_fields]:
            owner = holders[0]
            names.append(step)
            current = _alternatives(owner.model_fields[step].annotation)
        elif last or not models:
            owner = models[0] if models else None
            if models or not _is_tag(step):
                names.append(step)
    return names, owner


def _is_tag(step: str) -> bool:
    """Pydantic names the branch of a union that failed: `str`, `int`, `list[int]`, `function-before[...]`."""
    return step in ("str", "int", "float", "bool", "none", "[key]") or "[" in step


def _has_tag(model: type[BaseModel], tag: str) -> bool:
    if model.__name__ == tag:
        return True
    literals = [f.annotation for f in model.model_fields.values() if get_origin(f.annotation) is Literal]
    return any(tag in get_args(literal) for literal in literals)


def _alternatives(annotation: Any) -> list[Any]:
    """The types that an annotation allows, unions and `Annotated` unpacked."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [a for arg in get_args(annotation) for a in _alternatives(arg)]
    return [annotation]
