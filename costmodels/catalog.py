"""Devices, links and stores by name, from folders of YAML files: `costmodels.entries` says what is in them.

Folders of the user (with subfolders devices, links, stores) come before the entries that are built in; `calibrate` writes such
a folder. Spelling is forgiving: case, blanks, hyphens and the vendor's name do not count, so "NVIDIA A100-SXM4-80GB" is found
by its alias a100_sxm4_80gb. Links are one direction of one port; access networks with different directions (Wi-Fi, 4G, 5G) have
two entries, `5g` for the download and `5g_up` for the upload. Over the numbers of built-in links lie those that were fitted to
measured collectives (`costmodels.ports`); a folder of the user is taken at its word.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from costmodels.entries import KINDS, Kind, Spec, aliases, build, load
from costmodels.errors import DataError, Problem
from costmodels.files import write_atomically
from costmodels.ports import fitted_link
from costmodels.specs import DeviceSpec, LinkSpec, StoreSpec

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BUILT_IN", "KINDS", "Catalog", "Kind", "device", "fold", "link", "load_device", "store", "write_entry"]

BUILT_IN = Path(__file__).parent
_VENDORS = re.compile(r"^(nvidia|amd|intel|tesla|instinct|geforce|quadro)+(?=.)")


def fold(name: str) -> str:
    """What is left of a name when spelling does not count: letters and digits after the vendor's name."""
    return _VENDORS.sub("", re.sub(r"[^a-z0-9]", "", name.lower()))


class Catalog:
    """Entries by name or alias, from `folders` first and then from those built in."""

    def __init__(self, folders: Iterable[Path] = ()) -> None:
        self.folders = tuple(Path(f) for f in folders)

    def device(self, name: str) -> DeviceSpec:
        """Raises `DataError` for an unknown name, with those that come close, and for a file with mistakes."""
        found = self._find("devices", name)
        assert isinstance(found, DeviceSpec)
        return found

    def link(self, name: str) -> LinkSpec:
        """As `device`."""
        found = self._find("links", name)
        assert isinstance(found, LinkSpec)
        return found

    def store(self, name: str) -> StoreSpec:
        """As `device`."""
        found = self._find("stores", name)
        assert isinstance(found, StoreSpec)
        return found

    def names(self, kind: Kind) -> tuple[str, ...]:
        """Every entry's own name, sorted."""
        return tuple(sorted({path.stem for folder in self._searched(kind) for path in _files(folder)}))

    def frame(self, kind: Kind) -> "pd.DataFrame":
        """One row for each entry: the numbers of its spec, a column for each dtype's peak, and how many sources it cites."""
        import pandas as pd

        rows = []
        for name in self.names(kind):
            spec = self._find(kind, name)
            row = {f: getattr(spec, f) for f in spec.__slots__ if f not in ("measured", "sources")}
            peaks = row.pop("flop_per_s", {})
            if kind == "devices":
                row.pop("efficiency")
            row.update({f"flop_per_s.{dtype}": peak for dtype, peak in peaks.items()})
            rows.append({**row, "sources": len(spec.sources)})
        return pd.DataFrame(rows)

    def _searched(self, kind: Kind) -> list[Path]:
        return [folder / kind for folder in (*self.folders, BUILT_IN)]

    def _find(self, kind: Kind, name: str) -> Spec:
        wanted = fold(name)
        for folder in self._searched(kind):
            files = _files(folder)
            named = next((path for path in files if fold(path.stem) == wanted), None)
            found = named or next((path for path in files if wanted in map(fold, aliases(path))), None)
            if found is not None:
                spec = load(kind, found)
                return fitted_link(spec) if folder == BUILT_IN / kind and isinstance(spec, LinkSpec) else spec
        raise self._unknown(kind, name)

    def _unknown(self, kind: Kind, name: str) -> DataError:
        known = {fold(n): path.stem for f in self._searched(kind) for path in _files(f) for n in aliases(path)}
        known |= {fold(own): own for own in self.names(kind)}
        wanted = fold(name)
        close = dict.fromkeys(known[n] for n in get_close_matches(wanted, known, n=6, cutoff=0.5))
        advice = f"Did you mean {' or '.join(list(close)[:4])}?" if close else ""
        if name.strip().lower().startswith("this_machine"):
            advice = "This machine has not been measured: run `windtunnel calibrate`."
        if wanted == fold("this_machine_limited"):  # the same machine again, so that a part of its ranks can be limited
            first = "" if fold("this_machine") in known else f"{advice} Then "
            advice = f"{first}`windtunnel calibrate --operators MODEL:BATCH`, of the workload, writes this device."
        allowed = f"one of the {len(self.names(kind))} names that `windtunnel catalog {kind}` lists"
        return DataError(f"unknown {kind[:-1]}", [Problem(kind[:-1], repr(name), allowed, advice)])


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.yaml"))


def device(name: str, folders: Sequence[Path] = ()) -> DeviceSpec:
    """The device called `name`; raises as `Catalog.device`."""
    return Catalog(folders).device(name)


def link(name: str, folders: Sequence[Path] = ()) -> LinkSpec:
    """The link called `name`; raises as `Catalog.link`."""
    return Catalog(folders).link(name)


def store(name: str, folders: Sequence[Path] = ()) -> StoreSpec:
    """The store called `name`; raises as `Catalog.store`."""
    return Catalog(folders).store(name)


def load_device(path: Path) -> DeviceSpec:
    """The device described in one file, wherever it lies; raises `DataError` with all that is wrong in it."""
    found = load("devices", path)
    assert isinstance(found, DeviceSpec)
    return found


def write_entry(folder: Path, kind: Kind, name: str, fields: Mapping[str, Any]) -> Path:
    """Write one entry in the catalogue's own form as `folder`/`kind`/`name`.yaml, whole or not at all; returns the path.

    Raises `DataError` with all problems, and writes nothing, where the entry could not be read again.
    """
    build(kind, name, fields, name)
    path = Path(folder) / kind / f"{name}.yaml"
    text = yaml.safe_dump(dict(fields), sort_keys=False, width=10_000, allow_unicode=True, default_flow_style=None)
    write_atomically(path, text)
    return path
