"""Quantities with units, read with pint and without."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.errors import DataError
from costmodels.units import BASE, COMMON, EXAMPLES, _with_pint, parse


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("80 GB", "bytes", 80e9),
        ("80 GiB", "bytes", 80 * 2**30),
        ("200 Gbit/s", "bytes_per_second", 25e9),
        ("200 GB/s", "bytes_per_second", 200e9),
        ("1.5 Gbps", "bytes_per_second", 187.5e6),
        ("35 us", "seconds", 35e-6),
        ("35µs", "seconds", 35e-6),
        ("2 hours", "seconds", 7200.0),
        ("312 Tflop/s", "flop_per_second", 312e12),
        ("3 USD/hour", "usd_per_hour", 3.0),
        ("72 usd/day", "usd_per_hour", 3.0),
        ("0.09 USD/GB", "usd_per_byte", 0.09e-9),
        ("0.023 USD/GB/month", "usd_per_byte_month", 0.023e-9),
        ("300 W", "watt", 300.0),
        ("1.98 GHz", "hertz", 1.98e9),
        ("5500 / s", "per_second", 5500.0),
        ("5 percent", "number", 0.05),
        ("1e9", "bytes", 1e9),  # what YAML makes of 1e9 without a point is a text
        (7, "bytes", 7.0),
        (0.5, "number", 0.5),
    ],
)
def test_units_are_what_they_say(text: object, dimension: str, value: float) -> None:
    assert parse(text, dimension) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("unit", sorted(COMMON))
@pytest.mark.parametrize("number", ["1", "3.7", "12.25e-3"])
def test_common_spellings_are_read_as_pint_reads_them(unit: str, number: str) -> None:
    dimension, _ = COMMON[unit]
    text = f"{number} {unit}"
    assert parse(text, dimension) == pytest.approx(_with_pint(text, text, dimension, "value"), rel=1e-12)


@given(st.floats(min_value=1e-9, max_value=1e9), st.sampled_from(sorted(COMMON)))
def test_numbers_keep_their_digits(number: float, unit: str) -> None:
    dimension, factor = COMMON[unit]
    assert parse(f"{number!r} {unit}", dimension) == pytest.approx(number * float(factor), rel=1e-12)


@pytest.mark.parametrize(
    ("text", "dimension", "why"),
    [
        ("80 GB", "seconds", "[information]"),
        ("80 Gbit/s", "bytes", "[information] / [time]"),
        ("3 GB/s", "hertz", "[information] / [time]"),
        ("3 GB", "number", "[information]"),
        ("80 furlongs", "bytes", "no unit 'furlongs'"),
        ("80 gb", "bytes", "no unit 'gb'"),
        ("80 KB", "bytes", "no unit 'KB'"),
        ("80 Gb", "bytes", "no unit 'Gb'"),
        ("1e400 GB", "bytes", "not finite"),
        ("9**9**9 B", "bytes", "Plain numbers are SI units"),
        ("(3 + 4) B", "bytes", "Plain numbers are SI units"),
        ("5 B/0", "bytes", "Plain numbers are SI units"),
        ("5 B per", "bytes", "no unit 'per'"),
        ("0*", "bytes", "Plain numbers are SI units"),
        ("nan B", "bytes", "Plain numbers are SI units"),
        ("", "bytes", "Plain numbers are SI units"),
        (None, "bytes", "Plain numbers are SI units"),
        (True, "bytes", "Plain numbers are SI units"),
        ([1], "bytes", "Plain numbers are SI units"),
        (float("nan"), "bytes", "not finite"),
        (float("inf"), "bytes", "not finite"),
        (10**400, "bytes", "not finite"),
    ],
)
def test_what_is_refused_says_why(text: object, dimension: str, why: str) -> None:
    with pytest.raises(DataError) as caught:
        parse(text, dimension, "cluster.size")
    [problem] = caught.value.problems
    assert problem.field == "cluster.size"
    assert why in problem.advice
    assert EXAMPLES[dimension] in problem.allowed


@given(st.one_of(st.text(max_size=40), st.text(alphabet="0123456789.eE+-*/ GMkiBbitsper()", max_size=20)))
def test_any_text_is_a_number_or_a_refusal(text: str) -> None:
    try:
        assert isinstance(parse(text, "bytes_per_second"), float)
    except DataError as error:
        assert error.problems


def test_every_dimension_has_an_example_of_itself() -> None:
    assert set(EXAMPLES) == set(BASE)
    for dimension, example in EXAMPLES.items():
        quoted = example.split('"')[1::2]
        assert all(parse(text, dimension) > 0 for text in quoted)
        assert quoted or dimension == "number"


def test_common_units_do_not_load_pint() -> None:
    code = "import sys; from costmodels.units import parse; parse('80 GB', 'bytes'); print('pint' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
