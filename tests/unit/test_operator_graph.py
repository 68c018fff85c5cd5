"""Graphs that come with the library: read without torch, consistent, and of the published models' sizes."""

from math import prod
from pathlib import Path

import pytest

from costmodels.errors import DataError
from costmodels.operator_graph import Extent, OperatorGraph, load, named, names
from costmodels.precision import ADJUSTABLE
from simcore.buckets import assign

MIB = 2**20
LAYER = 7_087_872
"""Parameters of one layer of BERT-base: 4 x (768 x 768 + 768), 2 x 768 x 3072 + 3072 + 768, and two norms of 2 x 768."""


def bucket_sizes(name: str) -> list[int]:
    """Elements of each bucket of DistributedDataParallel, in the order of their reduction."""
    sizes = {parameter: prod(size) for parameter, size in named(name).parameters.items()}
    buckets = assign([(parameter, 4 * n) for parameter, n in sizes.items()], MIB, 25 * MIB)
    return [sum(sizes[parameter] for parameter in bucket) for bucket in buckets]


@pytest.mark.parametrize("name", names())
def test_every_graph_reads_back_as_it_was_written(name: str, tmp_path: Path) -> None:
    graph = named(name)
    graph.save(tmp_path / "again.json")
    assert load(tmp_path / "again.json") == graph
    assert len(graph.index) == len(graph.operators)


@pytest.mark.parametrize("name", names())
def test_what_an_operator_reads_has_the_size_that_its_producer_gave_it(name: str) -> None:
    graph = named(name)
    for operator in graph:
        for producer, place in zip(operator.inputs, operator.sources, strict=True):
            if graph[producer].kind != "split":
                assert operator.operands[place] == graph[producer].output, (operator.name, producer)


@pytest.mark.parametrize("name", names())
def test_the_longest_way_to_an_operator_is_one_longer_than_to_what_it_reads(name: str) -> None:
    graph = named(name)
    for operator in graph:
        assert operator.depth == max((graph[i].depth + 1 for i in operator.inputs), default=0)


def test_every_parameter_of_every_graph_is_read() -> None:
    for name in names():
        graph = named(name)
        assert {p for operator in graph for p in operator.parameters} == set(graph.parameters), name


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("resnet50", [2049000, 7875584, 6563840, 6637568, 2431040]),
        ("vgg16", [4097000, 16781312, 102764544, 7079424, 7079936, 555328]),
        ("bert_base", [1538 + 1536 + 2360064, *[LAYER] * 11, 28563456]),
        ("roberta_base", [769 + 590592, *[LAYER] * 12, 39000576]),
    ],
)
def test_buckets_are_those_that_were_recorded_for_qsync(name: str, sizes: list[int]) -> None:
    """Convolutional models: all elements as recorded; the others: the first bucket and one encoder layer for each after it."""
    assert bucket_sizes(name) == sizes


@pytest.mark.parametrize(
    ("name", "count"), [("resnet50", 54), ("vgg16", 16), ("bert_base", 3 + 12 * 8 + 1), ("gpt2", 2 + 12 * 6 + 1)]
)
def test_number_of_operators_whose_precision_a_plan_chooses(name: str, count: int) -> None:
    """BERT: three tables, six linears and two products a layer, one head."""
    assert sum(operator.kind in ADJUSTABLE for operator in named(name)) == count


def test_multiplications_of_resnet50() -> None:
    """4.09 billion multiply-accumulates for an image, of which 3.8 billion are in the paper's version with strides in 1x1."""
    graph = named("resnet50")
    products = 0
    for operator in graph:
        if operator.kind in ("conv2d", "linear"):
            per_output = prod(graph.weight(operator)[1:])
            products += operator.output.elements(1) * per_output
    assert products == 4_089_184_256


def test_a_batch_multiplies_one_dimension() -> None:
    assert Extent((12, 384, 64), 0).at(8) == (96, 384, 64)
    assert Extent((64, 64), None).at(8) == (64, 64)
    scores = named("roberta_base")["classifier"]
    assert scores.output.at(16) == (64, 1)


def test_a_graph_that_contradicts_itself_is_refused() -> None:
    text = named("small_resnet").to_json().replace('["layer1/add",0]', '["layer9/add",0]')
    with pytest.raises(DataError, match="layer9/add"):
        OperatorGraph.from_json(text)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match="resnet50"):
        named("resnet51")
