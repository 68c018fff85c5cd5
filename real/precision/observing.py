"""When operators begin and end, forward and backward."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor

from costmodels.precision import Way


class Observer(Protocol):
    """Told where each operator begins and ends. Its backward is all that autograd does between its result and its operands."""

    def begin(self, operator: str, way: Way) -> None: ...

    def end(self, operator: str, way: Way) -> None: ...


def watch_backward(operator: str, made: Sequence[Tensor], below: Sequence[Any], observer: Observer) -> None:
    """Tell `observer` of the backward pass of an operator that made tensors from those with `below` as their autograd nodes.

    It begins before the first of its autograd nodes and ends after the last of them has run: they form one operator, so the engine
    runs nothing else between them but what it may run in any order. Adding gradients to parameters is not part of it.
    """
    nodes = list(dict.fromkeys(_between([t.grad_fn for t in made], {id(node) for node in below if node is not None})))
    state = {"begun": False, "left": len(nodes)}

    def before(_gradients: Any) -> None:
        if not state["begun"]:
            state["begun"] = True
            observer.begin(operator, "backward")

    def after(_inputs: Any, _outputs: Any) -> None:
        state["left"] -= 1
        if state["left"] == 0:
            observer.end(operator, "backward")

    for node in nodes:
        node.register_prehook(before)
        node.register_hook(after)


def _between(tops: Sequence[Any], below: set[int]) -> Iterator[Any]:
    waiting, seen = [node for node in tops if node is not None], set(below)
    while waiting:
        node = waiting.pop()
        if id(node) in seen or type(node).__name__ == "AccumulateGrad":
            continue
        seen.add(id(node))
        yield node
        waiting += [following for following, _ in node.next_functions if following is not None]
