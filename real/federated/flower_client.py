"""Flower's ClientApp: trains, and exchanges experts with its peers, as the server says.

In a deployment a SuperNode is started with `--node-config 'partition-id=0 folder="..."'`: a folder of the client's own with
its certificate, its model, and `peers.json`, where its peers are. Beside it runs `python -m real.federated.peer_process
FOLDER`. In Flower's simulation clients have no such folder; they find each other's models in `folder` of the run.
"""

import json
from pathlib import Path

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from costmodels.files import write_atomically
from real.federated.certificates import load
from real.federated.coordinator import sent
from real.federated.exchanging import Exchange, Folders, Network
from real.federated.flower_messages import ANSWER, FOUND, METRICS, ORDERS, ROUND, SHARED, packed, unpacked
from real.federated.member import Member
from real.federated.orders import Orders, client_name
from real.federated.parcels import layout_of
from real.federated.peer_process import ORDERS_FILE, PEERS_FILE
from real.federated.peers import Patience
from real.federated.settings import Settings

app = ClientApp()


@app.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    """A round of training from what the server averaged; the answer is what it averages."""
    settings, member = _member(context)
    strategy, number = settings.strategy, int(message.content[ROUND]["number"])
    averaged = {n: v for n, v in member.state.items() if n.split(".")[0] in strategy.averaged}
    shared = unpacked(message.content[SHARED], layout_of(averaged))
    before = member.tested(shared)
    trained = member.train(number, shared, strategy)
    metrics: dict[str, int | float] = {
        "client": member.number,
        "samples": trained.samples,
        "loss": trained.loss,
        "trained": trained.accuracy,
        "before": before,
    }
    answer = packed(sent(strategy, trained.state, number))
    return Message(RecordDict({ANSWER: answer, METRICS: MetricRecord(metrics)}), reply_to=message)


@app.query("exchange")  # type: ignore[untyped-decorator]
def exchange(message: Message, context: Context) -> Message:
    """Serve what orders grant, fetch what they say, and mix what came; says who failed."""
    settings, member = _member(context)
    orders = Orders.model_validate_json(str(message.content[ORDERS]["json"]))
    write_atomically(member.folder / ORDERS_FILE, orders.model_dump_json())
    came, failed = _exchange(settings, context, member).fetched(orders)
    member.mix(orders, came)
    found = ConfigRecord(
        {
            "failed": [f.peer for f in failed],
            "how": [f.kind for f in failed],
            "said": [f.said for f in failed],
            "fetched": sum(len(items) for items in came.values()),
        }
    )
    return Message(RecordDict({FOUND: found}), reply_to=message)


def _number(context: Context) -> int:
    return int(context.node_config["partition-id"])


def _folder(context: Context, settings: Settings) -> Path:
    own = context.node_config.get("folder")
    return Path(str(own)) if own else settings.root / client_name(_number(context))


def _member(context: Context) -> tuple[Settings, Member]:
    torch.set_num_threads(1)
    settings, number = Settings.of(context.run_config), _number(context)
    data = settings.parts()[number]
    member = Member(number, settings.shape, data, settings.training, settings.seed, _folder(context, settings))
    return settings, member


def _exchange(settings: Settings, context: Context, member: Member) -> Exchange:
    if not context.node_config.get("folder"):
        return Folders(clients=settings.root, seed=settings.seed)
    addresses = json.loads((member.folder / PEERS_FILE).read_text())
    return Network(
        identity=load(member.folder, client_name(member.number)),
        addresses={int(c): str(a) for c, a in addresses.items()},
        folder=member.folder,
        seed=settings.seed,
        patience=Patience(deadline_s=settings.peer_timeout, unreachable_s=min(10.0, settings.peer_timeout)),
    )
