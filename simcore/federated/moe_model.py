"""The mixture of experts that clients train: its shape, its parameters by part, and the kernels of a training step.

An embedding network (3 x 3 convolutions of stride 2, then a linear layer) makes `width` features of an image. A gate, one row of
weights for each expert and no bias, sends every sample to its `top_k` experts: networks of one hidden layer that answer with class
scores.
"""

from dataclasses import dataclass
from math import ceil

from costmodels.kernels import WIDTH_B, Kernel, flops, kernel
from simcore.federated.exchange import ModelParts


@dataclass(frozen=True, slots=True, kw_only=True)
class MoEShape:
    """Sizes of the model; `image` is (channels, height, width), `channels` those of the convolutions, `hidden` an expert's."""

    image: tuple[int, int, int]
    channels: tuple[int, ...]
    width: int
    experts: int
    hidden: int
    top_k: int
    classes: int
    dtype: str = "float32"

    def convolutions(self) -> list[tuple[int, int, int, int, int, int]]:
        """Of each: channels, height and width of what it reads, then of what it writes."""
        found = []
        before, height, width = self.image
        for filters in self.channels:
            out = (filters, ceil(height / 2), ceil(width / 2))
            found.append((before, height, width, *out))
            before, height, width = out
        return found

    @property
    def flat(self) -> int:
        """Numbers that the linear layer reads."""
        channels, height, width = self.convolutions()[-1][3:] if self.channels else self.image
        return channels * height * width

    @property
    def embedding_elements(self) -> int:
        convolutions = sum(c * 9 * f + f for c, _, _, f, _, _ in self.convolutions())
        return convolutions + self.flat * self.width + self.width

    @property
    def gate_elements(self) -> int:
        return self.width * self.experts

    @property
    def expert_elements(self) -> int:
        return self.width * self.hidden + self.hidden + self.hidden * self.classes + self.classes

    @property
    def elements(self) -> int:
        return self.embedding_elements + self.gate_elements + self.experts * self.expert_elements

    @property
    def parts(self) -> ModelParts:
        """Bytes of each part, as clients send them."""
        size = int(WIDTH_B[self.dtype])
        return ModelParts(
            embedding_B=self.embedding_elements * size,
            gate_B=self.gate_elements * size,
            expert_B=self.expert_elements * size,
            experts=self.experts,
        )


def step_kernels(
    shape: MoEShape, batch: int, optimizer: str, count: int = 1, *, dense: bool = False
) -> tuple[Kernel, ...]:
    """`count` training steps of `batch` samples that the gate spreads evenly over the experts; `dense`: all see all."""
    d, visits = shape.dtype, batch * (shape.experts if dense else shape.top_k)
    each = ceil(visits / shape.experts)
    found: list[Kernel] = []
    for i, (c, h, w, f, out_h, out_w) in enumerate(shape.convolutions()):
        sizes = {"batch": batch, "channels": c, "height": h, "width": w, "filters": f, "kernel_h": 3, "kernel_w": 3}
        sizes |= {"out_h": out_h, "out_w": out_w, "groups": 1}
        found += [kernel("conv2d", d, count=count, **sizes)]
        found += [kernel("conv2d_backward", d, count=count, **sizes, data=int(i > 0))]
        found += _both("relu", d, count, rows=batch, cols=f * out_h * out_w)
    found += _product(d, count, 1, batch, shape.width, shape.flat)
    found += _both("relu", d, count, rows=batch, cols=shape.width)
    found += _product(d, count, 1, batch, shape.experts, shape.width)
    found += _both("softmax", d, count, rows=batch, cols=shape.experts)
    if not dense:
        found += [kernel("copy", d, count=4 * count, elements=visits * shape.width)]  # to experts and back, both ways
    found += _product(d, count, shape.experts, each, shape.hidden, shape.width)
    found += _both("relu", d, count, rows=visits, cols=shape.hidden)
    found += _product(d, count, shape.experts, each, shape.classes, shape.hidden)
    found += _both("cross_entropy", d, count, rows=batch, vocab=shape.classes)
    found += [kernel(optimizer, d, count=count, params=shape.elements)]
    return tuple(found)


def step_flops(shape: MoEShape, batch: int, *, dense: bool = False) -> float:
    """Of products and convolutions of one step."""
    kernels = step_kernels(shape, batch, "sgd", dense=dense)
    return sum(flops(k) for k in kernels if k.name in ("gemm", "conv2d", "conv2d_backward"))


def averaging_kernels(elements: int, clients: int, dtype: str) -> tuple[Kernel, ...]:
    """The server reads `elements` numbers of every client and writes their mean."""
    if elements == 0 or clients == 0:
        return ()
    return (kernel("stream", dtype, reads=elements * clients, writes=elements),)


def similarity_kernels(shape: MoEShape, clients: int) -> tuple[Kernel, ...]:
    """Cosines of all pairs of experts: one product, read once more for the largest of each row."""
    rows = clients * shape.experts
    return (
        kernel("gemm", shape.dtype, m=rows, n=rows, k=shape.width),
        kernel("stream", shape.dtype, reads=rows * rows, writes=rows),
    )


def mixing_kernels(shape: MoEShape, sources: int) -> tuple[Kernel, ...]:
    """A client's experts as weighted sums of `sources` experts in all."""
    size = shape.expert_elements
    return (kernel("stream", shape.dtype, reads=sources * size, writes=shape.experts * size),)


def _both(name: str, dtype: str, count: int, **sizes: int) -> list[Kernel]:
    return [kernel(name, dtype, count=count, **sizes), kernel(f"{name}_backward", dtype, count=count, **sizes)]


def _product(dtype: str, count: int, batch: int, m: int, n: int, k: int) -> list[Kernel]:
    """Forward, gradient of the input, gradient of the weight."""
    shapes = ((m, n, k), (m, k, n), (n, k, m))
    return [kernel("gemm", dtype, count=count, batch=batch, m=a, n=b, k=c) for a, b, c in shapes]
