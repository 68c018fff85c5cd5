"""What measured collectives say about links: the fitted values of a link go over those of its YAML.

The YAML of a link holds its data sheet. `latency_s`, `start_s`, `ramp_s` and `efficiency` are found in measurements: those of
the link itself where it was measured; else, where the YAML only assumes, those of a relative (`nvlink4` for `nvlink4_h800`) or
what links of its kind have in common.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from costmodels import fitted as tables
from costmodels.specs import LinkSpec

FITTED = ("latency_s", "start_s", "ramp_s", "efficiency")
ALIKE = {"roce": "infiniband"}
"""Kinds that nobody measured, and the one whose adapters and switches they share."""
ASSUMED = ("assumption:", "not measured:")
"""How sources of numbers begin that nobody measured."""


def fitted_link(link: LinkSpec, found: Mapping[str, Any] | None = None) -> LinkSpec:
    """`link` with its fitted values and where they come from; `found` is by default the table in `costmodels/fitted`."""
    found = tables.load("collectives") if found is None else found
    own = found["links"].get(link.name)
    if own is not None:
        origin = f"fitted to {own['rows']} measured collectives and transfers over this link ({own['sources']})"
        return _with(link, own, FITTED, origin)
    assumed = tuple(f for f in FITTED if _assumed(link, f))
    relative = _relative(link.name, found["links"])
    if relative is not None:
        return _with(link, found["links"][relative], assumed, f"not measured: as {relative}")
    alike = found["kinds"].get(ALIKE.get(link.kind, link.kind))
    if alike is None:
        return link
    origin = f"not measured: what fitted links of its kind have in common ({', '.join(alike['links'])})"
    return _with(link, alike, assumed, origin)


def _relative(name: str, known: Mapping[str, Any]) -> str | None:
    """The longest beginning of the name, up to an underscore, that was measured."""
    parts = name.split("_")
    return next((n for i in range(len(parts) - 1, 0, -1) if (n := "_".join(parts[:i])) in known), None)


def is_fitted(link: LinkSpec, found: Mapping[str, Any] | None = None) -> bool:
    """Whether there are measurements of this very link."""
    found = tables.load("collectives") if found is None else found
    return link.name in found["links"]


def is_guessed(link: LinkSpec) -> bool:
    """Whether nobody measured this link: neither these collectives nor the sources of its YAML."""
    return not is_fitted(link) and any(_assumed(link, f) for f in ("latency_s", "efficiency"))


def _assumed(link: LinkSpec, field: str) -> bool:
    return link.sources.get(field, ASSUMED[0]).startswith(ASSUMED)


def _with(link: LinkSpec, values: Mapping[str, Any], names: tuple[str, ...], origin: str) -> LinkSpec:
    numbers = {name: float(values[name]) for name in names}
    return replace(link, **numbers, sources={**link.sources, **dict.fromkeys(names, origin)})  # type: ignore[arg-type]
