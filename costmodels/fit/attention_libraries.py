"""How libraries compare where they were measured on the same device and sizes: which is fastest, and how far apart they are."""

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from costmodels.attention_parameters import family
from costmodels.catalog import Catalog
from costmodels.tables.attention import SIZES, described
from costmodels.tables.table import devices_of

if TYPE_CHECKING:
    import pandas as pd


def best(frame: "pd.DataFrame", catalog: Catalog, doubted: frozenset[str]) -> dict[str, str]:
    """Of each family the library whose kernels are fastest in the mean where several were measured at the same sizes, 50 or more;
    libraries with a kernel in doubt do not count."""
    devices, names = devices_of(frame, catalog), described(frame)
    families = {name: family(device) for name, device in devices.items()}
    known = frame.assign(
        family=names["device"].map(families), **{c: names[c] for c in ("kv_dtype", "library", "causal", "backward")}
    )
    out = {tuple(kernel.split("/")[-2:]) for kernel in doubted}
    kept = [pair not in out and pair[1] != "" for pair in zip(known["family"], known["library"], strict=True)]
    known = known[kept]
    where = ["family", "device", "phase", "dtype", "kv_dtype", "causal", "backward", *SIZES]
    times = known.pivot_table(index=where, columns="library", values="latency_s", aggfunc="median").map(np.log)
    behind = times.sub(times.min(axis=1), axis=0)[times.notna().sum(axis=1) > 1]
    found = {}
    for name in sorted(known["family"].unique()):
        rows = behind[behind.index.get_level_values("family") == name]
        means = {str(library): float(rows[library].mean()) for library in rows if rows[library].notna().sum() >= 50}
        if len(means) > 1:
            found[str(name)] = min(means, key=means.__getitem__)
    return found


def floors(frame: "pd.DataFrame") -> dict[str, dict[str, float]]:
    """How much libraries differ on the same device, data types and sizes: median and 90th percentile over all pairs."""
    names = described(frame)
    where = ["device", "dtype", "kv_dtype", "causal", "backward"]
    known = frame.drop(columns=[c for c in where if c in frame.columns]).assign(
        phase=frame["phase"], **{c: names[c] for c in (*where, "library")}
    )
    index = [*where, "phase", *SIZES]
    times = known.pivot_table(index=index, columns="library", values="latency_s", aggfunc="median").map(np.log)
    found = {}
    for (device, phase, cache), part in times.groupby(level=["device", "phase", "kv_dtype"]):
        pairs = [(part[x] - part[y]).abs().dropna().to_numpy() for x, y in combinations(part.columns, 2)]
        gaps = np.concatenate(pairs) if pairs else np.zeros(0)
        if len(gaps) >= 20:
            quantiles = {"median": np.median(gaps), "p90": np.quantile(gaps, 0.9)}
            found[f"{device}/{phase}/{cache}"] = {name: float(np.expm1(v)) for name, v in quantiles.items()}
    return found
