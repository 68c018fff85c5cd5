"""How good predictions of federated rounds are on this machine: strategies and links, predicted and measured.

    python -m real.federated.variations

wants an earlier `windtunnel calibrate`. Clients and the server are processes of this machine behind links that relays shape.
Ends with exit code 1 if the time of a round is predicted more than 10 % off.
"""

import os
import sys

from real.variations import Variations, measure, options_of, tell
from simcore.errors import WindtunnelError

LARGEST = 0.10
CORES = f"cluster.cores={os.cpu_count()}"

HOME, LTE = "down: home, up: home_up", "down: lte, up: lte_up"
SLOW = f"cluster.clients=[{{device: this_machine, count: 6, {LTE}}}]"
UNEQUAL = f"cluster.clients=[{{device: this_machine, count: 3, {HOME}}}, {{device: this_machine, count: 3, {LTE}}}]"

VARIATIONS: Variations = (
    ("FedMoE-DA", (CORES,)),
    ("FedMoE-DA, LTE", (CORES, SLOW)),
    ("FedMoE-DA, home and LTE", (CORES, UNEQUAL)),
    ("FedAvg", (CORES, "planner=fedavg")),
    ("per-index averaging", (CORES, "planner=expert_averaging")),
    ("gossip", (CORES, "planner=gossip")),
    ("gossip, LTE", (CORES, "planner=gossip", SLOW)),
)


def main() -> int:
    """Measure, print, judge."""
    options = options_of(__doc__, "scenarios/fedmoe_this_machine.yaml")
    try:
        rows = measure(options.scenario, options.repeat, options.only, VARIATIONS, paced=False)
    except WindtunnelError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    return 0 if tell(rows, LARGEST, LARGEST, as_json=options.json) else 1


if __name__ == "__main__":
    sys.exit(main())
