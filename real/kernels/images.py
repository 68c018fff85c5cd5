"""Where programs are in channels-last images: pixels are counted image by image, reductions run over taps, then channels."""

import triton
import triton.language as tl


@triton.jit
def pixel(number, height, width):  # type: ignore[no-untyped-def]
    """Image (in 64 bits: its offset may be beyond 32), row and column."""
    return (number // (height * width)).to(tl.int64), number // width % height, number % width


@triton.jit
def tap(number, channels, TAPS_W: tl.constexpr):  # type: ignore[no-untyped-def]
    """Channel, and row and column within the filter."""
    place = number // channels
    return number % channels, place // TAPS_W, place % TAPS_W


@triton.jit
def window(at, h, w, channel, step_h, step_w, height, width, mask):  # type: ignore[no-untyped-def]
    """Numbers of images that start `at`, 0 where `mask` is not or the row `h` or the column `w` is outside."""
    inside = mask & (h >= 0) & (h < height) & (w >= 0) & (w < width)
    return tl.load(at + (h * step_h + w * step_w + channel), mask=inside, other=0.0)
