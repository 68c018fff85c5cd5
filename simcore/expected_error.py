"""How far off a simulated iteration may be, as published iterations were of their predictions."""

from costmodels import fitted
from simcore.cluster import Cluster
from simcore.overheads import ARCHITECTURES
from simcore.plan import Plan


def iteration_error(plan: Plan, cluster: Cluster) -> float | None:
    """Relative error within which four of five published training iterations were predicted, on devices that the fit has seen or on
    others. None for plans that are not training, and for calibrated devices, of which nothing was published."""
    if "tokens_per_iteration" not in plan.workload or any(device.measured for device in cluster.devices):
        return None
    seen = all(device.architecture in ARCHITECTURES for device in cluster.devices)
    return float(fitted.load("training")["error"]["seen" if seen else "unseen"])
