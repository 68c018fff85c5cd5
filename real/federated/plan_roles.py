"""What a client and what the server of a federated plan does in a round, with a span for each of its tasks.

In round i the server offers the model (its stage 2i), a client what it trained (stage i): its answer to the server, its
experts to peers; then the server the list of what to fetch (2i + 1). Who gets something measures it. Experts are mixed as
the plan says, whatever gates come of training: a plan's matrix is its own.
"""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from real.federated.coordinator import GATE
from real.federated.datasets import Images, mnist, small_digits
from real.federated.granting import Grants
from real.federated.local import State, Training, train
from real.federated.member import initial
from real.federated.model import MixtureOfExperts, part_of
from real.federated.orders import SHARE, expert_item
from real.federated.parcels import Layout, Tensors, layout_of
from real.federated.peers import Fetcher, Patience, Peer, PeerService
from real.federated.plan_facts import Facts, rank_name
from simcore.federated.aggregation import domain_aware
from simcore.federated.moe_model import MoEShape
from simcore.plan import Compute, Plan, Transfer

IMAGES = {(1, 28, 28): mnist, (1, 8, 8): small_digits}
MODEL, ANSWER, LIST = "model", "answer", "list"
PATIENCE = Patience(deadline_s=600.0, unreachable_s=30.0)


@dataclass(kw_only=True)
class Post:
    """A rank's way to others, and what it writes down: pieces (task, iteration, start, end, bytes, stage of its source)."""

    rank: int
    facts: Facts
    service: PeerService
    fetcher: Fetcher
    iteration: int = 0
    pieces: list[tuple[str, int, float, float, int, int]] = field(default_factory=list)
    offered: dict[int, float] = field(default_factory=dict)

    def offer(self, stage: int, grants: Mapping[int, tuple[str, ...]], items: Mapping[str, Tensors]) -> None:
        """From now on."""
        named = {rank_name(r): g for r, g in grants.items()}
        self.offered[stage] = time.perf_counter()
        self.service.offer(Grants(number=stage, nonce=self.facts.nonce(stage), valid_s=3600.0, items=named), items)

    def get(self, task: str, source: int, stage: int, layouts: Mapping[str, Layout], nbytes: int) -> dict[str, Tensors]:
        """What `source` offers in its `stage`, as the plan's `task` of `nbytes`."""
        start = time.perf_counter()
        peer = Peer(name=rank_name(source), address=f"127.0.0.1:{self.facts.reach[self.rank][source]}")
        came = self.fetcher.fetch(peer, stage, self.facts.nonce(stage), layouts, PATIENCE)
        self.write(task, start, nbytes, stage)
        return came

    def write(self, task: str, start: float, nbytes: int = 0, stage: int = -1) -> None:
        """A piece that ends now."""
        self.pieces.append((task, self.iteration, start, time.perf_counter(), nbytes, stage))


def shape_of(plan: Plan) -> MoEShape:
    """The model."""
    model: dict[str, Any] = dict(plan.workload["model"])
    return MoEShape(**{**model, "image": tuple(model["image"]), "channels": tuple(model["channels"])})


def item_layouts(shape: MoEShape, plan: Plan, start: State) -> dict[str, Layout]:
    """Types and shapes of everything that is sent."""
    sent = plan.decisions["averaged_by_server"]
    answer = {n for n in start if part_of(n) in sent or (n == GATE and LISTS in plan.decisions)}
    share = int(sum(v.numel() for v in start.values()) * plan.decisions["settings"]["share"])
    expert = layout_of({n: v[0] for n, v in start.items() if part_of(n) == "experts"})
    return {
        MODEL: layout_of({n: v for n, v in start.items() if part_of(n) in sent}),
        ANSWER: layout_of({n: start[n] for n in start if n in answer}),
        SHARE: {"numbers": (torch.float32, (share,))},
        **{expert_item(e): expert for e in range(shape.experts)},
    }


LISTS = "mixing"
"""The decision that says what experts are made of; where it is, clients get lists."""


class Role:
    """What client and server have in common."""

    def __init__(self, plan: Plan, post: Post) -> None:
        self.plan, self.post, self.shape = plan, post, shape_of(plan)
        self.start = initial(self.shape, int(plan.workload["seed"]))
        self.layouts = item_layouts(self.shape, plan, self.start)
        self.ops = {t.id: t.op for t in plan.tasks}
        self.server = plan.n_ranks - 1
        self.there = [int(t.id.split("/")[1]) for t in plan.tasks if t.id.startswith("train/")]
        mixing = plan.decisions.get(LISTS)
        self.rows = {k: np.array(v) for k, v in mixing.items()} if mixing else None

    def entries(self, client: int) -> slice:
        """Of the matrix, those of a client's experts."""
        assert self.rows is not None
        e, ptr = self.shape.experts, self.rows["ptr"]
        return slice(int(ptr[client * e]), int(ptr[(client + 1) * e]))

    def list_layout(self, client: int) -> Layout:
        """Peer, expert and weight of each entry, four bytes each."""
        part = self.entries(client)
        size = (part.stop - part.start,)
        return {"peer": (torch.int32, size), "expert": (torch.int32, size), "weight": (torch.float32, size)}

    def flows(self) -> list[tuple[str, int, int, tuple[str, ...]]]:
        """Task, source, target and items of each flow between clients."""
        found = []
        for task in self.plan.tasks:
            if task.id.startswith("peer/"):
                source, target = (int(x) for x in task.id.removeprefix("peer/").split("->"))
                found.append((task.id, source, target, self._items(source, target)))
        return found

    def _items(self, source: int, target: int) -> tuple[str, ...]:
        if self.rows is None:
            return (SHARE,)
        e = self.shape.experts
        wanted = np.unique(self.rows["source"][self.entries(target)])
        return tuple(expert_item(int(i) % e) for i in wanted if int(i) // e == source)

    def nbytes(self, task: str) -> int:
        op = self.ops[task]
        assert isinstance(op, Transfer)
        return op.nbytes


class Client(Role):
    """Gets the model, trains, offers, fetches, mixes."""

    def __init__(self, plan: Plan, post: Post, number: int) -> None:
        super().__init__(plan, post)
        self.number = number
        self.model = MixtureOfExperts(self.shape)
        self.model.load_state_dict(self.start)
        op = self.ops[f"train/{number}"]
        assert isinstance(op, Compute)
        epochs, batch = int(plan.workload["local_epochs"]), int(plan.workload["batch"])
        steps = op.kernels[0].count
        self.how = Training(epochs=epochs, batch=batch)
        self.data = _samples(self.shape, steps // epochs * batch, number)
        self.into = [f for f in self.flows() if f[2] == number]
        self.out: dict[int, tuple[str, ...]] = {f[2]: f[3] for f in self.flows() if f[1] == number}
        if f"up/{number}" in self.ops:
            self.out[self.server] = (ANSWER,)

    def round(self, i: int) -> float:
        """The loss."""
        post, c = self.post, self.number
        if f"down/{c}" in self.ops:
            came = post.get(f"down/{c}", self.server, 2 * i, {MODEL: self.layouts[MODEL]}, self.nbytes(f"down/{c}"))
            self.model.load_state_dict(came[MODEL], strict=False)
        start = time.perf_counter()
        loss = train(self.model, self.data, self.how, torch.Generator().manual_seed(i * 1009 + c))
        post.write(f"train/{c}", start)
        post.offer(i, self.out, self._offered())
        if f"list/{c}" in self.ops:
            post.get(
                f"list/{c}", self.server, 2 * i + 1, {f"{LIST}-{c}": self.list_layout(c)}, self.nbytes(f"list/{c}")
            )
        came_from = self._fetch(i)
        if f"mix/{c}" in self.ops:
            start = time.perf_counter()
            self._mix(came_from)
            post.write(f"mix/{c}", start)
        return loss

    def _offered(self) -> dict[str, Tensors]:
        state = {n: p.detach() for n, p in self.model.named_parameters()}
        wanted = {item for items in self.out.values() for item in items}
        found: dict[str, Tensors] = {ANSWER: {n: state[n] for n in self.layouts[ANSWER]}} if ANSWER in wanted else {}
        if SHARE in wanted:
            flat = torch.cat([v.flatten() for v in state.values()])
            found[SHARE] = {"numbers": flat[: self.layouts[SHARE]["numbers"][1][0]]}
        experts = {n: v for n, v in state.items() if part_of(n) == "experts"}
        for e in range(self.shape.experts):
            if expert_item(e) in wanted:
                found[expert_item(e)] = {n: v[e].clone() for n, v in experts.items()}
        return found

    def _fetch(self, i: int) -> dict[int, dict[str, Tensors]]:
        """From all peers at a time."""

        def one(flow: tuple[str, int, int, tuple[str, ...]]) -> dict[str, Tensors]:
            task, source, _, items = flow
            return self.post.get(task, source, i, {n: self.layouts[n] for n in items}, self.nbytes(task))

        with ThreadPoolExecutor(max(len(self.into), 1)) as pool:
            came = list(pool.map(one, self.into))
        return {flow[1]: items for flow, items in zip(self.into, came, strict=True)}

    def _mix(self, came: Mapping[int, dict[str, Tensors]]) -> None:
        """Equation (11)."""
        assert self.rows is not None
        e, part = self.shape.experts, self.entries(self.number)
        row = np.repeat(np.arange(len(self.rows["ptr"]) - 1), np.diff(self.rows["ptr"]))[part] % e
        with torch.no_grad():
            for name, own in self.model.named_parameters():
                if part_of(name) != "experts":
                    continue
                made = torch.zeros_like(own)
                for expert, source, weight in zip(
                    row, self.rows["source"][part], self.rows["weight"][part], strict=True
                ):
                    owner, index = divmod(int(source), e)
                    got = own[index] if owner == self.number else came[owner][expert_item(index)][name]
                    made[expert].add_(got, alpha=float(weight))
                own.copy_(made)


class Server(Role):
    """Offers the model, gets answers, averages, offers lists."""

    def round(self, i: int) -> float:
        post = self.post
        if "aggregate" not in self.ops:
            return 0.0
        shared = {n: self.start[n] for n in self.layouts[MODEL]}
        post.offer(2 * i, dict.fromkeys(self.there, (MODEL,)), {MODEL: shared})
        answers = self._answers(i)
        start = time.perf_counter()
        for name in shared:
            self.start[name] = torch.stack([a[name] for a in answers]).mean(dim=0)
        if self.rows is not None:
            gates = np.stack([a[GATE].numpy() for a in answers])
            settings = self.plan.decisions["settings"]
            domain_aware(gates, settings["P"], settings["tau"])
        post.write("aggregate", start)
        if self.rows is not None:
            lists = {f"{LIST}-{c}": self._list(c) for c in self.there}
            self._offer_lists(i, lists)
        return 0.0

    def _answers(self, i: int) -> list[Tensors]:
        layout = {ANSWER: self.layouts[ANSWER]}

        def one(c: int) -> Tensors:
            return self.post.get(f"up/{c}", c, i, layout, self.nbytes(f"up/{c}"))[ANSWER]

        with ThreadPoolExecutor(len(self.there)) as pool:
            return list(pool.map(one, self.there))

    def _list(self, client: int) -> Tensors:
        assert self.rows is not None
        part, e = self.entries(client), self.shape.experts
        source = torch.from_numpy(self.rows["source"][part])
        return {
            "peer": (source // e).int(),
            "expert": (source % e).int(),
            "weight": torch.from_numpy(self.rows["weight"][part]).float(),
        }

    def _offer_lists(self, i: int, lists: dict[str, Tensors]) -> None:
        self.post.offer(2 * i + 1, {c: (f"{LIST}-{c}",) for c in self.there}, lists)


def _samples(shape: MoEShape, count: int, number: int) -> Images:
    """`count` digits of a client, drawn with repetition."""
    images = IMAGES[shape.image]()
    rows = torch.randint(len(images.classes), (count,), generator=torch.Generator().manual_seed(number))
    return Images(images.pixels[rows], images.classes[rows])
