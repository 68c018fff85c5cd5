"""Flower's ServerApp: rounds as `simcore.federated.strategies.decide` has them, in a simulation or a deployment.

A client that does not answer, or answers with something else, is left out of the round and named. The run's folder gets
`rounds.json`, written anew after each round, and the server's model.
"""

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from costmodels.files import write_atomically
from real.federated.coordinator import Answer, Coordinator
from real.federated.flower_messages import ANSWER, FOUND, METRICS, ORDERS, ROUND, SHARED, packed, unpacked
from real.federated.member import keep
from real.federated.orders import client_name, orders_of
from real.federated.parcels import BadParcelError, layout_of
from real.federated.settings import Settings
from simcore.federated.rounds import Round

ROUNDS_FILE, SERVER_FILE = "rounds.json", "server.safetensors"
LOOK_S = 0.2

app = ServerApp()


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundDone:
    """One round. `absent` says by name why somebody's training did not count, `unheard` from whom
    others could not fetch, and how. Accuracies are means over clients: `before` with what the round before made, `trained`
    after training.
    """

    number: int
    seconds: float
    trained_s: float
    there: tuple[int, ...]
    absent: dict[str, str]
    unheard: dict[str, str]
    loss: float | None
    trained: float | None
    before: float | None
    server_B: int
    peer_B: int


@dataclass(kw_only=True)
class Crowd:
    """Flower's nodes, and which of the `clients` each has said to be. `late`: by message those that have said nothing yet
    and may still answer it.
    """

    nodes: list[int]
    clients: int
    client_at: dict[int, int] = field(default_factory=dict)
    late: dict[str, int] = field(default_factory=dict)

    def name(self, node: int) -> str:
        """Of a client: who the node said to be, or the only one that no other node is. Until that is known, of the node."""
        if node in self.client_at:
            return client_name(self.client_at[node])
        left = set(range(self.clients)) - set(self.client_at.values())
        return client_name(left.pop()) if len(left) == 1 and len(self.nodes) == self.clients else f"node {node}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Replies:
    """By node: what each sent, and of those that count as absent why. `open`: by message the nodes that have not answered."""

    came: dict[int, Message]
    absent: dict[int, str]
    open: dict[str, int]


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """All rounds of a run."""
    torch.set_num_threads(1)
    settings = Settings.of(context.run_config)
    settings.root.mkdir(parents=True, exist_ok=True)
    crowd = Crowd(nodes=there(grid, settings), clients=settings.clients)
    coordinator = Coordinator(settings.shape, settings.strategy, settings.clients, settings.seed)
    done: list[RoundDone] = []
    for _ in range(settings.rounds):
        done.append(play(grid, settings, coordinator, crowd))
        write_atomically(settings.root / ROUNDS_FILE, json.dumps([asdict(d) for d in done], indent=1) + "\n")
        keep(settings.root / SERVER_FILE, coordinator.shared, coordinator.number)


def there(grid: Grid, settings: Settings) -> list[int]:
    """Nodes, when there are as many as clients. Raises `TimeoutError` after the deadline."""
    end = time.monotonic() + settings.deadline
    while len(nodes := sorted(grid.get_node_ids())) < settings.clients:
        if time.monotonic() > end:
            raise TimeoutError(f"{len(nodes)} of {settings.clients} clients came")
        time.sleep(LOOK_S)
    return nodes


def play(grid: Grid, settings: Settings, coordinator: Coordinator, crowd: Crowd) -> RoundDone:
    """One round: training, the decision, the exchange."""
    begun, number = time.monotonic(), coordinator.number
    _hear_late(grid, crowd)
    content = {SHARED: packed(coordinator.shared), ROUND: ConfigRecord({"number": number})}
    asked = {
        node: Message(RecordDict(dict(content)), dst_node_id=node, message_type="train", group_id=str(number))
        for node in crowd.nodes
    }
    replies = collect(grid, asked, settings.quorum, settings.deadline)
    answers, metrics, absent = _answers(coordinator, crowd, replies)
    crowd.late |= {i: node for i, node in replies.open.items() if node not in crowd.client_at}
    trained_s = time.monotonic() - begun
    decided = coordinator.decide(answers)
    unheard = _exchange(grid, settings, decided, crowd)
    return RoundDone(
        number=number,
        seconds=time.monotonic() - begun,
        trained_s=trained_s,
        there=tuple(sorted(answers)),
        absent=absent,
        unheard=unheard,
        loss=_mean(metrics, "loss"),
        trained=_mean(metrics, "trained"),
        before=_mean(metrics, "before"),
        server_B=decided.server_B,
        peer_B=decided.peer_B,
    )


def collect(grid: Grid, asked: dict[int, Message], quorum: float, timeout_s: float) -> Replies:
    """What is answered until a share of `quorum` has answered, or until the time is over."""
    ids = list(grid.push_messages(asked.values()))
    node_of = dict(zip(ids, asked, strict=True))
    came: dict[int, Message] = {}
    absent: dict[int, str] = {}
    end, open_ids = time.monotonic() + timeout_s, set(ids)
    while open_ids and len(came) < ceil(quorum * len(asked)) and time.monotonic() < end:
        for reply in grid.pull_messages(list(open_ids)):
            open_ids.discard(reply.metadata.reply_to_message_id)
            node = node_of[reply.metadata.reply_to_message_id]
            if reply.has_error():
                absent[node] = f"failed: {reply.error.reason}"
            else:
                came[node] = reply
        time.sleep(LOOK_S)
    left = {i: node_of[i] for i in open_ids}
    return Replies(came=came, absent=absent | dict.fromkeys(left.values(), "late"), open=left)


def _answers(
    coordinator: Coordinator, crowd: Crowd, replies: Replies
) -> tuple[dict[int, Answer], list[dict[str, float]], dict[str, str]]:
    """Answers that are what they have to be, what clients measured, and who is absent."""
    layout, absent = layout_of(coordinator.expected()), dict(replies.absent)
    answers: dict[int, Answer] = {}
    metrics: list[dict[str, float]] = []
    for node, reply in sorted(replies.came.items()):
        try:
            state, found = unpacked(reply.content[ANSWER], layout), dict(reply.content[METRICS])
            client = _client(found, crowd, node)
            answers[client] = Answer(state=state, samples=max(int(found["samples"]), 0))
            metrics.append({k: float(v) for k, v in found.items()})
        except (BadParcelError, KeyError, TypeError, ValueError) as error:
            absent[node] = f"garbage: {error}"
    return answers, metrics, {crowd.name(n): why for n, why in sorted(absent.items())}


def _client(found: dict[str, Any], crowd: Crowd, node: int) -> int:
    """Who a node says to be: nobody who is somewhere else, and for good."""
    client = int(found["client"])
    others = {c for n, c in crowd.client_at.items() if n != node}
    if not 0 <= client < crowd.clients or client in others or crowd.client_at.get(node, client) != client:
        raise BadParcelError(f"says to be client {client}")
    crowd.client_at[node] = client
    return client


def _hear_late(grid: Grid, crowd: Crowd) -> None:
    """Learn who is who from answers that came too late to count."""
    for reply in grid.pull_messages(list(crowd.late)) if crowd.late else ():
        node = crowd.late.pop(reply.metadata.reply_to_message_id)
        with suppress(BadParcelError, KeyError, TypeError, ValueError):
            if not reply.has_error():
                _client(dict(reply.content[METRICS]), crowd, node)


def _exchange(grid: Grid, settings: Settings, decided: Round, crowd: Crowd) -> dict[str, str]:
    """Hand out orders, and hear who failed whom: by name, how."""
    node_of = {c: n for n, c in crowd.client_at.items()}
    asked = {
        node_of[c]: Message(
            RecordDict({ORDERS: ConfigRecord({"json": o.model_dump_json()})}),
            dst_node_id=node_of[c],
            message_type="query.exchange",
            group_id=str(decided.number),
        )
        for c, o in orders_of(decided, settings.peer_timeout).items()
    }
    replies = collect(grid, asked, 1.0, settings.peer_timeout + settings.deadline)
    unheard = {crowd.name(node): why for node, why in replies.absent.items()}
    for reply in replies.came.values():
        found = reply.content[FOUND]
        unheard |= {str(p): str(how) for p, how in zip(found["failed"], found["how"], strict=True)}
    return dict(sorted(unheard.items()))


def _mean(metrics: list[dict[str, float]], name: str) -> float | None:
    return sum(m[name] for m in metrics) / len(metrics) if metrics else None
