"""A scenario: one YAML that names a cluster, a workload and a planner, and what becomes of it.

name: quickstart
seed: 0
cluster: {topology: single_node, ...}                # simcore/topologies/single_node.py says what goes here
workload: {name: transformer_training, ...}          # simcore/workloads/transformer_training.py
planner: {name: fixed, ...}                          # simcore/planners/fixed.py; or just a name
faults: []                                           # simcore/faults.py
engine: {sharing: max_min, expand: false, skew: false, libraries: {gemm: trtllm, attention: flash3}}
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticKnownError

from costmodels.catalog import Catalog
from costmodels.libraries import Libraries, known
from simcore.cluster import Cluster
from simcore.document import read_document
from simcore.errors import PlanError, Problem, ScenarioError, WindtunnelError
from simcore.faults import FaultSpec
from simcore.overrides import apply
from simcore.parts import KEYS, find
from simcore.plan import Plan
from simcore.progress import Progress
from simcore.validation import validated

if TYPE_CHECKING:
    from simcore.cost import CostModel

T = TypeVar("T")


def _enumerated(table: str) -> Callable[[dict[str, Any]], None]:
    """Puts a table's libraries into the schema of a field that may also be missing."""

    def put(schema: dict[str, Any]) -> None:
        schema["anyOf"] = [{"enum": list(known(table))}, {"type": "null"}]

    return put


class LibraryOptions(BaseModel):
    """Whose kernels the simulated program runs; `windtunnel catalog libraries` lists them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gemm: str | None = Field(
        None,
        description="Library of matrix products; nobody named: typical of those measured. Convolutions always are.",
        json_schema_extra=_enumerated("gemm"),
    )
    attention: str | None = Field(
        None,
        description="Library of attention; nobody named: the fastest measured on such devices.",
        json_schema_extra=_enumerated("attention"),
    )

    @field_validator("*")
    @classmethod
    def _is_known(cls, value: str | None, info: ValidationInfo) -> str | None:
        names = known(str(info.field_name))
        if value is not None and value not in names:
            raise PydanticKnownError("literal_error", {"expected": ", ".join(names)})
        return value


class EngineOptions(BaseModel):
    """How the simulator plays a plan."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sharing: Literal["max_min", "fifo"] = Field("max_min", description="How flows share a link.")
    expand: bool = Field(False, description="Simulate every rank by itself instead of one for each kind of rank.")
    skew: bool = Field(False, description="Let members of an all-reduce end when their own ring steps end.")
    libraries: LibraryOptions = Field(
        default_factory=lambda: LibraryOptions.model_validate({}),
        description="Whose kernels run; they count where a device was not calibrated.",
    )

    @property
    def played(self) -> dict[str, Any]:
        """Options of `simulate`."""
        return self.model_dump(exclude={"libraries"})


class Envelope(BaseModel):
    """A windtunnel scenario: what runs where, and who decides how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=200, description="A name for reports.")
    description: str = Field("", max_length=10_000, description="What this scenario asks.")
    seed: int = Field(0, ge=0, lt=2**32, description="All random draws follow from it.")
    cluster: dict[str, Any] = Field(description="The hardware; `topology` names a file in simcore/topologies.")
    workload: dict[str, Any] = Field(description="The work; `name` names a file in simcore/workloads.")
    planner: dict[str, Any] = Field(description="Who decides; a name in simcore/planners, or `name` and its fields.")
    faults: list[FaultSpec] = Field(default_factory=list, max_length=10_000, description="What breaks, and when.")
    engine: EngineOptions = Field(
        default_factory=lambda: EngineOptions.model_validate({}), description="How the simulator plays the plan."
    )


@dataclass(frozen=True, slots=True)
class Section:
    """A part with its validated parameters."""

    name: str
    module: ModuleType
    params: BaseModel


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A scenario that is valid in every field; its cluster and its workload exist."""

    path: Path
    envelope: Envelope
    sections: Mapping[str, Section] = field(repr=False)
    catalog: Catalog = field(repr=False)
    _cluster: Cluster = field(repr=False)
    _workload: Any = field(repr=False)

    @property
    def name(self) -> str:
        return self.envelope.name

    @property
    def seed(self) -> int:
        return self.envelope.seed

    @property
    def engine(self) -> EngineOptions:
        return self.envelope.engine

    def cluster(self) -> Cluster:
        return self._cluster

    def workload(self) -> Any:
        return self._workload

    def faults(self) -> list[FaultSpec]:
        return self.envelope.faults

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the scenario with every default filled in; the file's name and comments do not matter."""
        resolved = self.envelope.model_dump(mode="json", exclude={"cluster", "workload", "planner"})
        for name, section in self.sections.items():
            resolved[name] = {KEYS[name]: section.name, **section.params.model_dump(mode="json")}
        return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()

    def cost(self) -> "CostModel":
        """What things cost on the cluster with the kernels of the libraries that the scenario names."""
        from simcore.cost import CostModel

        return CostModel(self._cluster, libraries=Libraries(**self.engine.libraries.model_dump()))

    def plan(self, progress: Progress | None = None) -> Plan:
        """What the planner decides. Raises the `WindtunnelError` family where nothing is feasible."""
        planner = self.sections["planner"]
        plan: Plan = planner.module.plan(
            self._workload,
            self._cluster,
            self.cost(),
            planner.params,
            evaluate=self._evaluate,
            progress=progress,
        )
        return plan

    def settled(self, given: Plan | None, progress: Progress | None = None) -> Plan:
        """`given`, or what the planner decides. Raises `PlanError` where a given plan names what the workload does not have."""
        if given is None:
            return self.plan(progress)
        of_workload = getattr(self._workload, "problems_of", None)
        found = of_workload(given, self._cluster) if of_workload else []
        if found:
            raise PlanError(f"plan {given.name!r} does not suit {self.name!r}", found)
        return given

    def _evaluate(self, plan: Plan) -> float:
        """Simulated seconds of one iteration, without faults: for planners that search."""
        from simcore.engine.simulate import simulate

        return simulate(plan, self._cluster, self.cost(), iterations=1, **self.engine.played).makespan_s


def load(path: str | Path, overrides: Sequence[str] = (), folders: Iterable[str | Path] = ()) -> Scenario:
    """Read, change by `overrides` (`cluster.nodes=4`), validate.

    Catalogue entries are looked up in `folders`, then in `calibration/` beside the file and in the current directory, then
    among the built-in ones. Raises `ScenarioError` with everything that is wrong, in all sections at once.
    """
    path = Path(path)
    document = apply(read_document(path), overrides)
    if isinstance(document.get("planner"), str):
        document["planner"] = {"name": document["planner"]}
    problems: list[Problem] = []
    envelope = validated(Envelope, document, "", problems)
    sections = {name: _section(name, document.get(name), problems) for name in KEYS}
    catalog = Catalog(_folders(path, folders))
    cluster, workload, seed = sections["cluster"], sections["workload"], envelope.seed if envelope else 0
    built_cluster = built_workload = None
    if cluster:
        built_cluster = _attempt("cluster", lambda: cluster.module.build(cluster.params, catalog), problems)
    if workload:
        rng = np.random.default_rng(seed)
        built_workload = _attempt(
            "workload", lambda: workload.module.build(workload.params, rng, path.parent), problems
        )
    if problems:
        raise ScenarioError(f"{path} is not a valid scenario", problems)
    assert envelope and built_cluster is not None
    valid = {name: section for name, section in sections.items() if section}
    return Scenario(
        path=path, envelope=envelope, sections=valid, catalog=catalog, _cluster=built_cluster, _workload=built_workload
    )


def _folders(path: Path, folders: Iterable[str | Path]) -> list[Path]:
    beside = [path.parent / "calibration", Path("calibration")]
    return [*(Path(f) for f in folders), *dict.fromkeys(f.resolve() for f in beside if f.is_dir())]


def _section(name: str, given: Any, problems: list[Problem]) -> Section | None:
    """A section validated by the part it names; None where it is wrong or missing, which the envelope says."""
    if not isinstance(given, dict):
        return None
    part = given.get(KEYS[name])
    module = _attempt(name, lambda: find(name, part), problems)
    if module is None:
        return None
    rest = {key: value for key, value in given.items() if key != KEYS[name]}
    params = validated(module.Params, rest, name, problems)
    return Section(str(part), module, params) if params is not None else None


def _attempt(section: str, build: Callable[[], T], problems: list[Problem]) -> T | None:
    """What `build` returns, or None with its problems added under the name of the section."""
    try:
        return build()
    except WindtunnelError as error:
        found = error.problems or (Problem(section, error.summary, "see there"),)
        problems += [p if p.field.split(".")[0] == section else replace(p, field=f"{section}.{p.field}") for p in found]
        return None
