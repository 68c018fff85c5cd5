"""A damaged or hostile checkpoint is refused with the place named, and nothing is allocated for what it claims."""

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from real.checkpoint.checkpointer import load, save
from real.checkpoint.errors import CheckpointError, CorruptCheckpoint
from real.checkpoint.metadata import CHECKSUM_B, FIXED_B, DataFile, Metadata, decode, encode
from real.checkpoint.storage import Local
from simcore.checkpoint.shards import TensorSpec
from simcore.errors import WindtunnelError


def two_shards() -> Metadata:
    """A 4 x 3 tensor in two files, and one without elements."""
    return Metadata(
        step=10,
        n_ranks=2,
        tensors=(TensorSpec("model/w", (4, 3), "float32"), TensorSpec("model/none", (0, 5), "bfloat16")),
        files=(DataFile("model-000000.bin", 24, 0), DataFile("model-000001.bin", 24, 1)),
        aliases={"model/tied": "model/w"},
        parallelism={"dp": 2},
        values={"model": {"w": {"$tensor": "model/w"}}},
        tensor=np.array([0, 0]),
        file=np.array([0, 1]),
        offset_B=np.array([0, 0]),
        checksum=np.array([2**64 - 1, 7], dtype=np.uint64),
        offsets=np.array([[0, 0], [2, 0]]),
        lengths=np.array([[2, 3], [2, 3]]),
    )


def sealed(body: bytes) -> bytes:
    """With the checksum that belongs to it."""
    return body + xxhash.xxh3_64_intdigest(body).to_bytes(CHECKSUM_B, "little")


def with_header(change: Callable[[dict[str, Any]], object]) -> bytes:
    """The file with its header changed, and sound otherwise."""
    raw = encode(two_shards())
    size = int.from_bytes(raw[8:16], "little")
    header = json.loads(raw[FIXED_B : FIXED_B + size])
    change(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return sealed(
        raw[:8] + len(text).to_bytes(8, "little") + raw[16:FIXED_B] + text + raw[FIXED_B + size : -CHECKSUM_B]
    )


def test_what_is_encoded_is_decoded() -> None:
    wanted, found = two_shards(), decode(encode(two_shards()), "m")
    for field in ("step", "n_ranks", "tensors", "files", "aliases", "parallelism", "values"):
        assert getattr(found, field) == getattr(wanted, field)
    for field in ("tensor", "file", "offset_B", "checksum", "offsets", "lengths"):
        assert getattr(found, field).tolist() == getattr(wanted, field).tolist()
    assert encode(found) == encode(wanted)


def test_the_bytes_are_where_the_description_has_them() -> None:
    """FORMAT.md, read by hand."""
    raw = encode(two_shards())
    assert raw[:8] == b"WTCKPT01"
    header_B, n, d = np.frombuffer(raw, "<u8", 3, 8).tolist()
    assert (n, d, header_B % 8) == (2, 2, 0)
    assert json.loads(raw[32 : 32 + header_B])["tensors"][0] == ["model/w", "model", "float32", [4, 3]]
    table = np.frombuffer(raw, "<i8", 16, 32 + header_B).reshape(8, 2)
    assert table.tolist() == [[0, 0], [0, 1], [0, 0], [-1, 7], [0, 2], [0, 0], [2, 2], [3, 3]]
    assert int.from_bytes(raw[-8:], "little") == xxhash.xxh3_64_intdigest(raw[:-8])
    assert len(raw) == 32 + header_B + 8 * 16 + 8


HOSTILE_HEADERS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda h: h.update(files=[["../../etc/passwd", 24, 0], ["b", 24, 1]]), "etc/passwd"),
    (lambda h: h.update(files=[["/abs", 24, 0], ["b", 24, 1]]), "/abs"),
    (lambda h: h.update(files=[[".hidden", 24, 0], ["b", 24, 1]]), "hidden"),
    (lambda h: h.update(files=[["metadata.wtc", 24, 0], ["b", 24, 1]]), "metadata.wtc"),
    (lambda h: h.update(files=[["same", 24, 0], ["same", 24, 1]]), "there twice"),
    (lambda h: h.update(files=[["a", 23, 0], ["b", 24, 1]]), "within a of 23 bytes"),
    (lambda h: h.update(files=[["a", -1, 0], ["b", 24, 1]]), "size of a"),
    (lambda h: h.update(files=[["a", 24, 2], ["b", 24, 1]]), "rank of a"),
    (lambda h: h.update(files=[["a", 24, 0]]), "file of a shard: given 1"),
    (lambda h: h.update(tensors=[["w", "m", "float32", [2**62, 3]], ["x", "m", "int8", [0]]]), "whole number"),
    (lambda h: h.update(tensors=[["w", "m", "float32", [2**40, 2**40]], ["x", "m", "int8", [0]]]), "bytes"),
    (lambda h: h.update(tensors=[["w", "m", "float32", [4, 4]], ["x", "m", "int8", [0]]]), "not sound|not a sound"),
    (lambda h: h.update(tensors=[["w", "m", "object", [4, 3]], ["x", "m", "int8", [0]]]), "object"),
    (
        lambda h: h.update(tensors=[["w", "m", "float32", [4, 3, 1]], ["x", "m", "int8", [0]]]),
        "dimensions of the table",
    ),
    (lambda h: h.update(tensors=[["w", "m", "float32", [4, 3]], ["w", "m", "int8", [0, 1]]]), "there twice"),
    (lambda h: h.update(tensors=[["w", "m", "float32", [True, 3]], ["x", "m", "int8", [0, 1]]]), "True"),
    (lambda h: h.update(tensors="none"), "tensors"),
    (lambda h: h.update(aliases={"a": "missing"}), "alias a"),
    (lambda h: h.update(n_ranks=2**40), "n_ranks"),
    (lambda h: h.update(step=-1), "step"),
    (lambda h: h.update(step=1.5), "step"),
    (lambda h: h.update(values=[]), "values"),
    (lambda h: h.pop("values"), "values"),
]


@pytest.mark.parametrize(("change", "words"), HOSTILE_HEADERS)
def test_hostile_headers_are_refused(change: Callable[[dict[str, Any]], object], words: str) -> None:
    with pytest.raises(CorruptCheckpoint, match=words):
        decode(with_header(change), "m")


HOSTILE_TABLES = [
    ({"tensor": np.array([0, 5])}, "tensor of a shard: given 5"),
    ({"file": np.array([0, -1])}, "file of a shard: given -1"),
    ({"offset_B": np.array([0, -8])}, "bytes -8 to 16"),
    ({"offset_B": np.array([0, 2**62])}, "within model-000001.bin"),
    ({"file": np.array([0, 0])}, "shared with the next shard"),
    ({"offsets": np.array([[0, 0], [1, 0]])}, "shards overlap|every element in one shard"),
    ({"offsets": np.array([[0, 0], [3, 0]])}, "a box within shape"),
    ({"offsets": np.array([[0, 0], [2**62, 0]])}, "a box within shape"),
    ({"lengths": np.array([[2, 3], [2, 2]])}, "10 elements"),
    ({"lengths": np.array([[2, 3], [2**62, 2**62]])}, "a box within shape"),
    ({"lengths": np.array([[2, 3], [0, 3]])}, "a box within shape"),
    ({"lengths": np.array([[2, 3], [-2, -3]])}, "a box within shape"),
]


@pytest.mark.parametrize(("change", "words"), HOSTILE_TABLES)
def test_hostile_tables_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(CorruptCheckpoint, match=words):
        decode(encode(replace(two_shards(), **change)), "m")


@pytest.mark.parametrize("position", [8, 16, 24])
@pytest.mark.parametrize("value", [0, 2**40, 2**63, 2**64 - 1])
def test_counts_that_do_not_fit_the_file_allocate_nothing(position: int, value: int) -> None:
    raw = bytearray(encode(two_shards())[:-CHECKSUM_B])
    raw[position : position + 8] = value.to_bytes(8, "little")
    tracemalloc.start()
    with pytest.raises(CorruptCheckpoint, match="size"):
        decode(sealed(bytes(raw)), "m")
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


def test_values_nested_too_deeply_are_refused() -> None:
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    with pytest.raises(CorruptCheckpoint, match="more than 160 levels"):
        decode(with_header(lambda h: h.update(values={"model": deep})), "m")
    text = b"[" * 100_000
    raw = b"WTCKPT01" + np.array([len(text), 0, 1], "<u8").tobytes() + text
    with pytest.raises(CorruptCheckpoint, match="header"):
        decode(sealed(raw), "m")


MUTATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.integers(0, 10**4), st.integers(1, 255)),
        st.tuples(st.just("cut"), st.integers(0, 10**4), st.integers(1, 64)),
        st.tuples(st.just("insert"), st.integers(0, 10**4), st.integers(0, 255)),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=600, deadline=None)
@given(MUTATIONS, st.booleans())
def test_any_mutation_is_refused_or_harmless(mutations: list[tuple[str, int, int]], reseal: bool) -> None:
    """With a fitting checksum put on, so that what is behind it is tried as well: CorruptCheckpoint, or nothing unsound."""
    original = encode(two_shards())
    raw = bytearray(original[:-CHECKSUM_B] if reseal else original)
    for kind, at, value in mutations:
        position = at % (len(raw) or 1)
        if kind == "flip" and raw:
            raw[position] ^= value
        elif kind == "cut":
            del raw[position : position + value]
        else:
            raw.insert(position, value)
    changed = sealed(bytes(raw)) if reseal else bytes(raw)
    try:
        found = decode(changed, "m")
    except CorruptCheckpoint:
        return
    assert changed == original or reseal
    assert found.shards.total_B == sum(t.nbytes for t in found.tensors)
    assert (found.offset_B + found.shards.nbytes <= np.array([f.nbytes for f in found.files])[found.file]).all()


def saved(root: Path) -> dict[str, torch.Tensor]:
    state = {"a": torch.arange(1000.0), "b": torch.arange(50, dtype=torch.int16), "c": torch.tensor(3.5)}
    save(root, {"model": state, "optimizer": {"m": torch.ones(300)}}, step=1)
    return state


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_flipped_bit_anywhere_is_found_and_named(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("c")
    state = saved(root)
    folder = root / "step-00000001"
    file = data.draw(st.sampled_from(sorted(p.name for p in folder.iterdir())))
    raw = bytearray((folder / file).read_bytes())
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    (folder / file).write_bytes(raw)
    metadata = decode(Local(root).metadata("step-00000001"), "m") if file != "metadata.wtc" else None
    target = {"model": {n: torch.zeros_like(t) for n, t in state.items()}, "optimizer": {"m": torch.zeros(300)}}
    hit = None
    if metadata is not None:
        ends = metadata.offset_B + metadata.shards.nbytes
        inside = (
            [metadata.files[f].name == file for f in metadata.file]
            & (metadata.offset_B <= bit // 8)
            & (bit // 8 < ends)
        )
        hit = next((metadata.words(int(i)) for i in np.flatnonzero(inside)), None)
        if hit is None:  # between shards
            load(root, target)
            return
    with pytest.raises(CorruptCheckpoint) as caught:
        load(root, target)
    assert file in str(caught.value)
    assert hit is None or hit in str(caught.value)


def test_a_truncated_file_and_a_missing_one_are_named(tmp_path: Path) -> None:
    saved(tmp_path)
    file = tmp_path / "step-00000001" / "model-000000.bin"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    target = {"model": {"a": torch.zeros(1000)}}
    with pytest.raises(
        CheckpointError, match=rf"model-000000\.bin: given {len(content) - 1} bytes; allowed: {len(content)}"
    ):
        load(tmp_path, target)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"model-000000\.bin"):
        load(tmp_path, target)
    (tmp_path / "step-00000001" / "optimizer-000000.bin").unlink()
    file.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="not a file"):
        load(tmp_path, target)


@pytest.mark.parametrize("pointer", ["../elsewhere", "/etc", "step-1/../../x", "", "step-00000099", "\x00\xff"])
def test_a_pointer_that_leads_elsewhere_is_refused(tmp_path: Path, pointer: str) -> None:
    saved(tmp_path)
    (tmp_path / "latest").write_bytes(pointer.encode("latin-1"))
    with pytest.raises(WindtunnelError, match="latest"):
        load(tmp_path, {"model": {"a": torch.zeros(1000)}})
