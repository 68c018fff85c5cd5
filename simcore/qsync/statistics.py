"""Sizes and norms of what each adjustable operator reads and makes: the indicator's input.

A profiling run collects them (`real/precision/statistics.py`), a file carries them, or `assumed` derives them from the graph
alone, which a plan then says.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from math import log, prod, sqrt
from pathlib import Path
from typing import Any

from costmodels.errors import DataError, Problem
from costmodels.files import write_atomically
from costmodels.operator_graph import Operator, OperatorGraph
from costmodels.precision import ADJUSTABLE
from costmodels.precision_error import LEVELS

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorStatistics:
    """Of one operator z = v w for one batch: input v, weight w (of a matmul the second operand), gradient g of the mean loss by z.

    D_* count elements (D_vv those of z), norm_* are plain L2 norms over all of them (not squared), amax_* largest magnitudes. The
    input of an embedding is a 1 in each token's row: D_v is the number of tokens, norm_v its root, amax_v 1.
    norm_dw is the norm of the weight's gradient, which only the released indicator reads. `curvature` and `shift` by precision
    are of the weight itself (`costmodels.precision_error`), for the indicators HESS and WVAR. None, or no entry: not collected.
    """

    D_v: int
    D_w: int
    D_vv: int
    norm_v: float
    norm_w: float
    norm_g: float
    amax_v: float
    amax_w: float
    amax_g: float
    norm_dw: float | None = None
    curvature: float | None = None
    shift: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def S_v(self) -> float:
        """Scale of the input in int8, symmetric and for the whole tensor."""
        return self.amax_v / LEVELS

    @property
    def S_w(self) -> float:
        """Scale of the weight in int8."""
        return self.amax_w / LEVELS


NUMBERS = tuple(f.name for f in fields(OperatorStatistics) if f.name not in ("norm_dw", "curvature", "shift"))
"""Fields that every operator has."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Statistics of a model. `source` says what was run, `samples` is its batch, `measured` is False for assumptions."""

    model: str
    source: str
    samples: int
    measured: bool
    operators: Mapping[str, OperatorStatistics]

    def to_json(self) -> str:
        """One operator a line."""
        head = {"format": FORMAT, "model": self.model, "source": self.source}
        head |= {"samples": self.samples, "measured": self.measured}
        lines = [f"{json.dumps(name)}: {json.dumps(_row(found))}" for name, found in self.operators.items()]
        body = ",\n".join(lines)
        return f'{json.dumps(head)[:-1]},\n"operators": {{\n{body}\n}}}}\n'

    @classmethod
    def from_json(cls, text: str) -> "Statistics":
        """Inverse of `to_json`; raises `DataError` naming every operator and field that is not as it should be."""
        try:
            document = json.loads(text)
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']}, this version reads {FORMAT}")
            head = {key: document[key] for key in ("model", "source", "samples", "measured")}
            rows = dict(document["operators"])
        except (KeyError, TypeError, ValueError) as error:
            problem = Problem("statistics", repr(error), "statistics written by a profiling run")
            raise DataError("not statistics of operators", [problem]) from error
        problems = [p for name, row in rows.items() for p in _row_problems(name, row)]
        if problems:
            raise DataError("statistics that cannot be used", problems)
        return cls(**head, operators={name: _operator(row) for name, row in rows.items()})

    def save(self, path: Path) -> None:
        write_atomically(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> "Statistics":
        """From a file. Raises `DataError` for one that is missing or is something else."""
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                "statistics cannot be read", [Problem("statistics", str(error), "a readable file")]
            ) from error

    def check(self, graph: OperatorGraph) -> None:
        """Raise `DataError` where operators of the graph are missing."""
        missing = [o.name for o in graph if o.kind in ADJUSTABLE and o.name not in self.operators]
        if not missing:
            return
        advice = f"These are of {self.model!r} ({self.source}); collect them again with this model."
        given = f"nothing on {', '.join(missing[:5])}" + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise DataError(
            f"statistics lack operators of {graph.name!r}",
            [Problem("statistics.operators", given, "every adjustable operator of the graph", advice)],
        )


def _row(found: OperatorStatistics) -> dict[str, Any]:
    kept = {key: value for key, value in asdict(found).items() if value is not None and value != {}}
    return {**kept, "S_v": found.S_v, "S_w": found.S_w}


def _operator(row: Mapping[str, Any]) -> OperatorStatistics:
    return OperatorStatistics(**{f.name: row[f.name] for f in fields(OperatorStatistics) if f.name in row})


def _row_problems(name: str, row: object) -> Iterator[Problem]:
    where = f"statistics.operators.{name}"
    if not isinstance(row, dict):
        yield Problem(where, repr(row)[:80], "a mapping of numbers")
        return
    for key in (*NUMBERS, *(k for k in ("norm_dw", "curvature") if k in row)):
        value = row.get(key)
        if key not in row:
            yield Problem(f"{where}.{key}", "nothing", "a number", "Collect the statistics again.")
        elif isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            yield Problem(f"{where}.{key}", repr(value), "a finite number of at least 0")
        elif key.startswith("D_") and (value < 1 or value != int(value)):
            yield Problem(f"{where}.{key}", repr(value), "a whole number of at least 1")


def contracted(operator: Operator, graph: OperatorGraph) -> int:
    """Multiplications behind one element of an operator's result: the length of the sums of its product; 1 for a table's rows."""
    if operator.kind == "embedding":
        return 1
    if operator.kind == "matmul":
        return operator.operands[0].dims[-1]
    weight = graph.weight(operator)
    return prod(weight) // (weight[1] if operator.attributes.get("transposed") else weight[0])


def assumed(graph: OperatorGraph, samples: int = 1) -> Statistics:
    """Statistics without a run, for networks at their initialisation: assumptions that a plan names.

    Inputs are normal with variance 1; weights of convolutions have variance 2/fan in (He et al. 2015), of linear layers 1/fan in,
    tables of embeddings a standard deviation of 0.02. The gradient of the loss of one sample has norm 1 at every operator's result,
    so that an element's share falls with their number. The largest of n normal values is taken as sqrt(2 ln 2n).
    """
    source = "assumption: normal activations of variance 1, weights as initialised, gradients of norm 1 for each sample"
    return Statistics(
        model=graph.name,
        source=source,
        samples=samples,
        measured=False,
        operators={o.name: _assumed(o, graph, samples) for o in graph if o.kind in ADJUSTABLE},
    )


def _assumed(operator: Operator, graph: OperatorGraph, samples: int) -> OperatorStatistics:
    n_in, n_out = operator.operands[0].elements(samples), operator.output.elements(samples)
    n_weight = prod(graph.weight(operator)) if operator.parameters else operator.operands[1].elements(samples)
    fan_in = contracted(operator, graph)
    std_w = {"conv2d": sqrt(2 / fan_in), "linear": sqrt(1 / fan_in), "embedding": 0.02, "matmul": 1.0}[operator.kind]
    norm_g = 1 / sqrt(samples)  # each sample adds a gradient of norm 1 / samples
    return OperatorStatistics(
        D_v=n_in,
        D_w=n_weight,
        D_vv=n_out,
        norm_v=sqrt(n_in),
        norm_w=std_w * sqrt(n_weight),
        norm_g=norm_g,
        amax_v=1.0 if operator.kind == "embedding" else _largest(n_in),
        amax_w=std_w * _largest(n_weight),
        amax_g=norm_g / sqrt(n_out) * _largest(n_out),
        norm_dw=norm_g * sqrt(fan_in),
    )


def _largest(n: int) -> float:
    return sqrt(2 * log(2 * n))
