"""Whose kernels a report assumes."""

from costmodels.libraries import NAMES, Libraries, typical
from simcore.cluster import Cluster
from simcore.plan import Compute, Plan


def assumed(plan: Plan, cluster: Cluster, libraries: Libraries) -> dict[str, str]:
    """For each kind of kernel of the plan that libraries differ in: the one that the scenario names, or what stands for it.

    Calibrated devices have their own times, whatever ran there, and are left out. Where a library of products is named, what stands
    for that of convolutions is said as well, because it does not run those.
    """
    devices = [device for device in cluster.devices if not device.measured]
    run = {
        k.name.removesuffix("_backward") for op in plan.distinct_ops[0] if isinstance(op, Compute) for k in op.kernels
    }
    found = {}
    for table in NAMES:
        if table in run and devices:
            named = getattr(libraries, table)
            each = dict.fromkeys(typical(table, device) for device in devices)
            found[table] = named or "; ".join(each)
    if libraries.gemm and devices and "conv2d" in run:
        found["conv2d"] = typical("gemm", devices[0])
    return found
