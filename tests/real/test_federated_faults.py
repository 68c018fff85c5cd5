"""Faults of peers for real and simulated: the same clients are named, and what the others make of the rest is the same."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent import futures
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch

from real.federated.certificates import Identity, issue, load
from real.federated.coordinator import GATE, Answer, Coordinator, sent
from real.federated.deployment import hand_out
from real.federated.exchanging import Network
from real.federated.federation import mix
from real.federated.local import State
from real.federated.member import OWN, Member, kept, offered
from real.federated.orders import Orders, client_name, client_of, orders_of
from real.federated.peer_process import ORDERS_FILE
from real.federated.peers import METHOD, SERVICE, Patience, PeerService
from real.federated.ports import free_ports
from real.federated.settings import Settings
from simcore.federated.outcome import Outcome, Rules
from simcore.federated.running import Federation
from simcore.scenario import load as load_scenario

CLIENTS, BAD = 4, 2
GIVEN = Settings.of(
    {"data": "digits", "width": 8, "experts": 3, "hidden": 6, "clients": CLIENTS, "epochs": 1, "P": 3, "seed": 1}
)
SCENARIO = """\
name: faulty
cluster:
  topology: federated
  clients: [{{device: laptop_cpu, count: 4, down: home, up: home_up}}]
  server: {{device: server_cpu, down: ethernet_1g}}
workload:
  name: federated_moe
  model: {{image: [1, 8, 8], channels: [8, 16], width: 8, experts: 3, hidden: 6}}
  gates: gates.npy
  faults: {faults}
planner: {{name: fedmoe_da, P: 3, deadline: 60 s, peer_timeout: 5 s}}
"""


def trained(folder: Path) -> tuple[dict[int, Member], dict[int, Answer], Coordinator]:
    """A round up to the answers."""
    coordinator = Coordinator(GIVEN.shape, GIVEN.strategy, CLIENTS, GIVEN.seed)
    members, answers = {}, {}
    for c, data in enumerate(GIVEN.parts()):
        members[c] = Member(c, GIVEN.shape, data, GIVEN.training, GIVEN.seed, folder / client_name(c))
        done = members[c].train(0, coordinator.shared, GIVEN.strategy)
        answers[c] = Answer(state=sent(GIVEN.strategy, done.state, 0), samples=done.samples)
    return members, answers, coordinator


def simulated(folder: Path, answers: Mapping[int, Answer], faults: list[dict[str, object]]) -> Outcome:
    """The same round, with the same gates, in the simulator."""
    np.save(folder / "gates.npy", np.stack([answers[c].state[GATE].numpy() for c in range(CLIENTS)]))
    (folder / "faulty.yaml").write_text(SCENARIO.format(faults=json.dumps(faults)))
    scenario = load_scenario(folder / "faulty.yaml")
    planner = scenario.sections["planner"]
    rules: Rules = planner.params.rules  # type: ignore[attr-defined]
    strategy = planner.module.strategy(planner.params)
    return Federation(scenario.workload(), scenario.cluster(), scenario.cost(), strategy, rules).round()  # type: ignore[arg-type]


@contextmanager
def stalling(identity: Identity, first: bytes, *, stalls: bool) -> Iterator[str]:
    """A peer with a good certificate that sends `first`, and then nothing or the end."""
    over = threading.Event()

    def answer(data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield first
        if stalls:
            over.wait(30.0)

    server = grpc.server(futures.ThreadPoolExecutor(8))
    handler = grpc.unary_stream_rpc_method_handler(answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
    credentials = grpc.ssl_server_credentials([(identity.key, identity.certificate)], identity.authority, True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield f"127.0.0.1:{port}"
    over.set()
    server.stop(None).wait()


@contextmanager
def killed(keys: Path, member: Member, orders: Orders) -> Iterator[str]:
    """A peer process that has served somebody, and is killed before it serves others."""
    name, (port,) = client_name(member.number), free_ports(1)
    hand_out(keys, name, member.folder)
    command = [sys.executable, "-m", "real.federated.peer_process", str(member.folder), name, str(port)]
    process = subprocess.Popen([*command, "--seed", str(GIVEN.seed)])
    try:
        (asks, *_) = orders.serve
        alone = orders.model_copy(update={"number": 0, "fetch": {BAD: orders.serve[asks]}})
        early = Network(
            identity=load(keys, client_name(asks)),
            addresses={BAD: f"127.0.0.1:{port}"},
            folder=member.folder,
            seed=GIVEN.seed,
            patience=Patience(deadline_s=1.0, unreachable_s=1.0),  # and again, with orders written anew
        )
        while not early.fetched(alone)[0]:  # it forgets orders from before its start
            (member.folder / ORDERS_FILE).write_text(orders.model_dump_json())
    finally:
        process.kill()
        process.wait()
    yield f"127.0.0.1:{port}"


@pytest.mark.parametrize("kind", ["killed", "stalls", "garbage"])
def test_a_fault_has_the_same_outcome_in_both_worlds(tmp_path: Path, kind: str) -> None:
    members, answers, coordinator = trained(tmp_path)
    whole = simulated(tmp_path, answers, [])
    outcome = simulated(
        tmp_path, answers, [{"kind": kind, "client": BAD, "round": 0, "at": f"{whole.trained_s + 1e-9} s"}]
    )
    assert outcome.unheard == (BAD,) and outcome.mixing is not None
    states: list[State] = [dict(members[c].state) for c in range(CLIENTS)]
    orders = orders_of(coordinator.decide(answers), 60.0)
    keys = tmp_path / "keys"
    issue(keys, [client_name(c) for c in members])
    with ExitStack() as stack:
        addresses = {}
        for c, member in members.items():
            if c != BAD:
                service = stack.enter_context(PeerService(load(keys, client_name(c))))
                service.offer(orders[c].grants(), offered(member.state, orders[c], GIVEN.seed))
                addresses[c] = service.address
        identity = load(keys, client_name(BAD))
        broken = {
            "killed": lambda: killed(keys, members[BAD], orders[BAD]),
            "stalls": lambda: stalling(identity, b"", stalls=True),
            "garbage": lambda: stalling(identity, b"\x80\x04" + bytes(100), stalls=False),
        }
        addresses[BAD] = stack.enter_context(broken[kind]())
        failed = set()
        for c in sorted(set(members) - {BAD}):
            patience = Patience(deadline_s=1.0, unreachable_s=0.3)
            network = Network(
                identity=load(keys, client_name(c)),
                addresses=addresses,
                folder=members[c].folder,
                seed=GIVEN.seed,
                patience=patience,
            )
            came, who = network.fetched(orders[c])
            failed |= {client_of(f.peer) for f in who}
            members[c].mix(orders[c], came)
    assert tuple(sorted(failed)) == outcome.unheard
    mix(states, outcome.mixing)
    for c in sorted(set(members) - {BAD}):
        for name, value in states[c].items():
            torch.testing.assert_close(members[c].state[name], value, rtol=1e-5, atol=1e-6)
    assert kept(members[BAD].folder / OWN)[1] == 0  # its own model is where it was


def test_who_leaves_while_it_trains_is_left_out_of_the_round_in_both_worlds(tmp_path: Path) -> None:
    _, answers, coordinator = trained(tmp_path)
    outcome = simulated(tmp_path, answers, [{"kind": "killed", "client": BAD, "round": 0, "at": "0 s"}])
    assert outcome.left == (BAD,) and outcome.mixing is not None
    decided = coordinator.decide({c: a for c, a in answers.items() if c != BAD})
    assert decided.mixing is not None
    np.testing.assert_array_equal(decided.mixing.source, outcome.mixing.source)
    np.testing.assert_allclose(decided.mixing.weight, outcome.mixing.weight)
    assert decided.peer_B == outcome.peer_B
    assert BAD not in orders_of(decided, 60.0)
