"""Many what-ifs at once: one scenario, every combination of some values, a table with a row for each."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costmodels.files import write_atomically
from simcore.errors import InputError, Problem, WindtunnelError
from simcore.overrides import split
from simcore.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

Point = Mapping[str, Any]
Row = dict[str, Any]
ENGINES = ("local", "ray")
SUFFIXES = (".parquet", ".csv", ".json")


def parse_over(texts: Sequence[str]) -> dict[str, list[Any]]:
    """`cluster.nodes=1,2,4` as {"cluster.nodes": [1, 2, 4]}; `[a, b]` in YAML serves where a value holds commas."""
    over: dict[str, list[Any]] = {}
    problems: list[Problem] = []
    for text in texts:
        try:
            path, value = split(text)
            if isinstance(value, str):
                value = split(f"{'.'.join(path)}=[{text.partition('=')[2]}]")[1]
        except InputError as error:
            problems += error.problems
            continue
        over[".".join(path)] = value if isinstance(value, list) else [value]
    if not over and not problems:
        problems.append(Problem("--over", "nothing", "at least one path=v1,v2"))
    problems += [
        Problem(f"--over {name}", "no values", "at least one value") for name, values in over.items() if not values
    ]
    if problems:
        raise InputError("a sweep that cannot be made", problems)
    return over


def points(over: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Every combination, the last name changing fastest."""
    return [dict(zip(over, values, strict=True)) for values in itertools.product(*over.values())]


def run_point(path: Path, overrides: Sequence[str], folders: Sequence[Path], point: Point) -> Row:
    """The metrics of one point, simulated. Whatever goes wrong becomes its `error`, so that the others go on."""
    from simcore.backend import open_backend
    from simcore.reporting.report import report
    from simcore.scenario import load

    changes = [*overrides, *(f"{name}={json.dumps(value)}" for name, value in point.items())]
    try:
        scenario = load(path, changes, folders)
        plan = scenario.plan()
        found = report(plan, open_backend("sim", scenario).run(plan))
        return {**point, **found.metrics, "plan_digest": plan.digest, "error": None}
    except WindtunnelError as error:
        return {**point, "error": str(error)}
    except Exception as error:  # a point's own failure is its result
        return {**point, "error": f"{type(error).__name__}: {error}"}


def sweep(
    path: str | Path,
    over: Mapping[str, Sequence[Any]],
    *,
    engine: str = "local",
    workers: int | None = None,
    overrides: Sequence[str] = (),
    folders: Sequence[Path] = (),
    progress: Progress | None = None,
) -> "pd.DataFrame":
    """A frame with one row for each combination, in their order: the values, the metrics, `plan_digest` and `error`."""
    import pandas as pd

    if engine not in ENGINES:
        raise InputError("unknown engine", [Problem("engine", repr(engine), ", ".join(ENGINES))])
    todo = points(over)
    work = partial(run_point, Path(path), tuple(overrides), tuple(folders))
    made = _on_ray(work, todo) if engine == "ray" else _locally(work, todo, workers)
    rows: dict[int, Row] = {}
    for i, row in made:
        rows[i] = row
        if progress is not None:
            progress(len(rows) / len(todo), f"{len(rows)} of {len(todo)} points")
    return pd.DataFrame([rows[i] for i in range(len(todo))])


def _locally(work: Callable[[Point], Row], todo: Sequence[Point], workers: int | None) -> Iterator[tuple[int, Row]]:
    """In this process for one worker or one point, otherwise in a pool; a point that kills its worker is tried once alone."""
    if workers == 1 or len(todo) == 1:
        yield from ((i, work(point)) for i, point in enumerate(todo))
        return
    lost: list[int] = []
    pool = _pool(workers)
    try:
        waiting: dict[Future[Row], int] = {pool.submit(work, point): i for i, point in enumerate(todo)}
        for done in as_completed(waiting):
            try:
                yield waiting[done], done.result()
            except BrokenProcessPool:
                lost.append(waiting[done])
    finally:
        pool.shutdown(cancel_futures=True)
    for i in sorted(lost):
        try:
            with _pool(1) as pool:
                yield i, pool.submit(work, todo[i]).result()
        except BrokenProcessPool:
            yield i, {**todo[i], "error": "the worker process died; it may have run out of memory"}


def _pool(workers: int | None) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


def _on_ray(work: Callable[[Point], Row], todo: Sequence[Point]) -> Iterator[tuple[int, Row]]:
    try:
        import ray
    except ModuleNotFoundError as missing:
        problem = Problem("engine", "ray", "local", "Install it with: pip install 'windtunnel[sweep]'")
        raise InputError("the ray engine needs ray", [problem]) from missing
    ray.init(ignore_reinit_error=True, log_to_driver=False, include_dashboard=False)
    remote = ray.remote(work.func if isinstance(work, partial) else work)
    arguments = work.args if isinstance(work, partial) else ()
    waiting = {remote.remote(*arguments, point): i for i, point in enumerate(todo)}
    while waiting:
        done, _ = ray.wait(list(waiting))
        i = waiting.pop(done[0])
        try:
            yield i, ray.get(done[0])
        except ray.exceptions.RayError as error:
            yield i, {**todo[i], "error": f"{type(error).__name__}: {error}"}


def save(frame: "pd.DataFrame", path: Path) -> None:
    """Write a frame whole or not at all; the suffix says how."""
    check_suffix(path)
    if path.suffix == ".parquet":
        buffer = BytesIO()
        frame.to_parquet(buffer, index=False)
        write_atomically(path, buffer.getvalue())
    elif path.suffix == ".csv":
        write_atomically(path, frame.to_csv(index=False))
    else:
        write_atomically(path, frame.to_json(orient="records", indent=2) + "\n")


def check_suffix(path: Path) -> None:
    """Raise `InputError` for a file that `save` cannot write, before anything is computed."""
    if path.suffix not in SUFFIXES:
        raise InputError(
            "unknown kind of table", [Problem("--output", path.name, "a name that ends in " + ", ".join(SUFFIXES))]
        )
