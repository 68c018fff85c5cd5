"""Part of `windtunnel calibrate`: what training costs clients that share this machine's cores."""

import json
import tempfile
from pathlib import Path
from statistics import median

import yaml

from costmodels import compute
from costmodels.catalog import Catalog, write_entry
from costmodels.specs import DeviceSpec
from real.federated.calibrate_worker import BATCH, SHAPE, STEPS
from real.launch import launch
from simcore.federated.moe_model import step_kernels
from simcore.progress import Progress
from simcore.training import sustained

DEVICE = "this_machine"
CLIENTS_PER_CORE = 3


def add_sharing(out: Path, cores: int, *, quick: bool = False, progress: Progress | None = None) -> float:
    """Measure, and add `sharing` to the device that is in `out`.

    It is how many seconds of a core a training takes where three processes share each and slept before, over the sum of the
    training's kernels; what the estimates of small kernels lack is part of it.
    """
    found = _seconds(cores, quick, progress) / kernels_s(Catalog([out]).device(DEVICE))
    entry = yaml.safe_load((out / "devices" / f"{DEVICE}.yaml").read_text())
    entry["measured"]["sharing"] = found
    write_entry(out, "devices", DEVICE, entry)
    return found


def kernels_s(device: DeviceSpec) -> float:
    """Seconds of the kernels of one training, one after the other."""
    kernels = step_kernels(SHAPE, BATCH, "sgd_momentum", STEPS, dense=True)
    return sum(sustained.estimate(k, device, sustained.usual(), compute.UNNAMED).seconds for k in kernels)


def _seconds(cores: int, quick: bool, progress: Progress | None) -> float:
    """Of a core, for one training: until the last is done, over the trainings that each core did."""
    clients = CLIENTS_PER_CORE * cores
    with tempfile.TemporaryDirectory(prefix="windtunnel-") as name:
        folder = Path(name)
        arguments = ["quick"] if quick else []
        launch("real.federated.calibrate_worker", clients, folder, arguments=arguments, progress=progress)
        ranks = [json.loads((folder / f"rank{r}.json").read_text()) for r in range(clients)]
    return median(max(one) for one in zip(*ranks, strict=True)) / CLIENTS_PER_CORE
