"""Sizes of a convolution: what follows from the shapes of image and filter, stride, padding and dilation."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from costmodels.errors import Problem
from real.kernels.checking import equal_problem, refuse

Pair = int | tuple[int, int]
"""One number for both axes, or (height, width)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """A convolution of (batch, channels, height, width) with (out_channels, channels / groups, *taps)."""

    batch: int
    channels: int
    height: int
    width: int
    out_channels: int
    taps: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of the output (torch.nn.Conv2d's formula)."""
        sizes = zip((self.height, self.width), self.taps, self.stride, self.padding, self.dilation, strict=True)
        height, width = ((size + 2 * pad - dil * (taps - 1) - 1) // step + 1 for size, taps, step, pad, dil in sizes)
        return height, width

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.out_channels, *self.out_size)

    @property
    def out_pixels(self) -> int:
        return self.batch * self.out_size[0] * self.out_size[1]

    @property
    def pixels(self) -> int:
        return self.batch * self.height * self.width

    @property
    def group_channels(self) -> int:
        return self.channels // self.groups

    @property
    def group_out_channels(self) -> int:
        return self.out_channels // self.groups

    @property
    def reduction(self) -> int:
        """Products that one element of the output sums."""
        return self.taps[0] * self.taps[1] * self.group_channels

    @property
    def wide_loads(self) -> bool:
        """Whether the channels of a pixel and of a tap are whole wide loads."""
        return self.group_channels % 16 == 0 and self.group_out_channels % 16 == 0

    @property
    def flops(self) -> int:
        """Of the output and of either gradient; taps that fall on padding count, as in published counts."""
        return 2 * self.out_pixels * self.out_channels * self.reduction

    @property
    def sizes(self) -> dict[str, int]:
        """As kernels name them; channels are those of a group."""
        out_height, out_width = self.out_size
        return {
            "batch": self.batch,
            "height": self.height,
            "width": self.width,
            "channels": self.group_channels,
            "out_height": out_height,
            "out_width": out_width,
            "out_channels": self.group_out_channels,
        }

    @property
    def constants(self) -> dict[str, int]:
        """As kernels name them: they are compiled for each, which makes taps of a 1 x 1 filter cost nothing."""
        names = ("TAPS", "STRIDE", "PAD", "DILATION")
        pairs = (self.taps, self.stride, self.padding, self.dilation)
        return {
            f"{name}_{axis}": pair[i] for name, pair in zip(names, pairs, strict=True) for i, axis in enumerate("HW")
        }

    @staticmethod
    def strides(**tensors: torch.Tensor) -> dict[str, int]:
        """Strides of channels-last tensors: of an image x_n, x_h, x_w; of the filter w_o, w_h, w_w."""
        found: dict[str, int] = {}
        for name, tensor in tensors.items():
            first, _, height, width = tensor.stride()
            found |= {f"{name}_{'o' if name == 'w' else 'n'}": first, f"{name}_h": height, f"{name}_w": width}
        return found


def geometry_of(
    kernel: str,
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Geometry:
    """Raises InputError where image, filter and groups do not fit together or nothing comes out."""
    if len(x_shape) != 4 or len(w_shape) != 4:
        given = f"{tuple(x_shape)} and {tuple(w_shape)}"
        refuse(kernel, [Problem("shapes", given, "(n, c, h, w) and (o, c / groups, kh, kw)")])
    found = Geometry(
        batch=x_shape[0],
        channels=x_shape[1],
        height=x_shape[2],
        width=x_shape[3],
        out_channels=w_shape[0],
        taps=(w_shape[2], w_shape[3]),
        stride=_pair(stride),
        padding=_pair(padding),
        dilation=_pair(dilation),
        groups=groups,
    )
    empty = min(found.out_size) < 1
    refuse(
        kernel,
        (
            equal_problem("channels of the filter", w_shape[1] * groups, found.channels),
            equal_problem("out_channels % groups", found.out_channels % groups, 0),
            Problem("x", f"{tuple(x_shape)}", "an image as large as the filter", "Pad it.") if empty else None,
        ),
    )
    return found


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """`x` with neighbouring channels next to each other; copied where it is not."""
    x = x.contiguous(memory_format=torch.channels_last)
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
