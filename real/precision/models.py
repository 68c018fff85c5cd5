"""The models that come with the library and those that a user names, each with examples of its inputs and its loss."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from real.precision import vision
from real.precision.small_transformer import SmallTransformer
from simcore.errors import InputError, Problem

Inputs = Mapping[str, Any] | Sequence[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A module that can be trained: `example(batch)` draws inputs and targets, `loss(outputs, targets)` is a scalar.

    `source` says where the module comes from, with which version; `sample` describes one sample.
    """

    name: str
    source: str
    sample: str
    module: nn.Module
    example: Callable[[int], tuple[Inputs, Any]]
    loss: Callable[[Any, Any], Any]

    def objective(self, inputs: Inputs, targets: Any) -> Any:
        """Loss of one batch: a forward pass and what comes after it."""
        outputs = self.module(**inputs) if isinstance(inputs, Mapping) else self.module(*inputs)
        return self.loss(outputs, targets)


def build(spec: str) -> Model:
    """One of `NAMES`, a Hugging Face `config.json`, or `package.module:function`.

    A function returns a `Model`, or a module and what it is called with: a function of the batch size that returns a tuple or
    a mapping, or a tuple of tensors whose first dimension is the batch. Without a loss, what the module returns is the end of the
    graph. Weights are random, from torch's generator. Raises `InputError` for a model that it cannot make.
    """
    if spec in _BUILDERS:
        return _BUILDERS[spec]()
    if spec.endswith(".json"):
        from real.precision.language import from_config

        return from_config(Path(spec))
    if ":" in spec:
        return _from_function(spec)
    allowed = f"{', '.join(NAMES)}, a path of a config.json, or package.module:function"
    raise InputError("unknown model", [Problem("model", repr(spec), allowed)])


def _image_classifier(name: str, module: nn.Module, size: tuple[int, int, int], classes: int) -> Model:
    def example(batch: int) -> tuple[Inputs, Tensor]:
        return (torch.randn(batch, *size),), torch.randint(classes, (batch,))

    channels, height, width = size
    return Model(
        name=name,
        source=f"windtunnel {type(module).__name__}, torch {_release()}",
        sample=f"{channels} x {height} x {width} image, {classes} classes",
        module=module,
        example=example,
        loss=functional.cross_entropy,
    )


def _small_transformer() -> Model:
    def example(batch: int) -> tuple[Inputs, Tensor]:
        return (torch.randint(256, (batch, 64)),), torch.randint(10, (batch,))

    return Model(
        name="small_transformer",
        source=f"windtunnel SmallTransformer, torch {_release()}",
        sample="64 tokens of 256 symbols, 10 classes",
        module=SmallTransformer(),
        example=example,
        loss=functional.cross_entropy,
    )


def _language(name: str) -> Model:
    from real.precision import language

    return language.NAMED[name]()


def _from_function(spec: str) -> Model:
    module_name, _, function = spec.partition(":")
    if str(Path.cwd()) not in sys.path:  # an installed command does not look where it is called
        sys.path.insert(0, str(Path.cwd()))
    try:
        made = getattr(import_module(module_name), function)()
    except (ImportError, AttributeError) as error:
        advice = "Name an importable module and a function in it that takes no arguments."
        raise InputError("no such model", [Problem("model", repr(spec), str(error), advice)]) from error
    if isinstance(made, Model):
        return made
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        problem = Problem("model", f"{type(made).__name__} from {spec}", "a Model, or (module, example inputs)")
        raise InputError("not a model", [problem])
    module, inputs = made
    draw = inputs if callable(inputs) else _resized(inputs)
    return Model(
        name=function,
        source=f"{spec}, torch {_release()}",
        sample=f"inputs of {spec}",
        module=module,
        example=lambda batch: (draw(batch), None),
        loss=lambda outputs, _targets: outputs,
    )


def _resized(inputs: Inputs) -> Callable[[int], Inputs]:
    """Examples of any batch from those of one: the first dimension of every tensor is repeated or cut."""

    def one(value: Any, batch: int) -> Any:
        if not isinstance(value, Tensor) or not value.ndim:
            return value
        rows = torch.arange(batch, device="cpu") % value.shape[0]
        return value.cpu()[rows] if value.device.type != "meta" else value.new_empty((batch, *value.shape[1:]))

    def draw(batch: int) -> Inputs:
        if isinstance(inputs, Mapping):
            return {name: one(value, batch) for name, value in inputs.items()}
        given = (inputs,) if isinstance(inputs, Tensor) else inputs
        return tuple(one(value, batch) for value in given)

    return draw


def _release() -> str:
    """Without the build's suffix: the graph does not depend on it."""
    return str(torch.__version__).partition("+")[0]


_BUILDERS: dict[str, Callable[[], Model]] = {
    "resnet50": lambda: _image_classifier("resnet50", vision.ResNet50(), (3, 224, 224), 1000),
    "vgg16": lambda: _image_classifier("vgg16", vision.VGG16(), (3, 224, 224), 1000),
    "vgg16_bn": lambda: _image_classifier("vgg16_bn", vision.VGG16(norm=True), (3, 224, 224), 1000),
    "bert_base": lambda: _language("bert_base"),
    "bert_large": lambda: _language("bert_large"),
    "roberta_base": lambda: _language("roberta_base"),
    "gpt2": lambda: _language("gpt2"),
    "small_resnet": lambda: _image_classifier("small_resnet", vision.SmallResNet(), (1, 28, 28), 10),
    "small_transformer": _small_transformer,
}

NAMES = tuple(_BUILDERS)
