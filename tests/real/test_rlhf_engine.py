"""The 3D-HybridEngine on processes: what arrives is right, as many bytes as the formula says, and nothing is held twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from simcore.errors import InputError
from simcore.hybridflow.grouping import Degrees
from simcore.hybridflow.resharding import Engine, resharding, table_2

pytest.importorskip("transformers")

from real.rlhf.engine import HybridEngine

ROOT = Path(__file__).resolve().parents[2]
LAYERS, WIDTH = 4, 16

RANK = """
import json, os, sys
import numpy as np, torch, torch.distributed as dist
from real.rlhf.engine import HybridEngine
from real.rlhf.parallel import MATRICES
from simcore.hybridflow.grouping import Degrees
from simcore.hybridflow.resharding import resharding

layers, width = LAYERS, WIDTH
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=os.environ["MEETING"], rank=rank, world_size=size)
generator = torch.Generator().manual_seed(0)
whole = {(i, n): torch.randn(width, 2 * width, generator=generator) for i in range(layers) for n in MATRICES}
found = []
for case in json.loads(os.environ["CASES"]):
    engine_of = case.pop("engine")
    of = resharding(Degrees(**case), engine_of)
    groups = np.unique(np.sort(of.gathered, axis=1), axis=0).tolist()
    group, _ = dist.new_subgroups_by_enumeration(groups)
    engine = HybridEngine(of, rank, layers, group)
    engine.take(whole)
    trained = {k: v.clone() for k, v in engine.shards.items()}
    before = engine.held_B()
    generated = engine.gather()
    first, end, low, high = of.generated[rank].tolist()
    cells, each = of.grid[1], layers // of.grid[0]
    wanted = {(i, n): whole[i, n].chunk(cells, a) for i in range(first * each, end * each) for n, a in MATRICES.items()}
    right = set(generated) == set(wanted) and all(
        torch.equal(generated[k], torch.cat(parts[low:high], MATRICES[k[1]])) for k, parts in wanted.items()
    )
    during = engine.held_B()
    kept = all(torch.equal(engine.shards[k], v) for k, v in trained.items())
    engine.release()
    after = all(torch.equal(engine.shards[k], v) for k, v in trained.items())
    found.append(dict(right=right, kept=kept, after=after, received_B=engine.received_B, before_B=before, during_B=during,
                      after_B=engine.held_B(), whole_B=sum(x.nbytes for x in whole.values())))
dist.destroy_process_group()
print(json.dumps(found))
"""


def ranks(n: int, cases: list[tuple[Degrees, Engine]], folder: Path) -> list[list[dict[str, float]]]:
    """What each rank found in each case."""
    names = ("pp", "tp", "dp", "gen_pp", "gen_tp")
    listed = [{**{name: getattr(degrees, name) for name in names}, "engine": engine} for degrees, engine in cases]
    script = RANK.replace("LAYERS", str(LAYERS)).replace("WIDTH", str(WIDTH), 1)
    environment = {
        **os.environ,
        "WORLD_SIZE": str(n),
        "MEETING": f"file://{folder}/meeting",
        "CASES": json.dumps(listed),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={**environment, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(n)
    ]
    said = [process.communicate() for process in started]
    assert all(process.returncode == 0 for process in started), [error for _, error in said]
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


def cases_of(n: int) -> list[tuple[Degrees, Engine]]:
    """Every p-t-d and p_g-t_g of n ranks whose stages the layers fill."""
    divisors = [k for k in range(1, n + 1) if n % k == 0]
    engines: tuple[Engine, ...] = ("hybridflow", "hybridflow_v")
    return [
        (Degrees(pp=pp, tp=tp, dp=n // (pp * tp), gen_pp=gen_pp, gen_tp=gen_tp), engine)
        for pp in divisors
        for tp in divisors
        if n % (pp * tp) == 0
        for gen_pp in divisors
        if pp % gen_pp == 0
        for gen_tp in divisors
        if tp % gen_tp == 0
        for engine in engines
    ]


@pytest.mark.parametrize("n", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_configuration_of_real_ranks(n: int, tmp_path: Path) -> None:
    cases = cases_of(n)
    assert len(cases) == {2: 10, 4: 30}[n]
    found = ranks(n, cases, tmp_path)
    for at, (degrees, engine) in enumerate(cases):
        of = resharding(degrees, engine)
        volume, _, _ = table_2(degrees, engine)
        for rank in range(n):
            told = found[rank][at]
            whole_B, cell_B = told["whole_B"], told["whole_B"] / of.cells
            assert told["right"] and told["kept"] and told["after"], (degrees, engine)
            assert told["received_B"] == volume * whole_B
            assert told["before_B"] == told["after_B"] == whole_B / (degrees.pp * degrees.tp)
            redundant_B = told["during_B"] - whole_B / (degrees.gen_pp * degrees.gen_tp)
            assert redundant_B == of.redundant_cells()[rank] * cell_B
            if engine == "hybridflow":
                assert redundant_B == 0


def test_what_cannot_be_resharded_for_real_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        HybridEngine(resharding(Degrees(pp=3), "ds_chat"), 0, 4, None)
    assert [p.field for p in caught.value.problems] == ["engine", "layers"]
