"""`python -m real.federated.network_process FILE`: the relays of a run, until the one who started them ends them."""

import asyncio
import os
import sys
from pathlib import Path

from real.federated.plan_facts import Facts
from real.federated.shaping import Relays


async def serve(facts: Facts) -> None:
    """Listen, say so, and go on until the parent is gone."""
    relays, parent = Relays(facts.capacity_B_per_s, facts.routes), os.getppid()
    await relays.start()
    print("listening", flush=True)  # noqa: T201 - what the parent waits for
    while os.getppid() == parent:
        await asyncio.sleep(0.5)
    await relays.close()


if __name__ == "__main__":
    asyncio.run(serve(Facts.load(Path(sys.argv[1]))))
