"""Quantities with units, as people write them in YAML: "80 GiB", "200 Gbit/s", "35 us". GB is not GiB, bit is not byte."""

import re
from functools import lru_cache
from tokenize import TokenError
from typing import TYPE_CHECKING

from costmodels.errors import DataError, Problem

if TYPE_CHECKING:
    import pint

BASE = {
    "bytes": "byte",
    "seconds": "second",
    "bytes_per_second": "byte / second",
    "flop_per_second": "flop / second",
    "hertz": "1 / second",
    "watt": "watt",
    "usd_per_hour": "usd / hour",
    "usd_per_byte": "usd / byte",
    "usd_per_byte_month": "usd / byte / month",
    "per_second": "1 / second",
    "number": "",
}
"""Dimensions and the unit their floats are in."""

EXAMPLES = {
    "bytes": '"80 GB" or "64 MiB"',
    "seconds": '"35 us" or "2 hours"',
    "bytes_per_second": '"200 Gbit/s" or "900 GB/s"',
    "flop_per_second": '"312 Tflop/s"',
    "hertz": '"1.98 GHz"',
    "watt": '"700 W"',
    "usd_per_hour": '"3.5 USD/hour"',
    "usd_per_byte": '"0.09 USD/GB"',
    "usd_per_byte_month": '"0.023 USD/GB/month"',
    "per_second": '"100000 / s"',
    "number": "a number",
}

_PREFIX = {
    "": 1.0,
    "k": 1e3,
    "K": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "P": 1e15,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}
_PREFIXES = "Ki|Mi|Gi|Ti|k|K|M|G|T|P|"
_SIMPLE = re.compile(rf"^\s*([0-9.]+(?:[eE][+-]?\d+)?)\s*(?:({_PREFIXES})(B|bit|flop)(/s)?|(n|u|m|)(s))\s*$")
_PLAIN = re.compile(r"^[-+0-9.eE\s]{1,40}[A-Za-zµ/* ]{1,60}$")
_SECONDS = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0}


def parse(given: object, dimension: str, field: str = "value") -> float:
    """A float in the SI unit of `dimension` (a key of `BASE`). Plain numbers are taken to be SI already.

    Raises `DataError` for anything that is not a finite quantity of that dimension.
    """
    problem = Problem(field, repr(given), f"a quantity such as {EXAMPLES[dimension]}", "Plain numbers are SI units.")
    if isinstance(given, bool) or not isinstance(given, (int, float, str)):
        raise DataError("not a quantity", [problem])
    if isinstance(given, (int, float)):
        value = float(given) if abs(given) < 1e300 else float("inf")
    else:
        found = _quick(given, dimension)
        value = _with_pint(given, dimension, problem) if found is None else found
    if not -1e300 < value < 1e300:
        raise DataError("not a finite quantity", [problem])
    return value


def _quick(text: str, dimension: str) -> float | None:
    """The common spellings without loading pint; None for everything else. A test holds it equal to pint."""
    match = _SIMPLE.match(text)
    if match is None:
        return None
    number, prefix, unit, rate, small, second = match.groups()
    try:
        value = float(number)
    except ValueError:
        return None
    if second:
        return value * _SECONDS[small] if dimension == "seconds" else None
    wanted = ("flop" if unit == "flop" else "bytes") + ("_per_second" if rate else "")
    return value * _PREFIX[prefix] * (0.125 if unit == "bit" else 1.0) if dimension == wanted else None


def _with_pint(text: str, dimension: str, problem: Problem) -> float:
    import pint

    if not _PLAIN.match(text) or "**" in text:  # powers and brackets would be computed, however large
        raise DataError("not a quantity", [problem])
    registry = _registry()
    try:
        return float(registry.Quantity(text).to(BASE[dimension]).magnitude)
    except (pint.PintError, ValueError, TypeError, AttributeError, ArithmeticError, SyntaxError, TokenError):
        raise DataError("not a quantity", [problem]) from None


@lru_cache(maxsize=1)
def _registry() -> "pint.UnitRegistry[float]":
    import pint

    registry: pint.UnitRegistry[float] = pint.UnitRegistry()
    registry.define("flop = [operation]")
    registry.define("usd = [currency] = USD")
    registry.define("byte = 8 * bit = B = octet")
    return registry
