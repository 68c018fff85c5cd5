"""The JSON Schema of a scenario, for editors: the envelope, with each section's fields by the part it names."""

from typing import Any

from simcore.parts import KEYS, find, names
from simcore.scenario import Envelope

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def scenario_schema() -> dict[str, Any]:
    """One schema for everything that `load` accepts; every topology, workload and planner is in it."""
    schema = Envelope.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    for section, key in KEYS.items():
        branches = [_branch(section, key, name, definitions) for name in names(section)]
        described = {"description": schema["properties"][section].get("description", "")}
        if section == "planner":
            branches.append({"enum": list(names(section))})
        schema["properties"][section] = {**described, "oneOf": branches}
    return {"$schema": DIALECT, **schema}


def _branch(section: str, key: str, name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """The section's schema when it names this part; shared definitions go to the top, prefixed with the part's name."""
    prefix = f"{section}.{name}."
    params = _renamed(find(section, name).Params.model_json_schema(), prefix)
    for inner, definition in params.pop("$defs", {}).items():
        definitions[prefix + inner] = definition
    properties = {key: {"const": name}, **params.get("properties", {})}
    return {**params, "title": name, "properties": properties, "required": [key, *params.get("required", [])]}


def _renamed(schema: Any, prefix: str) -> Any:
    """References within a part's schema, made to point at their prefixed definitions."""
    if isinstance(schema, dict):
        start = "#/$defs/"
        return {
            k: start + prefix + v.removeprefix(start) if k == "$ref" else _renamed(v, prefix) for k, v in schema.items()
        }
    return [_renamed(item, prefix) for item in schema] if isinstance(schema, list) else schema
