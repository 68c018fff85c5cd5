"""The mixture of experts of `simcore.federated.moe_model.MoEShape` as a torch module.

Experts are stacked: one tensor holds the weights of all, so that the products of all experts are one batched product, and an expert
is a row that can be sent. Every expert sees every sample and the gate's weights, zero but for the chosen ones, pick: gradients are
those of sparse routing, and for few small experts on a CPU nothing is faster.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from simcore.federated.moe_model import MoEShape


class Experts(nn.Module):
    """`experts` networks of one hidden layer with stacked weights."""

    def __init__(self, shape: MoEShape) -> None:
        super().__init__()
        e, w, h, c = shape.experts, shape.width, shape.hidden, shape.classes
        self.up = nn.Parameter(torch.randn(e, w, h) * (2 / w) ** 0.5)  # He et al. 2015, as in the embedding network
        self.up_bias = nn.Parameter(torch.zeros(e, h))
        self.down = nn.Parameter(torch.randn(e, h, c) * h**-0.5)
        self.down_bias = nn.Parameter(torch.zeros(e, c))

    def forward(self, features: Tensor) -> Tensor:
        """(experts, samples, classes) from (samples, width): every expert's answer to every sample."""
        hidden = torch.baddbmm(self.up_bias[:, None], features.expand(len(self.up), -1, -1), self.up).relu()
        return torch.baddbmm(self.down_bias[:, None], hidden, self.down)


class MixtureOfExperts(nn.Module):
    """Embedding network, gate and experts. `balance` is the load-balancing loss of the last forward pass in training."""

    def __init__(self, shape: MoEShape) -> None:
        super().__init__()
        self.shape = shape
        layers: list[nn.Module] = []
        before = shape.image[0]
        for filters in shape.channels:
            layers += [nn.Conv2d(before, filters, 3, stride=2, padding=1), nn.ReLU()]
            before = filters
        layers += [nn.Flatten(), nn.Linear(shape.flat, shape.width), nn.ReLU()]
        for layer in layers:
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        self.embedding = nn.Sequential(*layers)
        self.gate = nn.Linear(shape.width, shape.experts, bias=False)
        self.experts = Experts(shape)
        self.balance = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        """(samples, classes) scores of images (samples, channels, height, width)."""
        features = self.embedding(x)
        weight = self.route(self.gate(features))
        return torch.einsum("enc,ne->nc", self.experts(features), weight)

    def route(self, scores: Tensor) -> Tensor:
        """(samples, experts) weights: softmax over the `top_k` largest scores, 0 for the others.

        Sets `balance`, the loss of Switch Transformers (Fedus et al. 2022, equation 4): experts * sum over experts of the share of
        visits times the mean probability; 1 where both are even.
        """
        top, chosen = scores.topk(self.shape.top_k, dim=1)
        weight = torch.zeros_like(scores).scatter(1, chosen, functional.softmax(top, dim=1))
        visits = (weight.detach() > 0).float().mean(dim=0) / self.shape.top_k
        self.balance = self.shape.experts * (visits * functional.softmax(scores, dim=1).mean(dim=0)).sum()
        return weight


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to: embedding, gate or experts."""
    return name.split(".")[0]
