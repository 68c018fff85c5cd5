"""Fit of the attention model: effects of data type, architecture and library on its parameters, for each kernel by itself.

Rows have the columns of the table `attention`. Measurements of FlashAttention and its like, which have columns of their own, are
brought to them by `from_flash` and are fitted together with those of the serving engines.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from costmodels.attention import DECODE_ROWS, hardware
from costmodels.attention_kernels import KERNELS, Hardware, Parameters, Shape
from costmodels.attention_parameters import NARROW, TYPICAL, family, keys, lookup, multiplied, uses_lanes
from costmodels.catalog import Catalog
from costmodels.fit.attention_libraries import best, floors
from costmodels.fit.flash_rows import from_flash
from costmodels.fit.hierarchy import Effects, Ints, Problem, solve
from costmodels.fit.rounding import rounded
from costmodels.kernels import WIDTH_B
from costmodels.prediction import Bools, Floats
from costmodels.tables.attention import SIZES, described
from costmodels.tables.table import devices_of

if TYPE_CHECKING:
    import pandas as pd

SPREAD = {"kind": 0.3, "format": 0.2, "generation": 0.4, "family": 0.3, "library": 0.4, "kernel": 0.3}
"""How much a parameter differs (deviation of its logarithm) between the keys of a level."""

STEADY = {"tensor": 0.3, "stream": 0.3, "resident": 0.5}
"""Parameters that differ less, by so much; those that differ more are implementations' own choices."""

LOOSE = {"lanes": 3.0, "token": 2.0, "splits": 2.0, "query_passes": 2.0, "softmax": 1.5, "fill": 1.5}

TOO_FAST = 0.85
"""Share of the tensor cores' peak that no attention reaches; the fastest published, FlashAttention-4's, has 0.75."""

INSIDE = 0.8
"""Share of residuals within an error band."""

AGAIN = 10
"""Steps of a fit without one device, which starts from that with all."""

MORE = {"flash_attention": from_flash}
"""Other files whose rows the fit takes, and what makes rows of this table of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Measurements of one kernel with what its formula needs. Rows of one device, data type and library are a group."""

    kind: str
    hardware: Hardware
    shape: Shape
    measured: Floats
    group: Ints
    keys: list[dict[str, str]]  # by group
    device: "np.ndarray[Any, Any]"  # (rows,) catalogue names

    def predict(self, p: Parameters) -> Floats:
        """(rows,) seconds with (rows,) parameters."""
        return KERNELS[self.kind](self.hardware, self.shape, p)

    def take(self, rows: Bools) -> "Rows":
        return Rows(
            kind=self.kind,
            hardware=_pick(self.hardware, rows),
            shape=_pick(self.shape, rows),
            measured=self.measured[rows],
            group=self.group[rows],
            keys=self.keys,
            device=self.device[rows],
        )


def _pick(nouns: Any, rows: Any) -> Any:
    """The same noun with `rows` of each array."""
    return type(nouns)(**{f: getattr(nouns, f)[rows] for f in nouns.__slots__})


def fit(frame: "pd.DataFrame", catalog: Catalog) -> dict[str, Any]:
    """Parameters, error bands, measured ranges, the fastest library of each architecture, and noise floors."""
    parts = rows_of(frame, catalog)
    doubted = doubtful(parts["prefill"]) if "prefill" in parts else frozenset()
    effects = {kind: solve_with(rows, doubted) for kind, rows in parts.items()}
    parameters: dict[str, Any] = {}
    for found in effects.values():
        for level, of_level in found.items():
            parameters.setdefault(level, {}).update(of_level)
    table: dict[str, Any] = {
        "parameters": parameters,
        "best": best(frame, catalog, doubted),
        "devices": {kind: sorted({str(d) for d in rows.device}) for kind, rows in parts.items()},
        "error": errors(parts, effects, doubted),
        "range": {kind: ranges(rows) for kind, rows in parts.items()},
        "floors": floors(frame),
    }
    plain: dict[str, Any] = rounded(table)
    return plain


def rows_of(frame: "pd.DataFrame", catalog: Catalog) -> dict[str, Rows]:
    """Rows of devices and dtypes that are known, by kernel."""
    devices, names = devices_of(frame, catalog), described(frame)
    kept = (
        names["device"].isin(list(devices)) & names["dtype"].isin(WIDTH_B) & names["kv_dtype"].isin(WIDTH_B)
    ).to_numpy()
    frame, names = frame[kept].reset_index(drop=True), names[kept].reset_index(drop=True)
    where = names[["device", "dtype", "kv_dtype", "library"]]
    of = list(where.drop_duplicates().itertuples(index=False, name=None))
    number = {n: i for i, n in enumerate(of)}
    group = np.array([number[n] for n in where.itertuples(index=False, name=None)], dtype=np.int64)
    size = {s: frame[s].to_numpy(dtype=np.float64) for s in SIZES}
    kinds = _kinds(devices, of, group, size, names["backward"].to_numpy())
    shape = Shape(
        **size,
        query_B=np.maximum(names["dtype"].map(WIDTH_B).to_numpy(dtype=np.float64), 2.0),
        cache_B=names["kv_dtype"].map(WIDTH_B).to_numpy(dtype=np.float64),
        causal=names["causal"].to_numpy(),
        backward=names["backward"].to_numpy(),
        warm=np.ones(len(frame), dtype=np.bool_),
    )
    found = {}
    for kind in TYPICAL:
        at = np.flatnonzero(kinds == kind)
        if len(at):
            used, numbered = np.unique(group[at], return_inverse=True)
            found[kind] = Rows(
                kind=kind,
                hardware=_sheets(devices, [of[g] for g in used], kind, numbered),
                shape=_pick(shape, at),
                measured=frame["latency_s"].to_numpy(dtype=np.float64)[at],
                group=numbered.astype(np.int64),
                keys=[
                    keys(kind, family(devices[d]), dtype, cache, library or None)
                    for d, dtype, cache, library in (of[g] for g in used)
                ],
                device=np.array([devices[of[g][0]].name for g in group[at]]),
            )
    return found


def _sheets(devices: Mapping[str, Any], of: list[Any], kind: str, group: Any) -> Hardware:
    """(rows,) numbers of the data sheets of groups."""
    sheets = []
    for name, dtype, cache, library in of:
        d = devices[name]
        sheets.append(hardware(d, multiplied(dtype, cache, family(d), library) if kind == "prefill" else dtype))
    return Hardware(**{f: np.array([getattr(s, f) for s in sheets])[group] for f in Hardware.__slots__})


def _kinds(devices: Mapping[str, Any], of: list[Any], group: Ints, size: Mapping[str, Floats], backward: Any) -> Any:
    """(rows,) kernels."""
    found = np.full(len(group), "prefill", dtype="<U16")
    for g, (name, _, cache, library) in enumerate(of):
        device, rows = (
            devices[name],
            (group == g) & (size["q_len"] <= DECODE_ROWS) & (size["q_len"] < size["kv_len"]) & ~backward,
        )
        b, kv, h, hk = (size[s][rows] for s in ("batch", "kv_len", "heads", "kv_heads"))
        lanes = uses_lanes(
            library or None, family(device), NARROW.get(cache) == "byte", device.units or 1, kv, b * hk, h / hk
        )
        found[rows] = np.where(lanes, "vector_decode", "decode")
    return found


def doubtful(rows: Rows) -> frozenset[str]:
    """Kernels of libraries of which a prefill would need more than `TOO_FAST` of the peak: those did not compute attention.

    (In sglang's rows on B200 the time depends on the number of tokens alone, not on how long their sequences are.)
    """
    s = rows.shape
    seen = np.minimum(s.q_len, s.kv_len)
    pairs = np.where(s.causal, seen * (s.kv_len - seen) + seen * (seen + 1) / 2, s.q_len * s.kv_len)
    rate = (
        np.where(s.backward, 10.0, 4.0)
        * s.batch
        * s.heads
        * s.head_dim
        * pairs
        / rows.measured
        / rows.hardware.flop_per_s
    )
    fast = {rows.keys[g].get("kernel", "") for g in rows.group[rate > TOO_FAST]}
    makers = {tuple(kernel.split("/")[-2:]) for kernel in fast}
    kernels = {k["kernel"] for k in rows.keys if "kernel" in k}
    return frozenset(k for k in kernels if tuple(k.split("/")[-2:]) in makers)


def solve_with(rows: Rows, doubted: frozenset[str], start: Effects | None = None, steps: int = 30) -> Effects:
    """Effects of all rows but those in doubt, and of each kernel in doubt for itself, so that nothing else learns from it."""
    odd = [g for g, k in enumerate(rows.keys) if k.get("kernel") in doubted]
    effects = solve(problem(rows.take(~np.isin(rows.group, odd))), start, steps)
    for g in odd:
        part = rows.take(rows.group == g)
        if len(part.measured):
            known = {level: key for level, key in rows.keys[g].items() if level != "kernel"}
            own = _alone(part, lookup(effects, known), rows.keys[g]["kernel"])
            effects.setdefault("kernel", {}).update(solve(own).get("kernel", {}))
    return effects


def _alone(rows: Rows, typical: Mapping[str, float], kernel: str) -> Problem:
    """What one kernel has beyond all that it shares."""
    return Problem(
        logs=lambda p: np.log(rows.predict(p)),
        measured=np.log(rows.measured),
        group=np.zeros(len(rows.measured), dtype=np.int64),
        keys=[{"kernel": kernel}],
        typical=typical,
        deviation={"kernel": dict.fromkeys(typical, 2.0)},
    )


def problem(rows: Rows) -> Problem:
    """Rows as `solve` wants them."""
    scale = STEADY | LOOSE
    return Problem(
        logs=lambda p: np.log(rows.predict(p)),
        measured=np.log(rows.measured),
        group=rows.group,
        keys=rows.keys,
        typical=TYPICAL[rows.kind],
        deviation={
            level: {n: spread * scale.get(n, 1.0) for n in TYPICAL[rows.kind]} for level, spread in SPREAD.items()
        },
    )


def residuals(rows: Rows, effects: Effects, levels: tuple[str, ...] = tuple(SPREAD)) -> Floats:
    """(rows,) |predicted / measured - 1| when only `levels` are known."""
    values = [lookup(effects, {level: key for level, key in k.items() if level in levels}) for k in rows.keys]
    p = {name: np.array([v[name] for v in values])[rows.group] for name in TYPICAL[rows.kind]}
    return np.abs(rows.predict(p) / rows.measured - 1.0)


def errors(
    parts: Mapping[str, Rows], effects: Mapping[str, Effects], doubted: frozenset[str]
) -> dict[str, dict[str, float]]:
    """Bands of each kernel and family where they were measured, and of each kind on a device left out."""
    found: dict[str, dict[str, float]] = {"kernel": {}, "family": {}, "unseen": {}}
    for kind, rows in parts.items():
        for level, known in (("family", ("kind", "format", "generation", "family")), ("kernel", tuple(SPREAD))):
            names = np.array([k.get(level, "") for k in rows.keys])[rows.group]
            found[level] |= _bands(residuals(rows, effects[kind], known), names)
        left = [_left_out(rows, effects[kind], name, doubted) for name in np.unique(rows.device)]
        gathered = np.concatenate([np.zeros(0), *left])
        found["unseen"][kind] = float(np.quantile(gathered, INSIDE)) if len(gathered) else 0.5
    return found


def _left_out(rows: Rows, effects: Effects, name: str, doubted: frozenset[str]) -> Floats:
    """Residuals of a device that the fit has not seen, but for kernels in doubt."""
    out = (rows.device == name) & ~np.isin(
        rows.group, [g for g, k in enumerate(rows.keys) if k.get("kernel") in doubted]
    )
    if not out.any() or (rows.device == name).all():
        return np.zeros(0)
    others = solve_with(rows.take(rows.device != name), doubted, effects, AGAIN)
    return residuals(rows.take(out), others, ("kind", "format", "generation", "library"))


def _bands(error: Floats, names: "np.ndarray[Any, Any]") -> dict[str, float]:
    return {str(n): float(np.quantile(error[names == n], INSIDE)) for n in np.unique(names) if n}


def ranges(rows: Rows) -> dict[str, list[float]]:
    """Smallest and largest of each size."""
    sizes = {name: getattr(rows.shape, name) for name in ("batch", "kv_len", "heads", "head_dim")}
    return {name: [float(s.min()), float(s.max())] for name, s in sizes.items()}
