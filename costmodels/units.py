"""Quantities with units, as people write them in YAML: "80 GiB", "200 Gbit/s", "35 us". GB is not GiB, bit is not byte."""

import re
from decimal import Decimal
from functools import lru_cache
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

DEFINITIONS = (
    *("pico- = 1e-12 = p-", "nano- = 1e-9 = n-", "micro- = 1e-6 = µ- = u-", "milli- = 1e-3 = m-"),
    *("kilo- = 1e3 = k-", "mega- = 1e6 = M-", "giga- = 1e9 = G-", "tera- = 1e12 = T-", "peta- = 1e15 = P-"),
    *(
        "kibi- = 2**10 = Ki-",
        "mebi- = 2**20 = Mi-",
        "gibi- = 2**30 = Gi-",
        "tebi- = 2**40 = Ti-",
        "pebi- = 2**50 = Pi-",
    ),
    *("second = [time] = s = sec", "minute = 60 * second = min", "hour = 60 * minute = h", "day = 24 * hour = d"),
    *("week = 7 * day", "year = 365.25 * day", "month = year / 12", "hertz = 1 / second = Hz"),
    *("bit = [information]", "byte = 8 * bit = B", "bps = bit / second", "flop = [operation]"),
    *("watt = [power] = W", "usd = [currency] = USD", "percent = 0.01"),
)
"""All units there are, in pint's language. Its own list has barns and furlongs, and takes a byte for a plain number."""

_DECIMAL = {"": 0, "n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40}
_PREFIX = {p: Decimal(10) ** e for p, e in _DECIMAL.items()} | {p: Decimal(2) ** e for p, e in _BINARY.items()}
_UNIT = {
    "B": ("bytes", Decimal(1)),
    "bit": ("bytes", Decimal("0.125")),
    "B/s": ("bytes_per_second", Decimal(1)),
    "bit/s": ("bytes_per_second", Decimal("0.125")),
    "flop/s": ("flop_per_second", Decimal(1)),
    "s": ("seconds", Decimal(1)),
    "Hz": ("hertz", Decimal(1)),
    "W": ("watt", Decimal(1)),
}
COMMON = {
    prefix + unit: (dimension, size * factor)
    for unit, (dimension, factor) in _UNIT.items()
    for prefix, size in _PREFIX.items()
} | {
    "USD/hour": ("usd_per_hour", Decimal(1)),
    "USD/GB": ("usd_per_byte", Decimal("1e-9")),
    "USD/GB/month": ("usd_per_byte_month", Decimal("1e-9")),
}
"""Spellings read without pint, whose import takes longer than loading a scenario; equal to what pint makes of them."""

_NUMBER = r"[-+]? ?(?:[0-9]{1,30}\.?[0-9]{0,30}|\.[0-9]{1,30})(?:[eE][-+]?[0-9]{1,3})?"
_COMMON = re.compile(rf"({_NUMBER}) ?([A-Za-z/]*)")
_PLAIN = re.compile(rf"{_NUMBER}(?: ?/)? ?[A-Za-zµ]+(?: ?[ */] ?[A-Za-zµ]+){{0,3}}")  # nothing that pint would compute
_LARGEST = 1e300


def parse(given: object, dimension: str, field: str = "value") -> float:
    """A float in the SI unit of `dimension` (a key of `BASE`). Plain numbers are taken to be SI already.

    Raises `DataError` for anything that is not a finite quantity of that dimension; the problem names `field`.
    """
    if isinstance(given, str):
        text = given.strip()
        found = _common(text, dimension)
        value = _with_pint(text, given, dimension, field) if found is None else found
    elif isinstance(given, (int, float)) and not isinstance(given, bool):
        value = float(given) if abs(given) < _LARGEST else float("inf")
    else:
        raise _refused(given, dimension, field)
    if not -_LARGEST < value < _LARGEST:
        raise _refused(given, dimension, field, "It is not finite.")
    return value


def _refused(given: object, dimension: str, field: str, why: str = "Plain numbers are SI units.") -> DataError:
    problem = Problem(field, repr(given)[:80], f"a quantity such as {EXAMPLES[dimension]}", why)
    return DataError(f"not a quantity of {dimension.replace('_', ' ')}", [problem])


def _common(text: str, dimension: str) -> float | None:
    """Plain numbers (YAML reads 1e9 as a text) and the spellings of `COMMON`, rounded once; None for everything else."""
    match = _COMMON.fullmatch(text)
    if match is None:
        return None
    measures, factor = COMMON.get(match[2], ("", Decimal(0))) if match[2] else (dimension, Decimal(1))
    return float(Decimal(match[1].replace(" ", "")) * factor) if measures == dimension else None


def _with_pint(text: str, given: str, dimension: str, field: str) -> float:
    import pint

    if not _PLAIN.fullmatch(text):
        raise _refused(given, dimension, field)
    try:
        quantity: pint.Quantity[float] = _registry().Quantity(text)
        return float(quantity.to(BASE[dimension]).magnitude)
    except pint.UndefinedUnitError as error:
        raise _refused(given, dimension, field, f"There is no unit {', '.join(error.unit_names)!r}.") from None
    except pint.DimensionalityError:
        raise _refused(given, dimension, field, f"That is a quantity of {quantity.dimensionality}.") from None
    except (pint.PintError, ArithmeticError):
        raise _refused(given, dimension, field) from None


@lru_cache(maxsize=1)
def _registry() -> "pint.UnitRegistry[float]":
    import pint

    registry: pint.UnitRegistry[float] = pint.UnitRegistry(None)
    registry.load_definitions(DEFINITIONS)
    return registry
