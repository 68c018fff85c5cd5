"""The JSON Schema accepts what `load` accepts and refuses what it refuses."""

from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from simcore.parts import KEYS, names
from simcore.schema import scenario_schema
from tests.unit.toys import SCENARIO


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = scenario_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def test_a_good_scenario_is_accepted(validator: Draft202012Validator) -> None:
    document = yaml.safe_load(SCENARIO)
    assert list(validator.iter_errors(document)) == []
    document["planner"] = "fixed"
    document["faults"] = [{"kind": "device_slows", "rank": 0, "at": "1 s", "factor": 0.5}]
    assert list(validator.iter_errors(document)) == []


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("cluster", "nods", 3),
        ("cluster", "nodes", "many"),
        ("cluster", "topology", "donut"),
        ("planner", "name", "nobody"),
        ("workload", "seq_len", 0),
        ("engine", "sharing", "best"),
    ],
)
def test_a_bad_scenario_is_refused(validator: Draft202012Validator, section: str, key: str, value: object) -> None:
    document: dict[str, Any] = yaml.safe_load(SCENARIO)
    document.setdefault(section, {})[key] = value
    assert list(validator.iter_errors(document))


def test_every_part_is_in_it() -> None:
    properties = scenario_schema()["properties"]
    for section, key in KEYS.items():
        constants = [b["properties"][key]["const"] for b in properties[section]["oneOf"] if "properties" in b]
        assert constants == list(names(section))


def test_every_field_is_described() -> None:
    for section in scenario_schema()["properties"].values():
        assert section.get("description")
        for branch in section.get("oneOf", []):
            fields = {k: v for k, v in branch.get("properties", {}).items() if "const" not in v}
            assert all(field.get("description") for field in fields.values()), branch.get("title")
