"""Seeing and replacing the calls of a model's forward pass, one operator at a time.

The same mode traces a model on the meta device and runs it with numbers, so that operators have the same names in a graph, in a
plan, in a profile and in a bound model. A call is an operator if it reads a parameter or another operator's result, and computes
or rearranges floating-point numbers: masks, positions and shapes that the model derives from its inputs are none.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

ROOT, LOSS = "self", "loss"
"""Paths of calls that the model itself makes, outside its modules, and of those after it."""

MARK = "_windtunnel_producer"

PRODUCTS = ("matmul", "bmm", "mm", "addmm", "baddbmm", "addbmm")
SUMS = ("addmm", "baddbmm", "addbmm")
"""Products with a summand, which stands first in the call."""
SAME = {
    "truediv": "div",
    "divide": "div",
    "true_divide": "div",
    "multiply": "mul",
    "subtract": "sub",
    "rsub": "sub",
    "scaled_dot_product_attention": "attention",
}
ARITHMETIC = frozenset(("add", "sub", "mul", "truediv", "pow", "matmul"))
CASTS = frozenset(("to", "type", "type_as", "float", "half", "bfloat16", "double"))
VIEW_PROPERTIES = frozenset(("T", "mT", "H", "mH"))
NO_OPERATORS = frozenset(
    (
        *("size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "element_size", "data_ptr"),
        *("is_contiguous", "is_floating_point", "is_complex", "get_device", "item", "tolist", "numpy", "requires_grad"),
        *("retain_grad", "register_hook", "backward", "len", "bool", "hash", "repr", "format", "set", "delete", "iter"),
        *("eq", "ne", "lt", "le", "gt", "ge", "argmax", "argmin", "isnan", "isinf", "all", "any", "long", "int"),
        *("zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones", "new_empty", "new_full"),
    )
)


@dataclass(frozen=True, slots=True)
class Call:
    """One operator about to compute: `func(*args, **kwargs)`, named as in `costmodels.operator_graph`."""

    name: str
    kind: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self) -> Any:
        """What torch would have done."""
        return self.func(*self.args, **self.kwargs)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Parameters that the call reads, the weight before the bias."""
        found = [t for t in tensors((self.args, self.kwargs)) if isinstance(t, nn.Parameter)]
        return sorted(found, key=lambda parameter: -parameter.ndim)

    @property
    def operands(self) -> list[Tensor]:
        """The other tensors that it reads, in the order of the call; not the running statistics of a batch norm."""
        found = [t for t in tensors((self.args, self.kwargs)) if not isinstance(t, nn.Parameter)]
        return found[:1] if self.kind == "batch_norm" else found


class Watching(TorchFunctionMode):
    """Hands each operator of `module`'s forward pass, and of a loss computed after it, to `perform`, whose result takes its place.

    Enter it around one forward pass and its loss, each time anew; backward and the optimizer belong outside. Names do not depend
    on what `perform` does, nor on the device or the batch. Casts between floating-point types that the model asks for are left out:
    precision is the plan's affair. A module keeps hooks until `remove`.
    """

    def __init__(self, module: nn.Module, perform: Callable[[Call], Any]) -> None:
        super().__init__()
        self.perform = perform
        self._stack: list[tuple[str, nn.Module | None]] = []
        self._numbers: Counter[tuple[str, str]] = Counter()
        self._pass = object()
        self._written: dict[int, tuple[int, str]] = {}
        self._calls = 0
        self._handles = [
            handle
            for path, part in module.named_modules()
            for handle in (
                part.register_forward_pre_hook(self._entering(path or ROOT)),
                part.register_forward_hook(self._leaving, always_call=True),
            )
        ]

    def remove(self) -> None:
        """Take the hooks off the module; this object watches nothing afterwards."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> "Watching":
        self._stack.clear()
        self._numbers.clear()
        self._written.clear()
        self._pass, self._calls = object(), 0
        super().__enter__()
        return self

    def producer(self, tensor: Tensor) -> str | None:
        """Name of the operator of this pass that made a tensor, or changed it last, if only through a view of its memory.

        None for the model's inputs and what it derives from them.
        """
        mark = getattr(tensor, MARK, None)
        if mark is None or mark[0] is not self._pass:
            return None
        _, moment, name = mark
        written = self._written.get(_memory(tensor), (0, "")) if self._written else (0, "")
        return str(max((moment, name), written)[1])

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        kind = kind_of(func, args, kwargs)
        if kind is None or not any(self._matters(tensor) for tensor in tensors((args, kwargs))):
            return func(*args, **kwargs)
        if kind in CASTS:
            return self._cast(func, args, kwargs)
        call = Call(self._name(kind, args, kwargs), kind, func, args, kwargs)
        target = args[0] if args and isinstance(args[0], Tensor) else None
        version = target._version if target is not None else 0
        result = self.perform(call)
        self._calls += 1
        self._mark(result, call.name)
        if target is not None and target._version != version:
            self._mark((target, target._base), call.name)
            self._written[_memory(target)] = (self._calls, call.name)
        return result

    def _entering(self, path: str) -> Callable[..., None]:
        def enter(module: nn.Module, _inputs: Any) -> None:
            self._stack.append((path, module))

        return enter

    def _leaving(self, _module: nn.Module, _inputs: Any, _output: Any) -> None:
        if self._stack:
            self._stack.pop()

    def _matters(self, tensor: Tensor) -> bool:
        return isinstance(tensor, nn.Parameter) or self.producer(tensor) is not None

    def _name(self, kind: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        path, module = self._stack[-1] if self._stack else (LOSS, None)
        number = self._numbers[path, kind]
        self._numbers[path, kind] += 1
        if module is not None and not self._numbers[path, ""] and _is_main_call(module, args, kwargs):
            self._numbers[path, ""] = 1
            return path
        return f"{path}/{kind}.{number}" if number else f"{path}/{kind}"

    def _cast(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        tensor = args[0]
        wanted = func(torch.empty(0, dtype=torch.float32, device=tensor.device), *args[1:], **kwargs)
        if not isinstance(wanted, Tensor):  # x.type() asks for the name of the type
            return func(*args, **kwargs)
        if wanted.is_floating_point() and wanted.device == tensor.device:
            return tensor
        result = func(*args, **kwargs)
        producer = self.producer(tensor)
        if producer is not None and result.is_floating_point():
            self._mark(result, producer)
        return result

    def _mark(self, made: Any, name: str) -> None:
        for tensor in tensors(made):
            if tensor.is_floating_point():
                setattr(tensor, MARK, (self._pass, self._calls, name))


def _memory(tensor: Tensor) -> int:
    """What tensors that share memory have in common, on the meta device too."""
    return int(tensor.untyped_storage()._cdata)


def tensors(tree: Any) -> Iterator[Tensor]:
    """Tensors in nested arguments or results, in their order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for branch in tree:
            yield from tensors(branch)
    elif isinstance(tree, Mapping):
        for branch in tree.values():
            yield from tensors(branch)


def kind_of(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """The kind of operator that a function of torch is, None for one that is none.

    In-place and reflected variants are the kind that they vary. A product with a parameter on the right is "linear"; one with a
    parameter on the left stays outside the kinds that plans choose for.
    """
    function = _plain_name(func)
    if function is None or function in NO_OPERATORS:
        return None
    if function not in PRODUCTS:
        return SAME.get(function, function)
    left, right = list(tensors((args, kwargs)))[-2:]
    if isinstance(right, nn.Parameter) and right.ndim == 2:
        return "linear"
    return "parameter_matmul" if isinstance(left, nn.Parameter) or isinstance(right, nn.Parameter) else "matmul"


def _plain_name(func: Callable[..., Any]) -> str | None:
    name = getattr(func, "__name__", type(func).__name__)
    if name == "__get__":
        attribute = getattr(getattr(func, "__self__", None), "__name__", "")
        return "transpose" if attribute in VIEW_PROPERTIES else None
    if name.startswith("__"):
        core = name.strip("_")
        return core[1:] if core[1:] in ARITHMETIC and core[0] in "ir" else core
    return str(name).strip("_")


def _is_main_call(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call is what its module is for: a module without parts, the call reads a parameter of it, or it has none."""
    if next(module.children(), None) is not None:
        return False
    own = {id(parameter) for parameter in module.parameters(recurse=False)}
    if not own:
        return type(module).__module__.startswith("torch.nn.modules")
    return any(id(tensor) in own for tensor in tensors((args, kwargs)))
