"""Accuracy against labels: figures against scikit-learn's, intervals against their promise, Records that cannot lie."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from perwatt import cli
from perwatt.data import Split, Stored
from perwatt.errors import DataError, EngineCrashed, EngineMissing, InputError, RecordError
from perwatt.graph import Builder
from perwatt.lab.engine import Job, Loaded
from perwatt.lab.evaluation import evaluate as evaluation
from perwatt.lab.evaluation.check import check
from perwatt.lab.evaluation.evaluate import Evaluation, EvaluationRequest, evaluate
from perwatt.lab.evaluation.figures import complete, digest, figures_of, ranked
from perwatt.lab.evaluation.proportions import paired_difference, wilson
from perwatt.lab.evaluation.record import Answers, EvaluationRecord
from perwatt.lab.evaluation.record_file import load, save, schema
from perwatt.lab.evaluation.terminal import share_text
from perwatt.lab.process import BlockRequest, BlockResult, Started
from perwatt.lab.record import Estimate, pack
from perwatt.package import Preprocessing
from perwatt.package import pack as make_package
from perwatt.package import write as write_package

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")
HOW = Preprocessing(size=(4, 4), resize_to=4, interpolation="box", channel_order="grey", mean=(0.0,), scale=(1 / 255,))
Arrays = tuple[np.ndarray, np.ndarray]


def drawn(seed: int, count: int, classes: int) -> Arrays:
    """Return labels and probabilities of a classifier that is right more often than not."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    scores = random.standard_normal((count, classes))
    scores[np.arange(count), labels] += random.uniform(0, 3, count)
    return labels, np.exp(scores) / np.exp(scores).sum(1, keepdims=True)


def answers_of(labels: np.ndarray, outputs: np.ndarray) -> Answers:
    said, rank = ranked(outputs, labels)
    rows = np.arange(len(labels))
    confidences = pack(outputs[rows, said]), pack(outputs[rows, labels])
    return Answers(
        said=pack(said), rank=pack(rank), confidence=confidences[0], label_confidence=confidences[1], errors=None
    )


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 300), classes=st.integers(2, 9))
def test_figures_are_those_of_scikit_learn(seed: int, count: int, classes: int) -> None:
    labels, outputs = drawn(seed, count, classes)
    found = figures_of(answers_of(labels, outputs), labels, classes, None)
    said = outputs.argmax(1)
    every = list(range(classes))
    assert found.top1.value == pytest.approx(metrics.accuracy_score(labels, said))
    if classes > 5:
        assert found.top5 is not None
        assert found.top5.value == pytest.approx(metrics.top_k_accuracy_score(labels, outputs, k=5, labels=every))
    else:
        assert found.top5 is None
    matrix = np.zeros((classes, classes), int)
    for pair in found.confusions:
        matrix[pair.label, pair.said] = pair.images
    np.testing.assert_array_equal(matrix, metrics.confusion_matrix(labels, said, labels=every))
    precision, recall, _, support = metrics.precision_recall_fscore_support(labels, said, labels=every, zero_division=0)
    for place, each in enumerate(found.classes):
        assert each.images == support[place]
        assert (each.precision is None) == (not (said == place).any())
        assert (each.precision.value if each.precision else 0.0) == pytest.approx(precision[place])
        assert (each.recall.value if each.recall else 0.0) == pytest.approx(recall[place])
    wrong = [place for place in range(count) if said[place] != labels[place]]
    surest = sorted(wrong, key=lambda place: -np.float32(outputs[place].max()))
    assert list(found.mistakes) == surest[:24]


def test_calibration_error_by_hand() -> None:
    # Guo et al.'s definition with 15 bins: 0.9 and 0.92 share (13/15, 14/15], one of the two is right; 0.6 = 9/15 lies
    # in (8/15, 9/15], and is right.
    confidence = np.array([0.9, 0.92, 0.6], np.float64)
    labels = np.array([0, 0, 0])
    outputs = np.stack([confidence, 1 - confidence], 1)
    outputs[1] = outputs[1][::-1]
    found = figures_of(answers_of(labels, outputs), labels, 2, None)
    by_hand = (2 * abs(0.91 - 0.5) + abs(0.6 - 1.0)) / 3
    assert found.ece == pytest.approx(by_hand, abs=1e-6)
    assert sum(each.images for each in found.bins) == 3


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=4), min_size=1, max_size=12), st.data())
def test_ranks_break_ties_by_order(scores: list[list[int]], data: st.DataObject) -> None:
    outputs = np.array(scores, np.float64)
    labels = np.array([data.draw(st.integers(0, 3)) for _ in scores])
    said, rank = ranked(outputs, labels)
    order = np.argsort(-outputs, axis=1, kind="stable")
    assert [list(row).index(label) for row, label in zip(order, labels, strict=True)] == list(rank)
    assert list(order[:, 0]) == list(said)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(8, 10, 0.490, 0.943), (0, 20, 0.0, 0.161), (20, 20, 0.839, 1.0), (263, 1000, 0.237, 0.291)],
)
def test_wilsons_interval(hits: int, count: int, low: float, high: float) -> None:
    found = wilson(hits, count)
    assert found is not None
    assert found.low == pytest.approx(low, abs=6e-4)
    assert found.high == pytest.approx(high, abs=6e-4)
    # What defines its ends: the share lies z standard errors of the end away from it.
    for end in (found.low, found.high):
        assert end is not None
        if 0 < end < 1:
            assert abs(end - hits / count) == pytest.approx(1.959964 * (end * (1 - end) / count) ** 0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("right", "lost", "gained"), [(0.9, 0.02, 0.01), (0.6, 0.1, 0.1), (0.98, 0.01, 0.0), (0.97, 0.0, 0.0)]
)
def test_the_interval_of_a_difference_keeps_its_promise(right: float, lost: float, gained: float) -> None:
    random = np.random.default_rng(4)
    trials, count = 3000, 400
    cells = random.multinomial(count, [lost, gained, right - lost, 1 - right - gained], trials)
    held = 0
    for only_first, only_second, both, neither in cells:
        found = paired_difference(int(both), int(only_first), int(only_second), int(neither))
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        held += found.low <= gained - lost <= found.high
    # Three standard errors below 95 % of 3000 trials.
    assert held / trials > 0.95 - 3 * (0.95 * 0.05 / trials) ** 0.5


@pytest.mark.parametrize(
    ("cells", "low", "high"),
    # Newcombe 1998, table II, method 10: (both, only first, only second, neither), first less second.
    [((36, 12, 2, 0), 0.0569, 0.3404)],
)
def test_the_interval_of_a_difference_is_newcombes(cells: tuple[int, int, int, int], low: float, high: float) -> None:
    found = paired_difference(*cells)
    assert found is not None
    assert found.value == pytest.approx((cells[2] - cells[1]) / sum(cells))
    assert found.low == pytest.approx(-high, abs=6e-5)
    assert found.high == pytest.approx(-low, abs=6e-5)
    assert paired_difference(cells[0], cells[2], cells[1], cells[3]).value == -found.value  # type: ignore[union-attr]


def test_shares_are_written_as_exactly_as_they_are_known() -> None:
    assert share_text(Estimate(value=0.978, low=0.957, high=0.989)) == "97.8 % (95.7–98.9)"
    assert share_text(Estimate(value=0.9781, low=0.9760, high=0.9802)) == "97.81 % (97.60–98.02)"
    assert share_text(Estimate(value=0.0, low=-0.005, high=0.005), signed=True) == "+0.0 % (-0.5 to +0.5)"
    assert not share_text(Estimate(value=0.99996, low=None, high=None)).startswith("100")
    assert share_text(None) == "–"


# ---- whole evaluations


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of one layer whose answer is known: the mean of each of seven of the picture's sixteen pixels."""
    builder = Builder("pixels")
    data = builder.input("data", (1, 1, 4, 4))
    flat = builder.add("Flatten", [data], name="flat")
    weights = builder.constant("logits.weight", (9.0 * np.eye(7, 16)).astype(np.float32))
    logits = builder.add("Gemm", [flat, weights], name="logits", transB=1)
    graph = builder.finish([builder.add("Softmax", [logits], name="prob", axis=1)])
    photos = [split(5).encoded(place) for place in range(3)]
    path = tmp_path_factory.mktemp("package") / "pixels.perwatt"
    write_package(make_package(graph, "pixels", HOW, labels=CLASSES, photos=photos), path)
    return path


def split(count: int, seed: int = 0) -> Split:
    """Pictures whose brightest of the first seven pixels is their class, but for every eighth."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 200, (count, 4, 4), dtype=np.uint8)
    labels = np.arange(count) % 7
    said = np.where(np.arange(count) % 8 == 7, (labels + 1) % 7, labels)
    pixels.reshape(count, 16)[np.arange(count), said] = 255
    return Split(Stored(pixels, "pixels"), labels)


@pytest.fixture
def folders(tmp_path: Path) -> Callable[..., Path]:
    """Write pictures as folders of PNG files, one for each class."""

    def make(data: Split, names: tuple[str, ...] = CLASSES) -> Path:
        root = tmp_path / "pictures"
        for place in range(len(data)):
            folder = root / "test" / names[int(data.labels[place])]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{place:03}.png").write_bytes(data.encoded(place))
            other = root / "train" / names[int(data.labels[place])]
            other.mkdir(parents=True, exist_ok=True)
            (other / f"{place:03}.png").write_bytes(data.encoded(place))
        return root

    return make


class Scripted:
    """A worker that computes the network in NumPy and then does what its engine's script says."""

    def __init__(self, engine: str, job: Job, inputs_path: Path) -> None:
        self.engine, self.job = engine, job
        self.feed(inputs_path)
        self.calls = 0

    def feed(self, inputs_path: Path, timeout_s: float = 1.0) -> None:
        self.inputs = np.load(inputs_path)

    def start(self, timeout_s: float = 1.0) -> Started:
        if self.engine == "ncnn":
            raise EngineMissing("ncnn: its library cannot be imported")
        reported = "bf16" if self.engine == "torch" else self.job.precision
        return Started(Loaded("0", reported), 0.1, 0.1, None)

    def block(self, plan: BlockRequest, timeout_s: float | None = None) -> BlockResult:
        self.calls += 1
        if self.engine == "openvino" and self.calls == 2:
            raise EngineCrashed("openvino: died of SIGSEGV")
        outputs = {}
        for run in plan.keep:
            logits = 9.0 * self.inputs[run].reshape(len(self.inputs[run]), 16)[:, :7]
            if self.engine == "onnxruntime":  # it mistakes every cat for a dog
                logits[:, [2, 3]] = logits[:, [3, 2]]
            if self.engine == "perwatt" and self.job.precision == "bf16":
                logits[0, 0] = np.nan
            outputs[run] = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)
        return BlockResult((1,) * plan.minimum_runs, 0, 1, outputs, {run: run for run in plan.keep})

    def close(self) -> None:
        pass


def scripted(package: Path, data: Path, tmp_path: Path, **more: Any) -> Evaluation:
    request = EvaluationRequest(package, str(data), threads=1, out=tmp_path / "out", **more)
    return evaluate(request, lambda done, total, what: None, Scripted)  # type: ignore[arg-type]


def test_every_fate_of_an_engine_is_a_row(
    package: Path, folders: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perwatt.lab.evaluation.answering.PIECE_BYTES", 40 * 64)  # two pieces of 40 pictures
    engines = ("perwatt", "onnxruntime", "openvino", "ncnn", "torch")
    data = split(80)
    found = scripted(package, folders(data), tmp_path, engines=engines, precisions=("fp32", "bf16"), batch=8)
    record = found.record
    rows = {(row.engine, row.precision): row for row in record.rows}
    assert {key: row.status for key, row in rows.items()} == {
        ("reference", "fp32"): "ok",
        ("perwatt", "fp32"): "ok",
        ("onnxruntime", "fp32"): "ok",
        ("openvino", "fp32"): "crashed",
        ("ncnn", "fp32"): "missing",
        ("torch", "fp32"): "invalid",
        ("perwatt", "bf16"): rows["perwatt", "bf16"].status,
        ("onnxruntime", "bf16"): "refused",
        ("openvino", "bf16"): "crashed",
        ("ncnn", "bf16"): "missing",
        ("torch", "bf16"): "ok",
    }
    # Refused while perwatt has no BF16, not finite where it has it.
    assert rows["perwatt", "bf16"].status in ("refused", "invalid")
    assert "asked for fp32, the engine ran bf16" in str(rows["torch", "fp32"].reason)
    own = rows["perwatt", "fp32"].figures
    assert own is not None
    assert own.images == 80
    assert own.top1.value == 1 - 10 / 80
    assert own.agreement is not None
    assert own.agreement.value == 1.0
    assert own.verdict == "no difference seen"
    wrong = rows["onnxruntime", "fp32"].figures
    assert wrong is not None
    assert wrong.verdict == "loss"
    assert wrong.agreement is not None
    assert wrong.agreement.value < 0.8
    assert wrong.classes[2].recall is not None
    assert wrong.classes[2].recall.value < 0.2
    assert check(record) == []


def test_classes_are_matched_by_name_not_by_order(package: Path, folders: Callable[..., Path], tmp_path: Path) -> None:
    # Folders are read in the order of their names; the labels of the package stay in the package's.
    renamed = make_renamed(package, tmp_path)
    found = scripted(renamed, folders(split(56)), tmp_path).record
    assert found.data.classes == tuple(reversed(CLASSES))
    figures = found.rows[1].figures
    assert figures is not None
    assert figures.top1.value < 0.3  # the last class's name stands for the first pixel now
    plain = scripted(package, tmp_path / "pictures", tmp_path).record.rows[1].figures
    assert plain is not None
    assert plain.top1.value == 1 - 7 / 56


def make_renamed(package: Path, tmp_path: Path) -> Path:
    from perwatt.package import read

    path = tmp_path / "renamed.perwatt"
    write_package(replace(read(package), labels=tuple(reversed(CLASSES))), path)
    return path


def test_classes_that_the_package_does_not_know_are_refused(
    package: Path, folders: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"expected classes that pixels knows \(ant, .*\), got 'hen'"):
        scripted(package, folders(split(14), ("ant", "bee", "cat", "dog", "elk", "fox", "hen")), tmp_path)


def test_broken_pictures_are_refused_or_named(package: Path, folders: Callable[..., Path], tmp_path: Path) -> None:
    root = folders(split(21))
    broken = root / "test" / "bee" / "001.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"001.png.*--skip-broken"):
        scripted(package, root, tmp_path)
    found = scripted(package, root, tmp_path, skip_broken=True)
    assert [Path(name).name for name in found.record.data.skipped] == ["001.png"]
    assert found.record.data.labels.shape == (20,)
    assert str(broken) not in {found.split.name(int(place)) for place in found.places}


def test_few_images_come_evenly_from_the_classes(package: Path, folders: Callable[..., Path], tmp_path: Path) -> None:
    found = scripted(package, folders(split(70)), tmp_path, images=14).record
    figures = found.rows[1].figures
    assert figures is not None
    assert figures.images == 14
    assert all(each.images == 2 for each in figures.classes)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"engines": ("perwat",)}, "engine: expected some of perwatt"),
        ({"engines": ("reference",)}, "the reference answers in any case"),
        ({"precisions": ("fp8",)}, "precision: expected some of fp32, bf16, fp16, auto, got 'fp8'"),
        ({"batch": 0}, "batch: expected a whole number from 1"),
    ],
)
def test_wrong_requests(wrong: dict[str, Any], match: str, package: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=match):
        scripted(package, tmp_path, tmp_path, **wrong)


@pytest.fixture(scope="module")
def record(package: Path, tmp_path_factory: pytest.TempPathFactory) -> EvaluationRecord:
    folder = tmp_path_factory.mktemp("record")
    data = split(64)
    pixels = data.pictures
    assert isinstance(pixels, Stored)
    with pytest.MonkeyPatch.context() as patch:
        made = evaluation.DataSet("pixels", "array", "memory", CLASSES, {"test": data})
        patch.setattr(evaluation, "open_data", lambda source: made)
        return scripted(package, folder, folder, engines=("perwatt", "onnxruntime")).record


def test_a_record_comes_back_from_its_file(record: EvaluationRecord, tmp_path: Path) -> None:
    import jsonschema

    path = save(record, tmp_path)
    assert load(path) == record
    assert check(load(path)) == []
    jsonschema.validate(json.loads(path.read_text()), schema())


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_no_figure_can_be_edited(record: EvaluationRecord, data: st.DataObject) -> None:
    fields = record.model_dump(mode="json")
    row = fields["rows"][data.draw(st.integers(0, len(fields["rows"]) - 1))]
    places: list[tuple[Any, Any]] = []

    def gather(holder: Any) -> None:
        for key, value in holder.items() if isinstance(holder, dict) else enumerate(holder):
            if isinstance(value, dict | list):
                gather(value)
            elif isinstance(value, int | float) and not isinstance(value, bool):
                places.append((holder, key))

    gather(row["figures"])
    holder, key = data.draw(st.sampled_from(places))
    holder[key] += 1 if isinstance(holder[key], int) else 0.001
    edited = EvaluationRecord.model_validate(fields)
    assert check(edited)
    # Nor with a digest made anew.
    assert check(edited.model_copy(update={"digest": digest(edited)}))


def test_answers_that_contradict_each_other_are_found(record: EvaluationRecord) -> None:
    row = record.rows[1]
    assert row.answers is not None
    count = record.data.labels.shape[0]
    for update, told in (
        ({"rank": pack(np.zeros(count))}, "rank"),
        ({"said": pack(np.full(count, 99.0))}, "beyond the last"),
        ({"confidence": pack(np.full(count, 0.01))}, "confidence"),
        ({"said": pack(np.zeros(count - 1))}, "said"),
    ):
        other = row.model_copy(update={"answers": row.answers.model_copy(update=update)})
        found = check(record.model_copy(update={"rows": (record.rows[0], other, *record.rows[2:])}))
        assert any(told in str(each) for each in found), told
    labels = record.data.model_copy(update={"labels": pack(np.full(count, 8.0))})
    assert "data.labels" in str(check(record.model_copy(update={"data": labels}))[0])


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"schema_version": 1, "kind": "loadtest"}')
    with pytest.raises(RecordError, match="expected a Record of kind 'evaluation', got 'loadtest'"):
        load(path)


def test_figures_do_not_depend_on_what_was_there_before(record: EvaluationRecord) -> None:
    stripped = record.model_copy(
        update={"rows": tuple(row.model_copy(update={"figures": None}) for row in record.rows), "digest": ""}
    )
    assert complete(stripped) == record


@pytest.mark.slow
def test_from_the_command_line_on_real_engines(
    package: Path, folders: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = folders(split(40)), tmp_path / "out"
    asked = ["--engines", "perwatt,onnxruntime", "--precision", "fp32", "--threads", "1", "--out", str(out)]
    assert cli.run(["evaluate", str(package), str(root), *asked, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["figures"]["top1"]["value"] for row in told["rows"]] == [1 - 5 / 40] * 3
    assert told["rows"][0]["figures"]["agreement"] is None
    assert told["rows"][1]["figures"]["largest_error"] < 1e-5
    assert all(Path(path).read_bytes()[:4] == b"\x89PNG" for path in told["pictures"])
    assert len(told["pictures"]) == 3
    assert {Path(each["name"]).suffix for each in told["rows"][1]["mistakes"]} == {".png"}
    assert cli.run(["check", told["record"]]) == 0
    assert "VALID" in capsys.readouterr().out
    assert cli.run(["report", told["record"]]) == 0
    shown = capsys.readouterr().out
    assert "87.5 %" in shown
    assert "no difference seen" in shown
    refused = ["--precision", "fp16", "--engines", "onnxruntime", "--out", str(out)]
    assert cli.run(["evaluate", str(package), str(root), *refused]) == 1


def test_probabilities_rounded_to_bf16_stay_probabilities(
    package: Path, folders: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their sums are off 1 by more than FP32's; a softmax of them would make every confidence a seventh or so."""
    block = Scripted.block

    def rounded(self: Scripted, plan: BlockRequest, timeout_s: float | None = None) -> BlockResult:
        found = block(self, plan, timeout_s)
        if self.engine == "torch":
            for outputs in found.outputs.values():
                outputs[...] = (outputs.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)  # cut, not rounded
                outputs *= np.float32(1 + 2**-9) / outputs.sum(1, keepdims=True)
        return found

    monkeypatch.setattr(Scripted, "block", rounded)
    found = scripted(package, folders(split(56)), tmp_path, engines=("torch",), precisions=("bf16",)).record
    exact, halves = (row.figures for row in found.rows)
    assert exact is not None
    assert halves is not None
    assert found.probabilities
    assert halves.mean_confidence == pytest.approx(exact.mean_confidence, abs=2**-7)
    assert halves.mean_confidence > 0.5


def test_logits_that_happen_to_add_up_to_one_are_no_probabilities_later(
    package: Path, folders: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the outputs are is a matter of the network: decided once, not for every piece of pictures."""
    monkeypatch.setattr("perwatt.lab.evaluation.answering.PIECE_BYTES", 28 * 64)

    def block(self: Scripted, plan: BlockRequest, timeout_s: float | None = None) -> BlockResult:
        self.calls += 1
        one = np.eye(7, dtype=np.float32)[[0] * self.inputs.shape[1]]
        outputs = dict.fromkeys(plan.keep, one if self.calls > 1 else 3 * one)
        return BlockResult((1,) * plan.minimum_runs, 0, 1, outputs, {run: run for run in plan.keep})

    monkeypatch.setattr(Scripted, "block", block)
    found = scripted(package, folders(split(56)), tmp_path, batch=4).record
    assert not found.probabilities
    own = found.rows[1].figures
    assert own is not None
    soft = [np.exp(top) / (np.exp(top) + 6) for top in (3.0, 1.0)]
    assert own.mean_confidence == pytest.approx(np.mean(soft), rel=1e-6)
