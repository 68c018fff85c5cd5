"""Which arithmetic a device uses for a dtype."""

from costmodels.specs import DeviceSpec

FALLBACK = {
    "tf32": "float32",
    "bfloat16": "float32",
    "float16": "float32",
    "fp8": "bfloat16",
    "int8": "float16",
    "int4": "int8",
}
"""Where a device has no arithmetic of a dtype, it converts and uses that of another."""


def native_dtype(dtype: str, device: DeviceSpec) -> str:
    """The dtype whose arithmetic the device uses for `dtype`."""
    while dtype not in device.flop_per_s:
        if dtype not in FALLBACK:
            return next(iter(device.flop_per_s))
        dtype = FALLBACK[dtype]
    return dtype
