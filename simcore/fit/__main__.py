"""`python -m simcore.fit [NAMES] [--data FOLDER] [--holdout device source]`: write the fitted tables, all or those named.

Without `--data` from the measurements that the project ships, which is what `make fit` does: the same rows give the same file.
With `--holdout` also how far predictions are off for devices and sources that a fit has not seen, which takes minutes.
"""

import argparse
from pathlib import Path
from typing import Any

import yaml

from costmodels import fitted, measurements
from costmodels.catalog import Catalog
from costmodels.files import write_atomically
from simcore.fit import ORDER, fit_of, more_rows, rows_for
from simcore.fit.holdout import left_out
from simcore.progress import shown
from simcore.tables import find
from simcore.validate import summary

TARGET = Path(fitted.__file__).parent
KINDS = ("device", "source")
HEADER = "# Written by `make fit`; do not edit.\n"


def main() -> None:
    """Fit in the order in which models stand on each other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ORDER))
    parser.add_argument("--data", type=Path, help="a folder of CSV files instead of the shipped tables")
    parser.add_argument("--holdout", nargs="+", choices=KINDS, default=(), help="leave each of these out in turn")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(ORDER))
    if unknown:
        parser.error(f"unknown table {', '.join(unknown)}; allowed: {', '.join(ORDER)}")
    chosen = [name for name in ORDER if name in (options.names or ORDER)]
    with shown("fit") as progress:
        for i, name in enumerate(chosen):
            progress(i / len(chosen), name)
            _write(name, {"provenance": _provenance(name, options.data), **_made(name, options.data)})
            for kind in options.holdout:
                _write_holdout(name, options.data, kind)


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


def _write_holdout(name: str, folder: Path | None, kind: str) -> None:
    """Into `holdout.yaml`, beside what is there of other tables and kinds."""
    path = TARGET / "holdout.yaml"
    known: dict[str, Any] = yaml.safe_load(path.read_text()) if path.is_file() else {}
    frame = rows_for(name, folder)
    column = find(name).groups[0] if kind == "device" else kind
    if column not in frame.columns or frame[column].nunique() < 2:
        return
    errors = summary(left_out(name, frame, column))
    known.setdefault(name, {})[kind] = {key: _rounded(value) for key, value in errors.items()}
    _write("holdout", {key: known[key] for key in sorted(known)})


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


if __name__ == "__main__":
    main()
