"""Every block of the README runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
CONSOLE = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]
MADE = ("make demo", "make test")  # the suite is `make test`; `make demo` is the Makefile's, held below


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands for `out/`; later commands read what earlier ones wrote."""
    return tmp_path_factory.mktemp("out")


@pytest.mark.parametrize("command", [c for c in CONSOLE if c not in MADE])
def test_console_block(command: str, out: Path) -> None:
    scripts = Path(sys.executable).parent
    local = command.replace(" out/", f" {out}/")
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(local.split(), cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_python_block() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        done = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert float(done.stdout) > 0


def test_the_two_commands_are_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{command.split()[1]}:" in makefile for command in MADE)
    assert set(MADE) <= set(CONSOLE)
