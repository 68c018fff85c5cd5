"""`python -m real.federated.peer_process FOLDER NAME PORT`: serves a client's experts; a SuperNode only passes messages on.

Its ClientApp leaves orders and the trained model in the folder; what they grant is served until the next orders come. The
process ends with the one that started it.
"""

import argparse
import logging
import os
import threading
import time
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError

from real.federated.certificates import load
from real.federated.member import TRAINED, kept, offered
from real.federated.orders import Orders
from real.federated.peers import PeerService

ORDERS_FILE, PEERS_FILE = "orders.json", "peers.json"
LOOK_S = 0.02
LOG = logging.getLogger(__name__)


def follow(folder: Path, service: PeerService, seed: int, over: threading.Event) -> None:
    """Offer what orders grant, as they come, until `over`. Orders that are wrong, or of a round not trained, grant nothing."""
    seen = -1
    while not over.wait(LOOK_S):
        path = folder / ORDERS_FILE
        now = path.stat().st_mtime_ns if path.is_file() else -1
        if now == seen:
            continue
        seen = now
        try:
            orders = Orders.model_validate_json(path.read_bytes())
            state, number = kept(folder / TRAINED)
        except (ValidationError, SafetensorError, OSError, LookupError) as error:
            LOG.warning("orders that cannot be followed: %s", error)
            continue
        if number != orders.number:
            LOG.warning("orders of round %d, trained was %d", orders.number, number)
            continue
        service.offer(orders.grants(), offered(state, orders, seed))


def main() -> None:
    """Serve until the parent is gone."""
    parser = argparse.ArgumentParser(description="Serve a client's experts to its peers.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("port", type=int)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    parent, over = os.getppid(), threading.Event()
    (given.folder / ORDERS_FILE).unlink(missing_ok=True)  # of a run before
    with PeerService(load(given.folder, given.name), port=given.port) as service:
        follower = threading.Thread(target=follow, args=(given.folder, service, given.seed, over))
        follower.start()
        while os.getppid() == parent:
            time.sleep(0.5)
        over.set()
        follower.join()


if __name__ == "__main__":
    main()
