"""One entry of the catalogue: a YAML file read into its spec, with everything that is wrong in it said at once.

    memory_B: {value: 80 GB, source: "NVIDIA A100 data sheet, 2021"}
    flop_per_s:
      bfloat16: {value: 312 Tflop/s, source: "NVIDIA A100 data sheet, 2021 (dense)"}

Every number is a `{value, source}`; a source that begins with "assumption:" is our own guess and says why. `measured` holds
tables of measurements and `efficiency` of a device parameters of a fit: plain numbers, read as they are.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml

from costmodels.errors import DataError, Problem
from costmodels.specs import DeviceSpec, LinkSpec, StoreSpec
from costmodels.units import parse

Kind = Literal["devices", "links", "stores"]
Spec = DeviceSpec | LinkSpec | StoreSpec

KINDS: tuple[Kind, ...] = ("devices", "links", "stores")
SPECS: dict[Kind, type[DeviceSpec] | type[LinkSpec] | type[StoreSpec]] = {
    "devices": DeviceSpec,
    "links": LinkSpec,
    "stores": StoreSpec,
}
DTYPES = ("float32", "tf32", "float16", "bfloat16", "fp8", "fp4", "int8", "int4")
TEXTS = ("title", "kind", "vendor", "architecture", "host_link", "peer_link")
FLAGS = ("duplex", "switched", "reduces_in_network", "shared")
TABLES: dict[Kind, tuple[str, ...]] = {
    "devices": ("measured", "efficiency"),
    "links": ("measured",),
    "stores": ("measured",),
}
SHARES = ("efficiency", "overlap_slowdown")  # at most 1
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
    "start_s": "seconds",
    "ramp_s": "seconds",
    "joins": "number",
    "efficiency": "number",
    "price_usd_per_B": "usd_per_byte",
    "read_B_per_s": "bytes_per_second",
    "write_B_per_s": "bytes_per_second",
    "stream_read_B_per_s": "bytes_per_second",
    "stream_write_B_per_s": "bytes_per_second",
    "request_s": "seconds",
    "requests_per_s": "per_second",
    "open_s": "seconds",
    "commit_s": "seconds",
    "price_usd_per_B_month": "usd_per_byte_month",
}
REQUIRED: dict[Kind, tuple[str, ...]] = {
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


def load(kind: Kind, path: Path) -> Spec:
    """The spec in one file, named after it; raises `DataError` with all problems of the file."""
    return _load(kind, path, _modified(path))


def aliases(path: Path) -> tuple[str, ...]:
    """Further names of the entry in `path`, as written; raises `DataError` where it is not YAML."""
    return _aliases(path, _modified(path))


def build(kind: Kind, name: str, document: Mapping[str, Any], where: str = "the entry") -> Spec:
    """The spec that `document`, in the catalogue's form, describes; raises `DataError` with all its problems."""
    reader = _Reader(kind)
    for key, value in document.items():
        reader.read(str(key), value)
    reader.problems += [Problem(key, "nothing", "required") for key in REQUIRED[kind] if key not in document]
    if reader.problems:
        raise DataError(f"{where} does not describe one of the {kind}", reader.problems)
    return SPECS[kind](name=name, sources=reader.sources, **reader.fields)


class _Reader:
    """Collects fields, their sources and every problem of one document."""

    def __init__(self, kind: Kind) -> None:
        self.tables = TABLES[kind]
        self.known = ["aliases", *(f for f in SPECS[kind].__slots__ if f not in ("name", "sources"))]
        self.fields: dict[str, Any] = {}
        self.sources: dict[str, str] = {}
        self.problems: list[Problem] = []

    def read(self, key: str, value: object) -> None:
        if key not in self.known:
            close = get_close_matches(key, self.known, n=1)
            advice = f"Did you mean {close[0]}?" if close else ""
            self.problems.append(Problem(key, "an unknown field", ", ".join(self.known), advice))
        elif key == "aliases":
            if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
                self.problem(key, value, "a list of names")
        elif key in TEXTS:
            self.fields[key] = self.text(key, value)
        elif key in FLAGS:
            if not isinstance(value, bool):
                self.problem(key, value, "true or false")
            self.fields[key] = value
        elif key == "flop_per_s":
            self.fields[key] = self.peaks(value)
        elif key in self.tables:
            self.fields[key] = self.table(key, value)
        else:
            self.fields[key] = self.number(key, value, DIMENSIONS.get(key, "number"))

    def text(self, key: str, value: object) -> str:
        if not isinstance(value, str) or not value.strip():
            self.problem(key, value, "a text")
        return str(value)

    def table(self, key: str, value: object) -> Mapping[str, Any]:
        """Measurements as they are; the parameters of a fit are numbers by name."""
        if not isinstance(value, dict):
            self.problem(key, value, "a mapping")
            return {}
        if key == "efficiency":
            for name, number in value.items():
                if isinstance(number, bool) or not isinstance(number, (int, float)):
                    self.problem(f"efficiency.{name}", number, "a number")
        return value

    def peaks(self, value: object) -> dict[str, float]:
        """FLOP a second by dtype."""
        if not isinstance(value, dict) or not value:
            self.problem("flop_per_s", value, "a rate for each dtype")
            return {}
        for dtype in value:
            if dtype not in DTYPES:
                self.problems.append(Problem(f"flop_per_s.{dtype}", "an unknown dtype", ", ".join(DTYPES)))
        return {str(d): self.number(f"flop_per_s.{d}", v, "flop_per_second") for d, v in value.items()}

    def number(self, key: str, value: object, dimension: str) -> float | int:
        if not _is_quantity(value):
            self.problem(key, value, "{value: ..., source: ...}", "Every number says where it comes from.")
            return 0.0
        assert isinstance(value, dict)
        if not isinstance(value["source"], str) or not value["source"].strip():
            self.problem(key, value["source"], "a source in words", "Every number says where it comes from.")
        self.sources[key] = str(value["source"])
        try:
            number = parse(value["value"], dimension, key)
        except DataError as error:
            self.problems += error.problems
            return 0.0
        return self.bounded(key, number, value["value"], dimension)

    def bounded(self, key: str, number: float, given: object, dimension: str) -> float | int:
        rate = dimension in ("bytes", "bytes_per_second", "flop_per_second", "hertz", "per_second") or key == "units"
        if number < 0 or (rate and number == 0):
            self.problem(key, given, "more than zero" if rate else "zero or more")
        if key in SHARES and number > 1:
            self.problem(key, given, "a share, at most 1")
        if key != "units":
            return number
        if number != int(number):
            self.problem(key, given, "a whole number")
        return int(number)

    def problem(self, key: str, given: object, allowed: str, advice: str = "") -> None:
        self.problems.append(Problem(key, repr(given)[:80], allowed, advice))


def _is_quantity(value: object) -> bool:
    return isinstance(value, dict) and set(value) == {"value", "source"}


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise _unreadable(path, error.strerror or type(error).__name__) from error


def _unreadable(path: Path, why: str) -> DataError:
    return DataError(f"{path} cannot be read", [Problem(str(path), why, "a YAML file with a mapping of fields")])


@lru_cache(maxsize=1024)
def _load(kind: Kind, path: Path, modified: int) -> Spec:
    return build(kind, path.stem, _document(path, modified), str(path))


@lru_cache(maxsize=1024)
def _aliases(path: Path, modified: int) -> tuple[str, ...]:
    names = _document(path, modified).get("aliases")
    return tuple(str(name) for name in names) if isinstance(names, list) else ()


@lru_cache(maxsize=1024)
def _document(path: Path, _modified: int) -> Mapping[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise _unreadable(path, (str(error) or type(error).__name__).splitlines()[0]) from error
    except OSError as error:
        raise _unreadable(path, error.strerror or type(error).__name__) from error
    if not isinstance(document, dict):
        raise _unreadable(path, f"a {type(document).__name__}")
    return document
