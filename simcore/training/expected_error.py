"""How far off a simulated iteration may be, as published iterations were of their predictions."""

from costmodels import fitted
from simcore.cluster import Cluster
from simcore.plan import Plan
from simcore.training.overheads import ARCHITECTURES


def iteration_error(plan: Plan, cluster: Cluster) -> float | None:
    """Relative error within which four of five trusted published iterations were predicted, on devices of the fit or on others.

    None for plans that are not training, for calibrated devices, and for what is no GPU, of which nothing was published.
    """
    if "tokens_per_iteration" not in plan.workload:
        return None
    if any(device.measured or device.kind != "gpu" for device in cluster.devices):
        return None
    seen = all(device.architecture in ARCHITECTURES for device in cluster.devices)
    return float(fitted.load("training")["error"]["seen" if seen else "unseen"])
