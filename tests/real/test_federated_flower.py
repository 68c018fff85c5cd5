"""Flower's apps: in its simulation and deployed they make the same model; who fails is named and the round goes on."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

flwr = pytest.importorskip("flwr")

import psutil  # noqa: E402
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402

from real.federated import flower_client, flower_server  # noqa: E402
from real.federated.deployment import Running, deployed, finished, rounds, running, simulated, submit  # noqa: E402
from real.federated.federation import LocalFederation  # noqa: E402
from real.federated.flower_server import ROUNDS_FILE  # noqa: E402
from real.federated.local import State  # noqa: E402
from real.federated.member import OWN, initial, keep, kept  # noqa: E402
from real.federated.orders import client_name  # noqa: E402
from real.federated.settings import Settings  # noqa: E402

SMALL: dict[str, Any] = {"data": "digits", "width": 8, "experts": 3, "hidden": 6, "top-k": 2, "epochs": 1, "P": 2}


@pytest.fixture(autouse=True)
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages ask who makes them."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def test_what_a_process_starts_in_a_session_of_its_own_ends_with_it(tmp_path: Path) -> None:
    """As a SuperLink starts the programs of its apps."""
    sleeps = [sys.executable, "-c", "import time; time.sleep(600)"]
    starts = f"import subprocess as s, time; print(s.Popen({sleeps!r}, start_new_session=True).pid, flush=True); time.sleep(600)"
    with running(tmp_path) as found:
        found.start("link", sys.executable, "-c", starts)
        end = time.monotonic() + 60
        while not (said := (tmp_path / "link.log").read_text().strip()) and time.monotonic() < end:
            time.sleep(0.05)
        child = psutil.Process(int(said))
        assert child.is_running()
    gone, alive = psutil.wait_procs([child], timeout=10)
    assert (gone, alive) == ([child], [])


class DirectGrid:
    """Flower's grid without Flower's processes: a message is handled when the server first looks for its answer."""

    def __init__(self, config: dict[str, Any], clients: int, spoil: Callable[[int, Message], Message | None]) -> None:
        self.contexts = {
            100 + c: Context(
                run_id=1, node_id=100 + c, node_config={"partition-id": c}, state=RecordDict(), run_config=config
            )
            for c in range(clients)
        }
        self.spoil = spoil
        self.sent: dict[str, Message] = {}
        self.replies: dict[str, Message] = {}

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
            node = self.sent[i].metadata.dst_node_id
            if i not in self.replies:
                self.replies[i] = self._handled(self.sent[i], node)
            found = self.spoil(node - 100, self.replies[i])
            if found is not None:
                yield found

    def _handled(self, message: Message, node: int) -> Message:
        try:
            return flower_client.app(message, self.contexts[node])
        except Exception as error:
            return Message(Error(code=1, reason=str(error)), reply_to=message)


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
    assert who == "client-2" and why.startswith(how)  # the only one that nobody else is


def test_who_is_always_late_is_known_by_its_late_answers(tmp_path: Path) -> None:
    """Of four, two answer when the round is over."""
    seen = set[str]()

    def late(client: int, reply: Message) -> Message | None:
        message = reply.metadata.reply_to_message_id
        if client < 2 or message in seen:
            return reply
        seen.add(message)
        return None

    first, second = run(tmp_path, late, quorum=0.5)
    assert first["there"] == second["there"] == [0, 1]
    assert first["absent"] == {"node 102": "late", "node 103": "late"}
    assert second["absent"] == {"client-2": "late", "client-3": "late"}


def test_orders_that_are_none_are_refused(tmp_path: Path) -> None:
    config = {**SMALL, "clients": 4, "folder": str(tmp_path)}
    context = Context(run_id=1, node_id=1, node_config={"partition-id": 0}, state=RecordDict(), run_config=config)
    message = Message(RecordDict({"orders": ConfigRecord({"json": '{"number": -1}'})}), 1, "query.exchange")
    with pytest.raises(ValueError, match="validation error"):
        flower_client.app(message, context)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two clients; the last test of this file kills one of them."""
    with deployed(tmp_path_factory.mktemp("deployed"), 2) as found:
        yield found


@pytest.mark.slow
def test_simulation_and_deployment_make_the_same_model(deployment: Running, tmp_path: Path) -> None:
    """Three rounds: in Flower's simulation, and as processes that exchange experts over the network with TLS."""
    config = {**SMALL, "clients": 2, "rounds": 3, "deadline": 120.0, "peer-timeout": 60.0}
    submit(deployment, config)
    done = finished(deployment, 3, 240.0)
    with simulated(tmp_path) as found:
        submit(found, config, supernodes=2)
        again = finished(found, 3, 240.0)
    for a, b in zip(done, again, strict=True):
        assert (a["there"], a["absent"], a["unheard"]) == (b["there"], b["absent"], b["unheard"]) == ([0, 1], {}, {})
        assert (a["server_B"], a["peer_B"]) == (b["server_B"], b["peer_B"])
        assert a["peer_B"] > 0
    for a, b in zip(models(deployment.folder, 2), models(tmp_path, 2), strict=True):
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_client_that_is_killed_in_a_round_is_named_and_nobody_loses_its_model(deployment: Running) -> None:
    """SuperNode, ClientApp and peer process, when it has been asked to train; the other's answer is enough for a round.

    It is known by name though it may never have answered. If the killing comes late, the round after this one finds it gone.
    """
    if "run" in deployment.processes:
        deployment.processes["run"].wait(60.0)  # of the test before
    (deployment.folder / ROUNDS_FILE).unlink(missing_ok=True)
    config = {**SMALL, "clients": 2, "rounds": 100, "quorum": 0.5, "deadline": 60.0, "peer-timeout": 5.0}
    left = deployment.folder / client_name(1) / OWN
    if not left.is_file():  # no test before
        keep(left, initial(Settings.of(config).shape, 0), -1)
    before = asked(deployment)
    submit(deployment, config)
    until(deployment, lambda: asked(deployment) > before)
    for name in ("supernode-1", "peer-1"):
        deployment.kill(name)
    count = len(rounds(deployment))
    until(deployment, lambda: any(d["there"] == [0] for d in rounds(deployment)[count:]))
    done = next(d for d in rounds(deployment)[count:] if d["there"] == [0])
    assert list(done["absent"]) == ["client-1"] and not done["unheard"]
    assert kept(deployment.folder / client_name(0) / OWN)[1] >= done["number"]
    assert all(bool(torch.isfinite(value).all()) for model in models(deployment.folder, 2) for value in model.values())


def asked(found: Running) -> int:
    """How often client 1 was asked to train."""
    return (found.folder / "supernode-1.log").read_text().count("Receiving: train")


def until(found: Running, what: Callable[[], bool], timeout_s: float = 240.0) -> None:
    """Wait. Fails with the last words of the run if it ends before, or takes too long."""
    end = time.monotonic() + timeout_s
    while not what():
        assert found.processes["run"].poll() is None and time.monotonic() < end, found.words("run")
        time.sleep(0.05)
