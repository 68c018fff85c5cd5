"""The direction of imports, and what may not be loaded by importing the library."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def imports_of(path: Path) -> set[str]:
    """Top-level names of the modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_import_contracts_hold() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([tool, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_the_engine_knows_simpy() -> None:
    users = [path.name for path in sorted((ROOT / "simcore").rglob("*.py")) if "simpy" in imports_of(path)]
    assert users == ["simulate.py"]


def test_importing_simcore_loads_neither_torch_nor_the_slow_libraries() -> None:
    slow = ("torch", "ray", "numba", "pandas", "scipy", "pint")
    code = f"import sys, simcore; print(' '.join(m for m in {slow} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_command_line_shows_its_help_without_the_slow_libraries() -> None:
    code = (
        "import sys\n"
        "from simcore.cli import main\n"
        "sys.argv = ['windtunnel', '--help']\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "slow = ('torch', 'ray', 'pandas', 'scipy', 'matplotlib', 'pint', 'networkx', 'numba')\n"
        "print('LOADED', *(m for m in slow if m in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].split() == ["LOADED"]
