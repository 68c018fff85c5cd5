"""`python -m real.federated.deployment FOLDER`: Flower on this machine, in its simulation or as SuperLink and SuperNodes.

A deployment is a SuperLink, and for each client a SuperNode and a peer process, all processes of their own that know only
their own keys. Each client's folder holds its model; `rounds.json` says what came of each round. All processes are gone
when the run is over.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

from real.federated.certificates import AUTHORITY, issue
from real.federated.orders import client_name
from real.federated.peer_process import PEERS_FILE
from real.federated.ports import free_ports
from simcore.errors import CannotRun, Problem

APP = Path(__file__).parent / "app"
STARTS_S = 60.0
HOST = "127.0.0.1"


@dataclass(kw_only=True)
class Running:
    """Processes of a run by name, and the folder with their logs."""

    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *command: str) -> None:
        """Start a process in a group of its own; what it says goes to NAME.log."""
        log: IO[bytes]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=_environment(self.folder),
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        """End a process and all that it started at once, as a power cut would. What a SuperLink starts is in a session of its own,
        which a signal to the SuperLink's group does not reach."""
        process = self.processes[name]
        try:
            started = psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            started = []
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for one in started:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()

    def words(self, name: str, lines: int = 5) -> str:
        """The last that a process said."""
        said = (self.folder / f"{name}.log").read_text(errors="replace").splitlines()
        return " ".join(line.strip() for line in said[-lines:] if line.strip())


@contextmanager
def running(folder: Path) -> Iterator[Running]:
    """Processes that end with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    found = Running(folder=folder)
    try:
        yield found
    finally:
        for name in reversed(found.processes):
            found.kill(name)


@contextmanager
def deployed(folder: Path, clients: int, *, tls: bool = True, seed: int = 0) -> Iterator[Running]:
    """A SuperLink and `clients` clients on this machine, to which `flwr run APP here` goes."""
    ports = free_ports(1 + 2 * clients)
    link, nodes, peers = ports[0], ports[1 : 1 + clients], ports[1 + clients :]
    keys = folder / "certificates"
    issue(keys, ["server", *(client_name(c) for c in range(clients))], hosts={"server": ["localhost", HOST]})
    with ExitStack() as stack:
        found = stack.enter_context(running(folder))
        safe = ["--ssl-ca-certfile", f"{keys / AUTHORITY}", "--ssl-certfile", f"{keys / 'server.pem'}"]
        safe += ["--ssl-keyfile", f"{keys / 'server.key'}"]
        how = safe if tls else ["--insecure"]
        found.start("superlink", "flower-superlink", *how, "--host", HOST, "--port", str(link))
        _connection(folder, link, keys / AUTHORITY if tls else None)
        _reached(found, "superlink", link)
        for c in range(clients):
            own = folder / client_name(c)
            hand_out(keys, client_name(c), own)
            book = {d: f"{HOST}:{peers[d]}" for d in range(clients) if d != c}
            (own / PEERS_FILE).write_text(json.dumps(book))
            peer = [sys.executable, "-m", "real.federated.peer_process", str(own), client_name(c), str(peers[c])]
            found.start(f"peer-{c}", *peer, "--seed", str(seed))
            node = ["--superlink", f"{HOST}:{link}", "--host", HOST, "--port", str(nodes[c])]
            node += ["--root-certificates", f"{own / AUTHORITY}"] if tls else ["--insecure"]
            node += ["--node-config", f'partition-id={c} folder="{own}"']
            found.start(f"supernode-{c}", "flower-supernode", *node)
        for c in range(clients):
            _reached(found, f"peer-{c}", peers[c])
        yield found


@contextmanager
def simulated(folder: Path) -> Iterator[Running]:
    """A SuperLink with Flower's simulation behind it."""
    (port,) = free_ports(1)
    with running(folder) as found:
        found.start("superlink", "flower-superlink", "--insecure", "--simulation", "--host", HOST, "--port", str(port))
        _connection(folder, port, None)
        _reached(found, "superlink", port)
        yield found


def submit(found: Running, config: Mapping[str, Any], *, supernodes: int | None = None) -> None:
    """`flwr run`; returns at once."""
    settings = {**config, "folder": str(found.folder)}
    command = [
        "flwr",
        "run",
        str(APP),
        "here",
        "--stream",
        "-c",
        " ".join(f"{k}={_toml(v)}" for k, v in settings.items()),
    ]
    if supernodes is not None:
        command += ["--federation-config", f"num-supernodes={supernodes} client-resources-num-cpus=1"]
    found.start("run", *command)


def rounds(found: Running) -> list[dict[str, Any]]:
    """What came of the rounds so far."""
    path = found.folder / "rounds.json"
    return json.loads(path.read_text()) if path.is_file() else []


def finished(found: Running, count: int, timeout_s: float) -> list[dict[str, Any]]:
    """Wait for `count` rounds. Raises `CannotRun` with the last words of the run if it ends before, or takes too long."""
    end = time.monotonic() + timeout_s
    while len(done := rounds(found)) < count:
        over = found.processes["run"].poll() is not None
        time.sleep(0.2)
        if (over and len(rounds(found)) < count) or time.monotonic() > end:
            given = f"{len(rounds(found))} rounds; {found.words('run')}"
            raise CannotRun("Flower's run did not come to its end", [Problem("rounds", given, f"{count} rounds")])
    return done


def _environment(folder: Path) -> dict[str, str]:
    """Flower's programs are found beside Python, and keep their files in the run's folder."""
    beside = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": f"{beside}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(folder / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",  # seconds; a second otherwise, at every message
        "OMP_NUM_THREADS": "1",
    }


def _connection(folder: Path, port: int, authority: Path | None) -> None:
    """The SuperLink as `here` in Flower's own file."""
    (folder / "flower").mkdir(parents=True, exist_ok=True)
    safety = f'root-certificates = "{authority}"' if authority else "insecure = true"
    text = f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{HOST}:{port}"\n{safety}\n'
    (folder / "flower" / "config.toml").write_text(text)


def hand_out(keys: Path, name: str, to: Path) -> None:
    """A client's own certificate and key, and that of the authority."""
    to.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in (AUTHORITY, f"{name}.pem", f"{name}.key"):
        shutil.copy2(keys / file, to / file)


def _reached(found: Running, name: str, port: int) -> None:
    """Wait until somebody listens at `port`. Raises `CannotRun` with the last words of who should."""
    end = time.monotonic() + STARTS_S
    while time.monotonic() < end and found.processes[name].poll() is None:
        with socket.socket() as one:
            if one.connect_ex((HOST, port)) == 0:
                return
        time.sleep(0.1)
    raise CannotRun("a process did not start", [Problem(name, found.words(name), f"listening at port {port}")])


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, str) else str(value)


def table(done: Sequence[Mapping[str, Any]]) -> str:
    """Rounds in lines."""
    lines = [
        f"{'round':>5} {'seconds':>8} {'there':>6} {'loss':>7} {'accuracy':>9} {'server MB':>10} {'peers MB':>9}  failed"
    ]
    for d in done:
        failed = "; ".join(f"{who}: {how}" for who, how in {**d["absent"], **d["unheard"]}.items())
        loss, trained = (f"{d[k]:.3f}" if d[k] is not None else "-" for k in ("loss", "trained"))
        lines.append(
            f"{d['number']:>5} {d['seconds']:>8.2f} {len(d['there']):>6} {loss:>7} {trained:>9} "
            f"{d['server_B'] / 1e6:>10.3f} {d['peer_B'] / 1e6:>9.3f}  {failed}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Run federated training with Flower on this machine.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--simulation", action="store_true", help="in Flower's simulation instead of processes")
    parser.add_argument(
        "--tls", action=argparse.BooleanOptionalAction, default=True, help="TLS between SuperNodes and SuperLink"
    )
    parser.add_argument("-c", "--config", nargs="*", default=[], metavar="KEY=VALUE", help="see settings.py")
    parser.add_argument("--timeout", type=float, default=3600.0)
    given = parser.parse_args(arguments)
    config = {k: _value(v) for k, v in (pair.split("=", 1) for pair in given.config)}
    clients, count = int(config.get("clients", 6)), int(config.get("rounds", 3))
    folder = given.folder.resolve()
    seed = int(config.get("seed", 0))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the processes end, too
    how = simulated(folder) if given.simulation else deployed(folder, clients, tls=given.tls, seed=seed)
    with how as found:
        submit(found, config, supernodes=clients if given.simulation else None)
        print(table(finished(found, count, given.timeout)))  # noqa: T201
    return 0


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


if __name__ == "__main__":
    raise SystemExit(main())
