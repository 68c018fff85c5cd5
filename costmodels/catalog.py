"""Devices, links and stores by name: one YAML each, every number with its source.

    flop_per_s:
      bfloat16: {value: 989.4 Tflop/s, source: "NVIDIA H100 data sheet, 2023, table 1 (dense)"}

Folders of the user (with subfolders devices, links, stores) come before the entries that are built in; `calibrate` writes such
a folder. A source that begins with "assumption:" is our own guess and says why.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from costmodels.errors import DataError, Problem
from costmodels.files import write_atomically
from costmodels.specs import DeviceSpec, LinkSpec, StoreSpec
from costmodels.units import parse

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["devices", "links", "stores"]
KINDS: tuple[Kind, ...] = ("devices", "links", "stores")
BUILT_IN = Path(__file__).parent
SPECS: dict[Kind, type[Any]] = {"devices": DeviceSpec, "links": LinkSpec, "stores": StoreSpec}

TEXTS = {
    "devices": ("title", "kind", "vendor", "architecture", "host_link", "peer_link"),
    "links": ("title", "kind"),
    "stores": ("title", "kind"),
}
FLAGS = ("duplex", "switched", "reduces_in_network", "shared")
TABLES = ("measured", "efficiency")  # nested numbers, written by `calibrate` and read as they are
DIMENSIONS = {
    "memory_B": "bytes",
    "memory_B_per_s": "bytes_per_second",
    "units": "number",
    "clock_hz": "hertz",
    "l2_B": "bytes",
    "launch_s": "seconds",
    "overlap_slowdown": "number",
    "power_W": "watt",
    "price_usd_per_hour": "usd_per_hour",
    "B_per_s": "bytes_per_second",
    "latency_s": "seconds",
    "efficiency": "number",
    "price_usd_per_B": "usd_per_byte",
    "read_B_per_s": "bytes_per_second",
    "write_B_per_s": "bytes_per_second",
    "stream_read_B_per_s": "bytes_per_second",
    "stream_write_B_per_s": "bytes_per_second",
    "request_s": "seconds",
    "requests_per_s": "per_second",
    "price_usd_per_B_month": "usd_per_byte_month",
}
REQUIRED = {
    "devices": ("title", "kind", "vendor", "architecture", "memory_B", "memory_B_per_s", "flop_per_s"),
    "links": ("title", "kind", "B_per_s", "latency_s"),
    "stores": (
        "title",
        "kind",
        "read_B_per_s",
        "write_B_per_s",
        "stream_read_B_per_s",
        "stream_write_B_per_s",
        "request_s",
    ),
}


class Catalog:
    """Entries by name, from `folders` first and then from those built in. Names ignore case; `aliases` count as names."""

    def __init__(self, folders: Iterable[Path] = ()) -> None:
        self.folders = tuple(Path(f) for f in folders)

    def device(self, name: str) -> DeviceSpec:
        """Raises `DataError` for an unknown name, with those that come close."""
        return self._find("devices", name)  # type: ignore[no-any-return]

    def link(self, name: str) -> LinkSpec:
        """As `device`."""
        return self._find("links", name)  # type: ignore[no-any-return]

    def store(self, name: str) -> StoreSpec:
        """As `device`."""
        return self._find("stores", name)  # type: ignore[no-any-return]

    def names(self, kind: Kind) -> tuple[str, ...]:
        """Every entry's own name, sorted."""
        return tuple(sorted({path.stem for path in self._paths(kind)}))

    def frame(self, kind: Kind) -> "pd.DataFrame":
        """One row for each entry, with the fields of its spec and where its numbers come from."""
        import pandas as pd

        rows = []
        for name in self.names(kind):
            spec = self._find(kind, name)
            row = {f: getattr(spec, f) for f in spec.__slots__ if f not in (*TABLES, "sources")}
            peaks = row.pop("flop_per_s", {})
            row.update({f"flop_per_s.{dtype}": peak for dtype, peak in peaks.items()})
            rows.append({**row, "sources": len(spec.sources)})
        return pd.DataFrame(rows)

    def _paths(self, kind: Kind) -> list[Path]:
        folders = [*self.folders, BUILT_IN]
        return [path for folder in folders for path in sorted((folder / kind).glob("*.yaml"))]

    def _find(self, kind: Kind, name: str) -> Any:
        wanted = name.strip().lower()
        paths = self._paths(kind)
        for path in paths:
            if path.stem.lower() == wanted:
                return load(kind, path)
        for path in paths:
            if wanted in _aliases(path, path.stat().st_mtime_ns):
                return load(kind, path)
        raise _unknown(kind, name, self.names(kind))


def _unknown(kind: Kind, name: str, known: Sequence[str]) -> DataError:
    close = difflib.get_close_matches(name.lower(), known, n=4, cutoff=0.4)
    advice = f"Did you mean {' or '.join(close)}?" if close else "`windtunnel catalog` lists them."
    if name.lower().startswith("this_machine"):
        advice = "This machine has not been measured: run `windtunnel calibrate`."
    return DataError(f"unknown {kind[:-1]}", [Problem(kind[:-1], repr(name), ", ".join(known), advice)])


def load(kind: Kind, path: Path) -> Any:
    """The spec in one file; raises `DataError` with everything that is wrong in it."""
    try:
        return _load(kind, path, path.stat().st_mtime_ns)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read", [Problem(str(path), str(error.strerror), "a readable YAML file")]
        ) from error


@lru_cache(maxsize=512)
def _load(kind: Kind, path: Path, _modified: int) -> Any:
    document = _document(path, _modified)
    problems: list[Problem] = []
    fields = _fields(kind, document, problems)
    if problems:
        raise DataError(f"{path} is not a valid entry of {kind}", problems)
    return SPECS[kind](name=path.stem, **fields)


@lru_cache(maxsize=512)
def _document(path: Path, _modified: int) -> Mapping[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not YAML", [Problem(str(path), str(error).splitlines()[0], "YAML")]) from error
    if not isinstance(document, dict):
        raise DataError(f"{path} is empty", [Problem(str(path), type(document).__name__, "a mapping of fields")])
    return document


@lru_cache(maxsize=512)
def _aliases(path: Path, modified: int) -> frozenset[str]:
    return frozenset(str(a).lower() for a in _document(path, modified).get("aliases", ()))


def _fields(kind: Kind, document: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    spec = SPECS[kind]
    known = [f for f in spec.__slots__ if f not in ("name", "sources")]
    out: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key, value in document.items():
        if key == "aliases":
            continue
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            advice = f"Did you mean {close[0]}?" if close else ""
            problems.append(Problem(str(key), "an unknown field", ", ".join(known), advice))
        elif key in TEXTS[kind]:
            out[key] = str(value)
        elif key in FLAGS:
            out[key] = _flag(key, value, problems)
        elif key == "flop_per_s":
            peaks = value if isinstance(value, dict) else {}
            out[key] = {
                d: _number(f"flop_per_s.{d}", v, "flop_per_second", sources, problems) for d, v in peaks.items()
            }
        elif key in TABLES and isinstance(value, dict) and "value" not in value:
            out[key] = value
        else:
            out[key] = _number(key, value, DIMENSIONS[key], sources, problems)
    if "units" in out:
        out["units"] = int(out["units"])
    problems += [Problem(key, "nothing", "required") for key in REQUIRED[kind] if key not in out]
    return {**out, "sources": sources}


def _flag(key: str, value: object, problems: list[Problem]) -> bool:
    if not isinstance(value, bool):
        problems.append(Problem(key, repr(value), "true or false"))
    return bool(value)


def _number(field: str, value: object, dimension: str, sources: dict[str, str], problems: list[Problem]) -> float:
    if not isinstance(value, dict) or set(value) != {"value", "source"} or not str(value["source"]).strip():
        problems.append(
            Problem(field, repr(value)[:80], "{value: ..., source: ...}", "Every number says where it comes from.")
        )
        return 0.0
    sources[field] = str(value["source"])
    try:
        number = parse(value["value"], dimension, field)
    except DataError as error:
        problems += error.problems
        return 0.0
    if number < 0:
        problems.append(Problem(field, repr(value["value"]), "a number that is not negative"))
    return number


def write_entry(folder: Path, kind: Kind, name: str, fields: Mapping[str, Any]) -> Path:
    """Write one entry in the catalogue's own form into `folder`/`kind`/`name`.yaml, whole or not at all; returns the path."""
    path = folder / kind / f"{name}.yaml"
    write_atomically(path, yaml.safe_dump(dict(fields), sort_keys=False, width=120, allow_unicode=True))
    return path
