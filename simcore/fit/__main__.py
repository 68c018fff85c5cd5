"""`python -m simcore.fit [NAMES] [--data FOLDER] [--holdout device source]`: write the fitted tables, all or those named.

Without `--data` from the measurements that the project ships, which is what `make fit` does: the same rows give the same file.
With `--holdout` instead how far predictions are off for devices and sources that a fit has not seen (`holdout.yaml`), which
takes minutes.
"""

import argparse
from pathlib import Path
from typing import Any

import yaml

from costmodels import fitted, measurements
from costmodels.catalog import Catalog
from costmodels.files import write_atomically
from costmodels.prediction import Floats
from simcore.fit import ORDER, fit_of, more_rows, rows_for
from simcore.fit.holdout import KINDS, held_by, left_out
from simcore.progress import Progress, part, shown
from simcore.validate import summary

TARGET = Path(fitted.__file__).parent
HEADER = "# Written by `make fit`; do not edit.\n"


def main() -> None:
    """Fit in the order in which models stand on each other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ORDER))
    parser.add_argument("--data", type=Path, help="a folder of CSV files instead of the shipped tables")
    parser.add_argument(
        "--holdout", nargs="+", choices=KINDS, default=(), help="instead leave each of these out in turn"
    )
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(ORDER))
    if unknown:
        parser.error(f"unknown table {', '.join(unknown)}; allowed: {', '.join(ORDER)}")
    chosen = [name for name in ORDER if name in (options.names or ORDER)]
    with shown("fit") as progress:
        for i, name in enumerate(chosen):
            own = part(progress, i / len(chosen), (i + 1) / len(chosen))
            for kind in options.holdout:
                _write_holdout(name, options.data, kind, own)
            if not options.holdout:
                progress(i / len(chosen), name)
                _write(name, {"provenance": _provenance(name, options.data), **_made(name, options.data)})


def _made(name: str, folder: Path | None) -> dict[str, Any]:
    return fit_of(name)(rows_for(name, folder), Catalog())


def _provenance(name: str, folder: Path | None) -> dict[str, Any]:
    files = [name, *more_rows(name)]
    return {
        "command": "make fit" if folder is None else "python -m simcore.fit --data FOLDER",
        "rows": {file: len(measurements.load(file, folder)) for file in files},
        "sha256": {file: measurements.digest(file, folder) for file in files},
        "sources": "costmodels/data/README.md",
    }


def _write(name: str, found: dict[str, Any]) -> None:
    text = yaml.safe_dump(found, sort_keys=False, width=120, default_flow_style=None, allow_unicode=True)
    write_atomically(TARGET / f"{name}.yaml", HEADER + text)
    fitted.load.cache_clear()


def _write_holdout(name: str, folder: Path | None, kind: str, progress: Progress | None) -> None:
    """Into `holdout.yaml`, beside what is there of other tables and kinds: of all rows, and `each` device or source."""
    path = TARGET / "holdout.yaml"
    known: dict[str, Any] = yaml.safe_load(path.read_text()) if path.is_file() else {}
    frame = rows_for(name, folder)
    held = held_by(name, frame, kind)
    if held is None:
        return
    error = left_out(name, frame, held, progress)
    each = {value: _errors(error[(held == value).to_numpy()]) for value in sorted(held.dropna().unique())}
    known.setdefault(name, {})[kind] = {**_errors(error), "each": {v: e for v, e in each.items() if e["covered"]}}
    _write("holdout", {key: known[key] for key in sorted(known)})


def _errors(error: Floats) -> dict[str, float | int | None]:
    return {key: value if key == "covered" else _rounded(value) for key, value in summary(error).items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


if __name__ == "__main__":
    main()
