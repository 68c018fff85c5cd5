"""An actor's model as it generates: matrices that the 3D-HybridEngine gathers, and what tensor parallelism leaves whole.

Embedding, norms and head of a rank's own stage are those that it trains. Those of other stages come from there for as long as it
generates, beside the matrices that the paper counts (HybridFlow, table 2).
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import LlamaForCausalLM

from real.rlhf.engine import HybridEngine, Key
from real.rlhf.parallel import MATRICES, local, part_of, put, tensor_parallel
from real.rlhf.part import Part
from real.rlhf.stages import Elsewhere, Stage
from simcore.hybridflow.resharding import resharding


class Generator:
    """Between training and generation of `trained`, this rank's part of the actor."""

    def __init__(self, trained: LlamaForCausalLM, part: Part, stage: Stage, pipeline: dist.ProcessGroup) -> None:
        """`pipeline` has the ranks of all stages, in their order. Every rank of the process group must call it."""
        of = resharding(part.degrees, "hybridflow")
        self.trained, self.stage, self.pipeline = trained, stage, pipeline
        self.device, self.spans = part.device, part.spans
        self.over = DeviceMesh.from_group(part.groups.of(of.grouping.groups("gen_tp")), part.device.type)
        micro_dp = part.groups.of(of.grouping.groups("micro_dp"))
        layers = len(trained.model.layers)
        self.engine = HybridEngine(of, dist.get_rank(), layers, micro_dp)
        self.engine.shards = {key: local(p.data) for key, p in _matrices(trained).items()}
        self.model = _skeleton(trained, self.over)
        self.whole: list[dict[str, torch.Size]] = [{} for _ in range(stage.count)]
        """Names and shapes of what is whole, by stage."""
        for name, parameter in _whole(self.model).items():
            self.whole[_stage_of(name, layers // stage.count, stage.count)][name] = parameter.shape
        for name in self.whole[stage.number]:
            _set(self.model, name, trained.get_parameter(name))
        self.whole_B = 0
        """Bytes of what is whole that came from other stages in the last `open`."""

    @torch.no_grad()
    def open(self) -> LlamaForCausalLM:
        """The model to generate with. Every rank must call it."""
        self.spans.part("transition")
        for (layer, name), matrix in self.engine.gather(self.spans).items():
            self._put(layer, name, matrix)
        self.whole_B = 0
        for source in range(self.stage.count if self.stage.count > 1 else 0):
            self._fetch(source)
        self._bind()
        return self.model

    def close(self) -> None:
        """Only what is trained stays in memory."""
        self.spans.part("transition")
        for (layer, name), matrix in self.engine.generated.items():
            self._put(layer, name, torch.empty_like(matrix, device="meta"))
        for source in set(range(self.stage.count)) - {self.stage.number}:
            for name, shape in self.whole[source].items():
                _set(self.model, name, _fixed(torch.empty(shape, device="meta")))
        self.engine.release()
        self._bind()

    def _fetch(self, source: int) -> None:
        """What is whole on one stage, to all stages."""
        mine, shapes = source == self.stage.number, self.whole[source]
        sizes = [shape.numel() for shape in shapes.values()]
        own = [self.trained.get_parameter(name).flatten() for name in shapes] if mine else []
        flat = torch.cat(own) if mine else torch.empty(sum(sizes), device=self.device)
        with self.spans.sending("reshard", flat.nbytes):
            dist.broadcast(flat, group=self.pipeline, group_src=source)
        if not mine:
            self.whole_B += flat.nbytes
            for (name, shape), found in zip(shapes.items(), flat.split(sizes), strict=True):
                _set(self.model, name, _fixed(found.view(shape)))

    def _put(self, layer: int, name: str, matrix: Tensor) -> None:
        module = self.model.model.layers[layer].get_submodule(name)
        module.weight = part_of(matrix, MATRICES[name], self.over)

    def _bind(self) -> None:
        """The training model's matrices are where the engine keeps them."""
        for key, parameter in _matrices(self.trained).items():
            put(parameter, self.engine.shards[key])


def _matrices(model: nn.Module) -> dict[Key, nn.Parameter]:
    """Those of the layers that are here."""
    layers = [(i, layer) for i, layer in enumerate(model.model.layers) if not isinstance(layer, Elsewhere)]
    return {(i, name): layer.get_submodule(name).weight for i, layer in layers for name in MATRICES}


def _whole(model: nn.Module) -> dict[str, nn.Parameter]:
    """Everything but matrices; what is tied by both of its names."""
    named = model.named_parameters(remove_duplicate=False)
    return {name: p for name, p in named if not name.removesuffix(".weight").endswith(tuple(MATRICES))}


def _stage_of(name: str, layers: int, stages: int) -> int:
    """Of a parameter, with so many layers in each stage."""
    if name.startswith("model.layers."):
        return int(name.split(".")[2]) // layers
    return 0 if name.startswith("model.embed_tokens.") else stages - 1


def _set(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, parameter)


def _fixed(x: Tensor) -> nn.Parameter:
    return nn.Parameter(x, requires_grad=False)


def _skeleton(trained: LlamaForCausalLM, over: DeviceMesh) -> LlamaForCausalLM:
    """A model to generate with, without memory but for rotations."""
    with torch.device("meta"):
        made = LlamaForCausalLM(trained.config)
    tensor_parallel(made, over)
    made.model.rotary_emb = trained.model.rotary_emb
    return made.eval()
