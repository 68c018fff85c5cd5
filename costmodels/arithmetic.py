"""Which arithmetic a device uses for a dtype, and what the operands of a matrix product in it weigh."""

from dataclasses import dataclass

from costmodels.specs import DeviceSpec

FALLBACK = {
    "tf32": "float32",
    "bfloat16": "float32",
    "float16": "float32",
    "fp8": "bfloat16",
    "fp4": "fp8",
    "int8": "float16",
    "int4": "int8",
}
"""Where a device has no arithmetic of a dtype, it converts and uses that of another."""

WITHOUT_MATRIX_UNITS = frozenset(("pascal", "maxwell", "apple", "x86", "arm", "adreno", "xe"))
"""Architectures whose products run on the lanes that do everything else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How operands of a product C = A B are stored (bytes of an element of each, scales included) and multiplied.

    `kind` names the kernels that libraries have for it: formats of one kind share fitted efficiencies.
    """

    kind: str  # vector | half | fp8 | fp8_block | nvfp4 | int8 | int8_wo | int4_wo
    peak: str  # dtype whose peak of the data sheet counts
    a_B: float
    b_B: float
    c_B: float

    @property
    def quantises(self) -> bool:
        """Activations are narrowed from 16 bits before they are multiplied."""
        return self.a_B < 2.0


FORMATS = {
    "float32": Format(kind="vector", peak="float32", a_B=4.0, b_B=4.0, c_B=4.0),
    "tf32": Format(kind="half", peak="tf32", a_B=4.0, b_B=4.0, c_B=4.0),
    "float16": Format(kind="half", peak="float16", a_B=2.0, b_B=2.0, c_B=2.0),
    "bfloat16": Format(kind="half", peak="bfloat16", a_B=2.0, b_B=2.0, c_B=2.0),
    "fp8": Format(kind="fp8", peak="fp8", a_B=1.0, b_B=1.0, c_B=2.0),
    "fp8_block": Format(kind="fp8_block", peak="fp8", a_B=1.0 + 4 / 128, b_B=1.0, c_B=2.0),  # a scale for 128 of k
    "nvfp4": Format(kind="nvfp4", peak="fp4", a_B=0.5 + 1 / 16, b_B=0.5 + 1 / 16, c_B=2.0),  # a scale for 16 of k
    "int8": Format(kind="int8", peak="int8", a_B=1.0, b_B=1.0, c_B=2.0),
    "int8_wo": Format(kind="int8_wo", peak="bfloat16", a_B=2.0, b_B=1.0, c_B=2.0),
    "int4_wo": Format(kind="int4_wo", peak="bfloat16", a_B=2.0, b_B=0.5 + 2 / 128, c_B=2.0),
}
"""Formats by the names that tables of measurements use."""

ALIASES = {
    "fp32": "float32",
    "float": "float32",
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "fp8_e4m3": "fp8",
    "float8": "fp8",
    "fp8_static": "fp8",
    "fp8_per_tensor": "fp8",
    "fp8_ootb": "fp8",
    "sq": "int8",
    "w8a8": "int8",
    "fp4": "nvfp4",
    "mxfp4": "nvfp4",
    "w4a16": "int4_wo",
    "int4": "int4_wo",
    "w8a16": "int8_wo",
    "int4_awq": "int4_wo",
    "int4_gptq": "int4_wo",
}
"""Other names of the same formats."""

WEIGHT_ONLY = {"fp8": "int8_wo", "fp8_block": "int8_wo", "nvfp4": "int4_wo"}
"""What libraries run where a device has no arithmetic of a narrow format: narrow weights, widened on their way."""


def native_dtype(dtype: str, device: DeviceSpec) -> str:
    """The dtype whose arithmetic the device uses for `dtype`."""
    while dtype not in device.flop_per_s:
        if dtype not in FALLBACK:
            return next(iter(device.flop_per_s))
        dtype = FALLBACK[dtype]
    return dtype


def format_of(dtype: str, device: DeviceSpec) -> Format | None:
    """The format in which `device` multiplies operands of `dtype`; None for a dtype that nobody has described.

    `peak` of the result is in the device's data sheet.
    """
    name = dtype.lower()
    found = FORMATS.get(ALIASES.get(name, name))
    if found is None:
        return None
    if found.kind in WEIGHT_ONLY and found.peak not in device.flop_per_s:
        found = FORMATS[WEIGHT_ONLY[found.kind]]
    peak = native_dtype(found.peak, device)
    on_lanes = peak == "float32" or device.architecture in WITHOUT_MATRIX_UNITS
    kind = "vector" if on_lanes else "half" if peak in ("float16", "tf32") and found.kind == "int8" else found.kind
    return Format(kind=kind, peak=peak, a_B=found.a_B, b_B=found.b_B, c_B=found.c_B)
