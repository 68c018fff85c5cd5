"""Every block of the README runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"```(console|python)\n(.*?)```", re.DOTALL)
MADE = ("make demo", "make test")  # the suite is `make test`; `make demo` is the Makefile's, held below


def commands(text: str) -> list[list[str]]:
    """What blocks of `text` run, in order."""
    found: list[list[str]] = []
    for language, block in BLOCK.findall(text):
        if language == "python":
            found.append([sys.executable, "-c", block])
        else:
            typed = [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]
            found += [command.split() for command in typed if command not in MADE]
    return found


SECTIONS = {text.splitlines()[0]: text for text in README.split("\n## ")[1:] if commands(text)}


@pytest.mark.parametrize("section", SECTIONS)
def test_section(section: str, tmp_path: Path) -> None:
    """Later commands of a section read what earlier ones wrote into `out/`."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in commands(SECTIONS[section]):
        local = [re.sub(r"(?<![\w/])out/", f"{tmp_path}/", word) for word in command]
        done = subprocess.run(local, cwd=ROOT, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        if command[1] == "-c":
            assert float(done.stdout) > 0


def test_the_two_commands_are_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{command.split()[1]}:" in makefile for command in MADE)
    assert all(f"$ {command}\n" in README for command in MADE)
