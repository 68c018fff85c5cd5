"""Fits the engines of `costmodels.serving` to published latencies and throughputs (FasterTransformer, Splitwise, lmdeploy, QServe,
LLMServingSim, Colossal-AI, litgpt).

Each engine has a factor for every kind of work on the device and its host's time for a layer and a step. Factors are held to 1 by
a prior as wide as kernels differ between libraries, so that an engine with two rows gets little of its own. An engine without rows
gets the geometric means.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from costmodels.catalog import Catalog
from costmodels.fit.rounding import rounded
from costmodels.prediction import Floats
from costmodels.serving import SERVERS, Engine, with_factors
from costmodels.serving_parts import KINDS
from costmodels.tables.serving import Group, groups_of, merged, prepare

if TYPE_CHECKING:
    import pandas as pd

PRIORS: Mapping[str, tuple[float, float]] = {
    "linear": (1.15, 0.3),
    "decode": (1.0, 0.3),
    "attention": (1.0, 0.7),
    "stream": (1.0, 0.7),
    "network": (1.0, 0.7),
    "host_layer_s": (30e-6, 2.0),
    "host_step_s": (300e-6, 2.0),
}
"""Of each parameter the middle and the width, as a logarithm."""
NOISE = 0.1
"""Relative error of a row at which it weighs as much as a prior's width."""
FEW = 8
"""Rows below which an engine's own errors say little."""


def fit(frame: "pd.DataFrame", catalog: Catalog) -> dict[str, Any]:
    """Parameters and errors from the rows of `serving.csv` or from those that `prepare` made of them."""
    frame = prepare(frame).reset_index(drop=True)
    measured = frame["seconds"].to_numpy(dtype=np.float64)
    groups = list(groups_of(frame, catalog))
    engines = _engines(groups, measured)
    found = {
        "parameters": {"engines": engines, "typical": _typical(engines)},
        "devices": sorted({g.device for g in groups}),
        "error": _errors(groups, measured, engines),
    }
    return dict(rounded(found))


def _engines(groups: Sequence[Group], measured: Floats) -> dict[str, dict[str, float]]:
    names = sorted({g.name for g in groups})
    return {n: _solve(merged([g for g in groups if g.name == n]), measured) for n in names}


def _solve(group: Group, measured: Floats) -> dict[str, float]:
    from scipy.optimize import least_squares

    middle = np.log([m for m, _ in PRIORS.values()])
    width = np.array([w for _, w in PRIORS.values()])

    def residuals(x: Floats) -> Floats:
        rows = np.log(group.seconds(_engine(group.name, x)) / measured[group.at])
        return np.concatenate([rows, NOISE * (x - middle) / width])

    found = [least_squares(residuals, x, loss="soft_l1", f_scale=NOISE, max_nfev=40) for x in _starts(middle)]
    best = min(found, key=lambda f: float(f.cost))
    return {key: float(np.exp(v)) for key, v in zip(PRIORS, best.x, strict=True)}


def _starts(middle: Floats) -> list[Floats]:
    """A host that devices hide, and hosts that are slow for each layer or each step: no gradient leads from one to another."""
    return [
        middle + np.log([1.0] * len(KINDS) + [1.0, layer, step])
        for layer, step in ((1.0, 1.0), (10.0, 1.0), (1.0, 10.0))
    ]


def _engine(name: str, x: Floats) -> Engine:
    return with_factors(name, dict(zip(PRIORS, np.exp(x).tolist(), strict=True)))


def _typical(engines: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Geometric means of engines made for serving; of all where none of them was measured."""
    known = [e for name, e in engines.items() if name in SERVERS] or list(engines.values())
    return {key: float(np.exp(np.mean([np.log(e[key]) for e in known]))) for key in PRIORS}


def _errors(groups: Sequence[Group], measured: Floats, engines: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """80th percentiles of relative residuals: of each engine, and of devices left out one by one."""
    found = {n: _residuals([g for g in groups if g.name == n], measured, engines) for n in engines}
    everything = np.concatenate(list(found.values()))
    bands = {n: float(np.percentile(r if len(r) >= FEW else everything, 80)) for n, r in found.items()}
    left_out = []
    for device in sorted({g.device for g in groups}):
        others = [g for g in groups if g.device != device]
        touched = {g.name for g in groups if g.device == device}
        known = {n: e for n, e in engines.items() if n not in touched}
        known |= _engines([g for g in others if g.name in touched], measured)
        rest = {**dict.fromkeys(engines, _typical(known or engines)), **known}
        left_out.append(_residuals([g for g in groups if g.device == device], measured, rest))
    return {"engines": bands, "unseen": float(np.percentile(np.concatenate(left_out), 80))}


def _residuals(groups: Sequence[Group], measured: Floats, engines: Mapping[str, Mapping[str, float]]) -> Floats:
    rows = [np.abs(g.seconds(with_factors(g.name, engines[g.name])) / measured[g.at] - 1.0) for g in groups]
    return np.concatenate(rows)
