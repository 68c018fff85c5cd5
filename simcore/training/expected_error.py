"""How far off a simulated iteration may be: as published iterations were, and as the estimates are that the plan is made of.

Published iterations were predicted from estimates that have errors of their own, so that their band holds those of a plan like
them. A plan of worse estimates is wider by what its own errors exceed theirs: band^2 = published^2 + max(own^2 - theirs^2, 0).
"""

from collections.abc import Mapping
from math import hypot, isfinite, sqrt
from typing import Any

from costmodels import fitted
from simcore.cluster import Cluster
from simcore.plan import Plan
from simcore.training.overheads import ARCHITECTURES


def iteration_error(plan: Plan, cluster: Cluster, own: Mapping[str, float]) -> float | None:
    """Relative error that four of five iterations like it stay within; `own` are the errors of what it is made of, by table.

    Published iterations count for training on GPUs that were not calibrated. A calibrated machine has what its calibration says of
    itself. None for other plans, and where nothing is known of an estimate.
    """
    if "tokens_per_iteration" not in plan.workload or not own:
        return None
    of_plan = hypot(*own.values())
    if not isfinite(of_plan):
        return None
    if any(device.measured for device in cluster.devices):
        return _rounded(of_plan)
    if any(device.kind != "gpu" for device in cluster.devices):
        return None
    return widened(kind_of(cluster), of_plan, fitted.load("training"))


def widened(kind: str, own: float, found: Mapping[str, Any]) -> float:
    """The band of published iterations of a kind, for a plan whose own estimates err by `own`."""
    published, theirs = float(found["error"][kind]), float(found["own"][kind])
    return _rounded(sqrt(published**2 + max(own**2 - theirs**2, 0.0)))


def kind_of(cluster: Cluster) -> str:
    """Which published iterations are like the plan: those on architectures of the fit, or those on others."""
    return "seen" if all(device.architecture in ARCHITECTURES for device in cluster.devices) else "unseen"


def _rounded(error: float) -> float:
    return float(f"{error:.3g}")
