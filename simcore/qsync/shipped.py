"""Which statistics a workload asks for: shipped ones by name, a file, or assumptions."""

from pathlib import Path

import costmodels
from simcore.errors import DataError, Problem
from simcore.qsync.statistics import Statistics, assumed
from simcore.validation import suggestion
from simcore.workloads.operator_training import OperatorTraining

SHIPPED = Path(costmodels.__file__).parent / "statistics"


def statistics_of(workload: OperatorTraining, samples: int) -> Statistics:
    """What the workload names: statistics that are shipped, or a file; by default those shipped for its model, or assumptions.

    Raises `DataError` for a name that is not there, or a file that cannot be read.
    """
    given = workload.statistics
    if given is None:
        shipped = SHIPPED / f"{workload.model}.json"
        return Statistics.load(shipped) if shipped.is_file() else assumed(workload.graph, samples)
    if given.endswith(".json") or "/" in given:
        return Statistics.load(workload.base_dir / given)
    known = sorted(path.stem for path in SHIPPED.glob("*.json"))
    if given not in known:
        problem = Problem("workload.statistics", given, f"{', '.join(known)}, or a path", suggestion(given, known))
        raise DataError("unknown statistics", [problem])
    return Statistics.load(SHIPPED / f"{given}.json")
