"""Whole small networks through compile(), against ONNX Runtime: any batch, team, tuning and limit gives the answer."""

import json
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from network_oracles import check, compare, feeds_of, run_onnxruntime, tolerance
from small_graphs import NETS, Net, chain, modules, residuals, views

import perwatt
from perwatt.errors import InputError, NetworkError, PlanError, UnsupportedOperator
from perwatt.graph import Builder, Graph, write

Write = Callable[[Net], Sequence[str]]


def graph_of(write_net: Write, batch: int = 1) -> Graph:
    net = Net(batch)
    return net.graph(*write_net(net))


@pytest.mark.parametrize("batch", [1, 3, pytest.param(16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("write_net", NETS, ids=lambda write: write.__name__)
def test_against_onnx_runtime(write_net: Write, batch: int) -> None:
    check(graph_of(write_net, batch))


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["avx2", "portable"])
@pytest.mark.parametrize("write_net", NETS, ids=lambda write: write.__name__)
def test_narrower_vectors(write_net: Write, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERWATT_MACHINE", isa)
    try:
        perwatt.machine.this_machine()  # type: ignore[attr-defined]
    except InputError:
        pytest.skip(f"no {isa} here")
    check(graph_of(write_net, 3))


@pytest.mark.parametrize("write_net", [modules, pytest.param(residuals, marks=pytest.mark.slow)])
def test_the_team_and_the_part_of_the_batch_change_rounding_at_most(write_net: Write) -> None:
    graph = graph_of(write_net, 6)
    feeds = feeds_of(graph)
    results = [
        perwatt.compile(graph, tune="estimate", threads=threads, images=images).run(feeds)
        for threads, images in ((1, 6), (2, 6), (3, 1), (5, 2), (2, 3))
    ]
    for result in results[1:]:
        compare(graph, result, results[0])


@pytest.mark.slow
def test_one_image_at_a_time_equals_the_whole_batch() -> None:
    graph = graph_of(modules, 5)
    single = perwatt.compile(graph_of(modules, 1), tune="estimate")
    feeds = feeds_of(graph)
    (name,) = graph.inputs
    (whole,) = perwatt.compile(graph, tune="estimate").run(feeds).values()
    for image in range(5):
        (one,) = single.run({name: feeds[name][image : image + 1]}).values()
        compare(graph_of(modules, 1), {single_name(single): one}, {single_name(single): whole[image : image + 1]})


def single_name(model: perwatt.Model) -> str:
    return next(iter(model.outputs))


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4])
def test_every_candidate_gives_the_answer_and_measuring_picks_among_them(batch: int) -> None:
    graph = graph_of(chain, batch)
    rounds: list[tuple[int, int]] = []
    model = perwatt.compile(graph, tune="again", progress=lambda done, every: rounds.append((done, every)))
    assert rounds[-1][0] >= 1
    assert "measured" in str(model.plan)
    feeds = feeds_of(graph)
    compare(graph, model.run(feeds), run_onnxruntime(graph, feeds))
    again = perwatt.compile(graph, tune="measure")
    assert str(again.plan) == str(model.plan), "kept results must lead to the same plan"


def test_a_damaged_tuning_file_counts_as_none(tmp_path: Path) -> None:
    graph = graph_of(residuals)
    perwatt.compile(graph, tune="measure", tune_limit_s=0.0)
    (kept,) = (tmp_path / "cache" / "tuning").glob("*.json")
    whole = json.loads(kept.read_text())
    first = next(iter(whole))
    algorithm = next(iter(whole[first]))
    for content in (
        "", "[]", "{", "null", json.dumps({first: 5}), json.dumps({first: {algorithm: "fast"}}),
        json.dumps({first: {algorithm: None}}), json.dumps({first: {algorithm: float("nan")}}),
        json.dumps({first: {algorithm: -1.0}}), json.dumps({first: {"no such algorithm": 1e-9}}),
    ):  # fmt: skip
        kept.write_text(content)
        check(graph)


@pytest.mark.slow
def test_the_workspace_limit_reaches_the_plan() -> None:
    graph = graph_of(chain, 4)
    free = check(graph)
    with pytest.raises(PlanError, match="at least") as refusal:
        perwatt.compile(graph, tune="estimate", workspace_bytes=1)
    least = int(str(refusal.value).split("at least ")[1].split(" ")[0].replace(",", ""))
    for limit in (least, 2 * least):
        try:
            model = check(graph, workspace_bytes=limit)
        except PlanError as error:  # another step needs more: it must name more
            assert int(str(error).split("at least ")[1].split(" ")[0].replace(",", "")) > limit  # noqa: PT017
            continue
        assert model.plan.scratch_bytes <= limit
        assert model.working_bytes <= free.working_bytes


def test_views_are_outputs_of_their_own() -> None:
    graph = graph_of(views, 2)
    model = check(graph)
    feeds = feeds_of(graph)
    first, second = model.run(feeds), model.run(feeds)
    for name in graph.outputs:
        first[name][...] = -1  # what a caller does to his arrays is nobody's business
    again = model.run(feeds)
    assert all(np.array_equal(second[name], again[name]) for name in graph.outputs)


OUTPUTS: dict[str, Callable[[Net], Sequence[str]]] = {
    "an input": lambda n: [n.input(3, 4, 4)],
    "a view of an input": lambda n: [n.add("Reshape", n.input(3, 4, 4), shape=(-1, 8))],
    "a constant": lambda n: [n.add("Relu", n.input(2, 3)), n.weights(4, 2)],
    "a folded constant": lambda n: [n.add("Relu", n.input(2, 3)), n.add("Sigmoid", n.weights(4, 2))],
    "of a vector": lambda n: [n.add("Tanh", n.input())],
    "over one axis": lambda n: [
        n.add("MaxPool", n.add("Conv", n.input(6, 9), n.weights(8, 3, 3), group=2, pads=(1, 2)), kernel_shape=(2,))
    ],
    "a conv and its flat view": lambda n: (lambda c: [n.add("Flatten", c, axis=1), c])(n.conv(n.input(3, 4, 4), 5)),
}


@pytest.mark.parametrize("what", OUTPUTS)
def test_an_output_may_be(what: str) -> None:
    check(graph_of(OUTPUTS[what], 2))


def test_an_input_that_nobody_reads_must_still_fit() -> None:
    net = Net(1)
    x, unused = net.input(3), net.input(4)
    graph = net.graph(net.add("Relu", x))
    check(graph)
    with pytest.raises(InputError, match=unused):
        perwatt.compile(graph, tune="estimate").run({x: np.zeros((1, 3), np.float32)})


def test_files_bytes_and_graphs_are_the_same_network(tmp_path: Path) -> None:
    graph = graph_of(residuals)
    content = write(graph)
    (tmp_path / "net.onnx").write_bytes(content)
    feeds = feeds_of(graph)
    wanted = perwatt.compile(graph, tune="estimate").run(feeds)
    for source in (content, tmp_path / "net.onnx", str(tmp_path / "net.onnx")):
        got = perwatt.compile(source, tune="estimate").run(feeds)
        assert all(np.array_equal(got[name], wanted[name]) for name in graph.outputs)


@pytest.mark.slow
def test_several_models_at_once_from_many_threads() -> None:
    graphs = [graph_of(write_net, batch) for write_net, batch in ((chain, 1), (modules, 2), (residuals, 3))]
    models = [perwatt.compile(g, tune="estimate", threads=t) for g in graphs for t in (1, 2)]
    graphs = [g for g in graphs for _ in (1, 2)]
    cases = [
        [(feeds := feeds_of(g, seed), m.run(feeds)) for seed in range(4)] for g, m in zip(graphs, models, strict=True)
    ]
    wrong: list[str] = []

    def work(number: int) -> None:
        random = np.random.default_rng(number)
        for _ in range(60):
            which, case = int(random.integers(len(models))), int(random.integers(4))
            feeds, wanted = cases[which][case]
            got = models[which].run(feeds)
            if any(not np.array_equal(got[name], wanted[name]) for name in wanted):
                wrong.append(f"model {which} case {case} thread {number}")

    workers = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not any(worker.is_alive() for worker in workers)
    assert not wrong


@pytest.mark.slow
def test_compiling_from_several_threads_at_once() -> None:
    graph = graph_of(residuals, 2)
    feeds, made = feeds_of(graph), []

    def work() -> None:
        made.append(perwatt.compile(graph, tune="estimate").run(feeds))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    wanted = run_onnxruntime(graph, feeds)
    assert len(made) == 4
    for got in made:
        compare(graph, got, wanted)


@pytest.mark.slow
def test_calls_allocate_nothing_that_stays() -> None:
    graph = graph_of(modules, 8)
    model = perwatt.compile(graph, tune="estimate")
    inputs = [feeds_of(graph, seed) for seed in range(5)]

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc here")
    for feeds in inputs * 4:
        model.run(feeds)
    before = resident_bytes()
    for feeds in inputs * 40:
        model.run(feeds)
    assert resident_bytes() - before < 1 << 20


@pytest.mark.slow
def test_models_give_their_memory_back() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc here")
    net = Net(1)
    graph = net.graph(net.dense(net.input(2048), 4096))  # 32 MiB of weights
    feeds = feeds_of(graph)
    sizes = []
    for _ in range(5):
        perwatt.compile(graph, tune="estimate").run(feeds)
        sizes.append(resident_bytes())
    assert sizes[-1] - sizes[0] < 48 << 20


def test_weights_that_are_no_numbers_are_told() -> None:
    b = Builder("net", seed=0)
    weights = np.ones((4, 3), np.float32)
    weights[1, 2] = np.nan
    x = b.input("x", (2, 3), np.float32)
    graph = b.finish([str(b.add("Gemm", [x, b.constant("sick", weights)], transB=1, name="y"))])
    with pytest.warns(UserWarning, match="'sick' hold NaN or infinity"):
        model = perwatt.compile(graph, tune="estimate")
    (got,) = model.run({"x": np.ones((2, 3), np.float32)}).values()
    assert np.array_equal(np.isnan(got), [[False, True, False, False]] * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        perwatt.compile(graph_of(residuals), tune="estimate")


def test_what_is_too_large_is_refused_before_it_is_allocated() -> None:
    net = Net(1 << 20)
    graph = net.graph(net.add("Relu", net.conv(net.input(3, 512, 512), 16, 3)))
    with pytest.raises(PlanError, match=r"needs about .* GiB.*smaller batch"):
        perwatt.compile(graph, tune="estimate")


@pytest.mark.parametrize("threads", [0, -1, 2.5, "two"])
def test_teams_have_members(threads: object) -> None:
    with pytest.raises(InputError, match="at least 1"):
        perwatt.compile(graph_of(residuals), threads=threads, tune="estimate")  # type: ignore[arg-type]


def test_other_wrong_arguments() -> None:
    graph = graph_of(residuals, 4)
    with pytest.raises(InputError, match="divisor"):
        perwatt.compile(graph, images=3, tune="estimate")
    with pytest.raises(InputError, match="batch 4"):
        perwatt.compile(graph, batch=2, tune="estimate")
    with pytest.raises(InputError, match="one of measure, again, estimate, got 'fast'"):
        perwatt.compile(graph, tune="fast")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="got int"):
        perwatt.compile(5, tune="estimate")  # type: ignore[arg-type]
    with pytest.raises(NetworkError):
        perwatt.compile(b"no network at all", tune="estimate")
    with pytest.raises(NetworkError):
        perwatt.compile("/no/such/file.onnx", tune="estimate")
    with pytest.raises((InputError, PlanError), match="workspace"):
        perwatt.compile(graph, workspace_bytes=-1, tune="estimate")


def test_an_unknown_operator_is_named_with_its_node_and_what_there_is() -> None:
    import onnx
    from onnx import TensorProto, helper

    node = helper.make_node("Sin", ["x"], ["y"], name="wave")
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3]) for n in ("x", "y")]
    model = helper.make_model(helper.make_graph([node], "g", ports[:1], ports[1:]))
    model.opset_import[0].version, model.ir_version = 17, 8
    onnx.checker.check_model(model)
    with pytest.raises(UnsupportedOperator, match=r"Sin \(node 'wave'\).*FusedConv"):
        perwatt.compile(model.SerializeToString(), tune="estimate")


def test_tolerances_are_small() -> None:
    assert tolerance(graph_of(modules)) < 1e-3


@pytest.mark.parametrize("images", [None, 1])
@pytest.mark.parametrize("write_net", NETS, ids=lambda write: write.__name__)
def test_working_memory_may_hold_anything_before_and_nothing_beyond_it_is_written(
    write_net: Write, images: int | None
) -> None:
    graph = graph_of(write_net, 3)
    model = perwatt.compile(graph, tune="estimate", images=images)
    feeds = feeds_of(graph)
    wanted = model.run(feeds)
    arena, scratch, *_ = model._code._keep
    assert isinstance(arena, np.ndarray)
    assert isinstance(scratch, np.ndarray)
    used = np.zeros(arena.size, bool)
    for name, offset in model.plan.buffers.items():
        used[offset : offset + model.plan.placement.buffer_floats[name]] = True
    for canary in (np.float32(np.nan), np.float32(-7.5e33)):
        arena[:] = scratch[:] = canary
        got = model.run(feeds)
        assert all(np.array_equal(got[name], wanted[name]) for name in wanted), "what was there before shows"
        outside = [arena[~used], scratch[model.plan.scratch_bytes // 4 :]]
        assert all(np.array_equal(part, np.full_like(part, canary), equal_nan=True) for part in outside)
    assert model.working_bytes == 4 * model.plan.arena_floats + model.plan.scratch_bytes
