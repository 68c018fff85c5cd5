"""Which precision flows where, and which casts that needs."""

from dataclasses import replace

from costmodels.catalog import Catalog
from costmodels.operator_graph import Extent, Operator, OperatorGraph
from costmodels.precision import Cast, Flow, allowed, casts, flows, widened

HAS = ("int8", "float16", "float32")


def chain(*kinds: str, width: int = 8) -> OperatorGraph:
    """Operators one after the other on (width,) for each sample; linear ones have square weights."""
    operators, parameters = [], {}
    for i, kind in enumerate(kinds):
        own = (f"{kind}{i}.weight",) if kind == "linear" else ()
        parameters |= dict.fromkeys(own, (width, width))
        before = (operators[-1].name,) if operators else ()
        operators.append(
            Operator(
                name=f"{kind}{i}",
                kind=kind,
                inputs=before,
                sources=tuple(range(len(before))),
                operands=(Extent((width,)),),
                output=Extent((width,)),
                parameters=own,
                depth=i,
            )
        )
    return OperatorGraph(
        name="chain", source="by hand", sample="8 numbers", operators=tuple(operators), parameters=parameters
    )


def test_inferring_operators_take_what_comes_and_fixed_ones_do_not() -> None:
    graph = chain("linear", "relu", "gelu", "relu")
    found = flows(graph, {"linear0": "float16"}, HAS)
    assert [found[o.name].output for o in graph] == ["float16", "float16", "float32", "float32"]


def test_int8_hands_on_float32_and_goes_back_in_the_next_wider_precision_that_the_device_has() -> None:
    graph = chain("linear")
    assert flows(graph, {"linear0": "int8"}, HAS)["linear0"] == Flow("int8", "float16", "float32")
    assert flows(graph, {"linear0": "int8"}, ("int8", "bfloat16", "float32"))["linear0"].backward == "bfloat16"


def test_nothing_is_cast_in_float32() -> None:
    graph = chain("linear", "relu", "linear")
    assert not list(casts(graph, flows(graph, {}, HAS), 4))
    assert not list(casts(graph, flows(graph, {"linear0": "tf32"}, ("tf32", "float32")), 4))


def test_casts_of_an_int8_product_behind_a_float32_one() -> None:
    graph = chain("linear", "linear")
    found = list(casts(graph, flows(graph, {"linear1": "int8"}, HAS), 4))
    n, w = 4 * 8, 8 * 8
    assert found == [
        Cast("linear1", "forward", "operand 0", "float32", "int8", n),
        Cast("linear1", "forward", "weight", "float32", "int8", w),
        Cast("linear1", "backward", "output gradient", "float32", "float16", n),
        Cast("linear1", "backward", "saved operand 0", "int8", "float16", n),
        Cast("linear1", "backward", "operand 0 gradient", "float16", "float32", n),
        Cast("linear1", "backward", "saved weight", "int8", "float16", w),
        Cast("linear1", "backward", "weight gradient", "float16", "float32", w),
    ]


def test_neighbours_of_one_precision_share_their_tensors() -> None:
    graph = chain("linear", "relu", "linear")
    found = list(casts(graph, flows(graph, {"linear0": "float16", "linear2": "float16"}, HAS), 4))
    assert {c.what for c in found if c.operator == "linear2"} == {"weight", "weight gradient"}
    assert not [c for c in found if c.operator == "relu1"]


def test_what_a_plan_may_choose() -> None:
    linear, relu = chain("linear", "relu")
    assert allowed(linear, HAS) == HAS
    assert allowed(relu, HAS) == ()
    embedding = Operator(name="words", kind="embedding", output=Extent((8, 16)))
    assert allowed(embedding, HAS) == ("float16", "float32")


def test_a_graph_survives_its_file(tmp_path) -> None:
    graph = chain("linear", "relu", "linear")
    graph.save(tmp_path / "chain.json")
    assert OperatorGraph.from_json((tmp_path / "chain.json").read_text()) == graph


def test_a_cpu_widens_what_it_is_not_faster_in_or_what_calibration_found() -> None:
    catalog = Catalog()
    server = catalog.device("server_cpu")  # bfloat16 is twice as fast, float16 it does not have
    assert widened(server) == {"float16"}
    assert widened(replace(server, measured={"widened": ["float16", "bfloat16"]})) == {"float16", "bfloat16"}
    assert widened(catalog.device("t4")) == frozenset()
