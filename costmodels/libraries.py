"""Whose kernels a program runs: the same product on the same device takes other times in other libraries."""

from dataclasses import dataclass

from costmodels import attention, gemm
from costmodels.attention_parameters import family
from costmodels.fitted import load
from costmodels.specs import DeviceSpec

NAMES = {"gemm": gemm.LIBRARIES, "attention": attention.LIBRARIES}
"""Fitted tables that tell libraries apart, and every name that their rows may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Libraries:
    """One of `known` for products and for attention; None is what `typical` says."""

    gemm: str | None = None
    attention: str | None = None


def known(table: str) -> tuple[str, ...]:
    """Libraries that the fit of a table (`gemm` or `attention`) tells apart, sorted."""
    fitted = {part for key in load(table)["parameters"]["library"] for part in key.split("/")}
    return tuple(sorted(fitted.intersection(NAMES[table])))


def typical(table: str, device: DeviceSpec) -> str:
    """What is assumed of a device when no library is named, in words."""
    if table == "gemm":
        return "typical of those measured"
    best = load("attention")["best"].get(family(device))
    return f"{best}, the fastest measured" if best else "typical of those measured"


def measured_on(table: str, library: str) -> tuple[str, ...]:
    """Devices (products) or families of chips (attention) on which a library was measured, sorted."""
    error = load(table)["error"]
    place = {"gemm": ("device_library", 0), "attention": ("kernel", 3)}[table]
    return tuple(sorted({k.split("/")[place[1]] for k in error[place[0]] if k.split("/")[-1] == library}))
