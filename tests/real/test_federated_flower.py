"""Flower's apps: in its simulation and deployed they make the same model; who fails is named and the round goes on."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

flwr = pytest.importorskip("flwr")

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402

from real.federated import flower_client, flower_server  # noqa: E402
from real.federated.deployment import deployed, finished, simulated, submit  # noqa: E402
from real.federated.federation import LocalFederation  # noqa: E402
from real.federated.local import State  # noqa: E402
from real.federated.member import OWN, kept  # noqa: E402
from real.federated.orders import client_name  # noqa: E402
from real.federated.settings import Settings  # noqa: E402

SMALL: dict[str, Any] = {"data": "digits", "width": 8, "experts": 3, "hidden": 6, "top-k": 2, "epochs": 1, "P": 2}


@pytest.fixture(autouse=True)
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages ask who makes them."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class DirectGrid:
    """Flower's grid without Flower's processes: a node's message is handled when the server looks for its answer."""

    def __init__(self, config: dict[str, Any], clients: int, spoil: Callable[[int, Message], Message | None]) -> None:
        self.contexts = {
            100 + c: Context(
                run_id=1, node_id=100 + c, node_config={"partition-id": c}, state=RecordDict(), run_config=config
            )
            for c in range(clients)
        }
        self.spoil = spoil
        self.sent: dict[str, Message] = {}

    def get_node_ids(self) -> list[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            ids.append(f"m{len(self.sent)}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            self.sent[ids[-1]] = message
        return ids

    def pull_messages(self, ids: Iterable[str]) -> Iterator[Message]:
        for i in ids:
            message = self.sent[i]
            node = message.metadata.dst_node_id
            try:
                reply = flower_client.app(message, self.contexts[node])
            except Exception as error:
                reply = Message(Error(code=1, reason=str(error)), reply_to=message)
            found = self.spoil(node - 100, reply)
            if found is not None:
                yield found


def run(
    folder: Path, spoil: Callable[[int, Message], Message | None] = lambda c, m: m, **more: Any
) -> list[dict[str, Any]]:
    config = {**SMALL, "clients": 4, "rounds": 2, "folder": str(folder), **more}
    grid = DirectGrid(config, 4, spoil)
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config)
    flower_server.app(grid, context)
    found: list[dict[str, Any]] = json.loads((folder / "rounds.json").read_text())
    return found


def models(folder: Path, clients: int) -> list[State]:
    return [kept(folder / client_name(c) / OWN)[0] for c in range(clients)]


def test_rounds_are_those_of_the_planner(tmp_path: Path) -> None:
    done = run(tmp_path)
    given = Settings.of({**SMALL, "clients": 4})
    whole = LocalFederation(given.shape, given.parts(), given.strategy, given.training, given.seed)
    wanted = [whole.round() for _ in range(2)]
    for model, state in zip(models(tmp_path, 4), whole.states, strict=True):
        for name in state:
            torch.testing.assert_close(model[name], state[name], rtol=1e-5, atol=1e-6)
    assert [(d["server_B"], d["peer_B"]) for d in done] == [(w.server_B, w.peer_B) for w in wanted]
    assert done[1]["before"] == pytest.approx(wanted[0].aggregated)
    assert not done[0]["absent"] and not done[0]["unheard"]


def garbage(client: int, reply: Message) -> Message:
    """Client 2 answers training with the shapes of something else."""
    if client == 2 and "answer" in reply.content:
        record = reply.content["answer"]
        names = list(record)
        record[names[0]], record[names[1]] = record[names[1]], record[names[0]]
    return reply


def gone(client: int, reply: Message) -> Message | None:
    return None if client == 2 else reply


@pytest.mark.parametrize(("spoil", "how"), [(garbage, "garbage"), (gone, "late")])
def test_who_fails_is_named_and_the_others_go_on(
    tmp_path: Path, spoil: Callable[[int, Message], Message | None], how: str
) -> None:
    done = run(tmp_path, spoil, rounds=1, deadline=3.0, **{"peer-timeout": 1.0})
    assert done[0]["there"] == [0, 1, 3]
    ((who, why),) = done[0]["absent"].items()
    assert who in ("client-2", "node 102") and why.startswith(how)


def test_orders_that_are_none_are_refused(tmp_path: Path) -> None:
    config = {**SMALL, "clients": 4, "folder": str(tmp_path)}
    context = Context(run_id=1, node_id=1, node_config={"partition-id": 0}, state=RecordDict(), run_config=config)
    message = Message(RecordDict({"orders": ConfigRecord({"json": '{"number": -1}'})}), 1, "query.exchange")
    with pytest.raises(ValueError, match="validation error"):
        flower_client.app(message, context)


@pytest.mark.slow
def test_simulation_and_deployment_make_the_same_model(tmp_path: Path) -> None:
    """Two clients, three rounds: in Flower's simulation, and as processes that exchange experts over the network with TLS."""
    config = {**SMALL, "clients": 2, "rounds": 3, "deadline": 120.0, "peer-timeout": 60.0}
    with deployed(tmp_path / "deployed", 2) as found:
        submit(found, config)
        done = finished(found, 3, 240.0)
    with simulated(tmp_path / "simulated") as found:
        submit(found, config, supernodes=2)
        again = finished(found, 3, 240.0)
    for a, b in zip(done, again, strict=True):
        assert (a["there"], a["absent"], a["unheard"]) == (b["there"], b["absent"], b["unheard"]) == ([0, 1], {}, {})
        assert (a["server_B"], a["peer_B"]) == (b["server_B"], b["peer_B"])
        assert a["peer_B"] > 0
    for a, b in zip(models(tmp_path / "deployed", 2), models(tmp_path / "simulated", 2), strict=True):
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)
