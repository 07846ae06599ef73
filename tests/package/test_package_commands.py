"""perwatt package, inspect and run, as a person or a program meets them."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from small_package import LABELS, photograph, small_network, small_package

from perwatt import cli
from perwatt.errors import NetworkError
from perwatt.graph import Builder
from perwatt.graph import write as write_network
from perwatt.package import Package, read, write
from perwatt.package.built_ins import DRAWN_SIZES, built_in, demo, drawn_photograph
from perwatt.package.photograph import image_header

MEANS = ("--mean", "104,117,123", "--scale", "0.02", "--channels", "bgr", "--resize-to", "14")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder with a network, labels and photographs, and go there."""
    (tmp_path / "small.onnx").write_bytes(small_network())
    (tmp_path / "labels.txt").write_text("\n".join(LABELS) + "\n", encoding="utf-8")
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed in range(10):
        (photos / f"{seed}.png").write_bytes(photograph(seed))
    (photos / "notes.txt").write_text("no photograph")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert cli.run(list(arguments)) == code
    return capsys.readouterr().out


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.run(list(arguments)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("perwatt: ")
    return lines[-1]


def made(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    whole = json.loads(told(capsys, "package", "small.onnx", *arguments, "--golden", "photos", "--json"))
    assert isinstance(whole, dict)
    return whole


def test_the_way_of_the_issue(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = told(
        capsys, "package", "small.onnx", *MEANS, "--labels", "labels.txt", "--golden", "photos", "-o", "x.perwatt",
        "--licence", "MIT", "--source", "a test", "--name", "tiny", "--release", "2.1",
    )  # fmt: skip
    assert "agrees" in out
    assert "x.perwatt" in out
    package = read(folder / "x.perwatt")
    assert (package.name, package.version, package.licence, package.source) == ("tiny", "2.1", "MIT", "a test")
    assert package.labels == LABELS
    assert package.model == (folder / "small.onnx").read_bytes()
    assert package.preprocessing.mean == (104.0, 117.0, 123.0)
    assert package.preprocessing.scale == (0.02, 0.02, 0.02)
    assert package.golden is not None
    # Eight of the ten photographs, evenly.
    assert package.golden.images == tuple(photograph(place * 10 // 8) for place in range(8))

    shown = told(capsys, "inspect", "x.perwatt", "--replay")
    for word in (
        "tiny",
        "version 2.1",
        "MIT",
        "a test",
        "golden/007.png",
        "bgr",
        "(pixel − [104, 117, 123])",
        "agrees",
    ):
        assert word in shown
    facts = json.loads(told(capsys, "inspect", "x.perwatt", "--replay", "--json"))
    assert facts["labels"] == list(LABELS)
    assert facts["replay"]["agrees"] is True
    assert facts["input_shape"] == [3, 12, 10]
    assert facts["preprocessing"]["mean"] == [104, 117, 123]
    assert json.loads(told(capsys, "inspect", "x.perwatt", "--json"))["replay"] is None

    seen = told(capsys, "run", "x.perwatt", "photos/3.png", "photos/4.png", "--top", "2")
    assert seen.count("%") == 4
    answers = json.loads(told(capsys, "run", "x.perwatt", "photos/3.png", "--json"))["answers"]
    assert [each["label"] for each in answers[0]["top"]] == [LABELS[each["index"]] for each in answers[0]["top"]]
    values = [each["value"] for each in answers[0]["top"]]
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(1, abs=1e-6)
    expected = package.golden.outputs[2]  # photograph 2 of ten lies at place 2 of eight
    same = json.loads(told(capsys, "run", "x.perwatt", "photos/2.png", "--json", "--top", "1"))["answers"][0]["top"][0]
    assert same["index"] == int(np.argmax(expected))
    assert same["value"] == pytest.approx(float(expected.max()), rel=1e-5)


def test_a_bad_photograph_costs_the_others_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(small_package(), folder / "x.perwatt")
    arguments = ("run", "x.perwatt", "gone.jpg", "photos/1.png", "photos/notes.txt", "photos", "--json")
    answers = json.loads(told(capsys, *arguments, code=2))["answers"]
    assert [each["error"] is None for each in answers] == [False, True, False, False]
    assert "no such file" in answers[0]["error"]
    assert "photos/notes.txt: expected a photograph" in answers[2]["error"]
    assert answers[1]["top"][0]["label"] in LABELS
    shown = told(capsys, "run", "x.perwatt", "gone.jpg", "photos/1.png", code=2)
    assert "no such file" in shown
    assert "%" in shown


def test_answers_that_are_no_probabilities_are_shown_as_they_are(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "small.onnx").write_bytes(small_network(softmax=False))
    told(capsys, "package", "small.onnx", *MEANS, "--golden", "photos", "-o", "x.perwatt")
    assert "%" not in told(capsys, "run", "x.perwatt", "photos/1.png")
    answer = json.loads(told(capsys, "run", "x.perwatt", "photos/1.png", "--json"))["answers"][0]
    assert not answer["probabilities"]
    assert answer["top"][0]["label"] == f"class {answer['top'][0]['index']}"


@pytest.mark.parametrize(
    ("arguments", "mean", "scale"),
    [
        (("--mean", "104,117,123", "--std", "50"), (104, 117, 123), (0.02,) * 3),
        (("--mean", "0.5", "--std", "0.25", "--range", "1"), (127.5,) * 3, (1 / 63.75,) * 3),
        (("--mean", "0", "--scale", "0.01"), (0,) * 3, (0.01,) * 3),
        (("--mean", "127"), (127,) * 3, (1,) * 3),
        (("--mean", "0", "--range", "1"), (0,) * 3, (1 / 255,) * 3),
        (("--mean", "0.5", "--range", "255"), (0.5,) * 3, (1,) * 3),
        (("--like", "resnet50"), (123.675, 116.28, 103.53), (1 / 58.395, 1 / 57.12, 1 / 57.375)),
        (("--like", "resnet50", "--mean", "1.5"), (1.5,) * 3, (1 / 58.395, 1 / 57.12, 1 / 57.375)),
    ],
)
def test_mean_and_scale_in_every_form(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    mean: tuple[float, ...],
    scale: tuple[float, ...],
) -> None:
    how = made(capsys, *arguments)["preprocessing"]
    assert isinstance(how, dict)
    assert how["mean"] == pytest.approx(mean)
    assert how["scale"] == pytest.approx(scale)
    assert how["size"] == [12, 10]
    assert how["resize_to"] == round(10 * 256 / 224)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("small.onnx",), "does not say how its input is made"),
        (("small.onnx", "--mean", "0.485,0.456,0.406"), "looks like pixels from 0 to 1"),
        (("small.onnx", "--mean", "1,2"), "expected 1 or 3 numbers"),
        (("small.onnx", "--mean", "a,b,c"), "expected 1 or 3 numbers"),
        (("small.onnx", "--mean", "nan"), "expected 1 or 3 numbers"),
        (("small.onnx", "--mean", "9", "--std", "0"), "not 0"),
        (("small.onnx", "--mean", "9", "--std", "2", "--scale", "2"), "got both"),
        (("small.onnx", "--mean", "9", "--range", "7"), "1 or 255"),
        (("small.onnx", "--mean", "9", "--channels", "grey"), "1 means"),
        (("small.onnx", "--mean", "9", "--resize", "zoom"), "short-side, squash, crop"),
        (("small.onnx", "--mean", "9", "--resize-to", "3"), "resize_to"),
        (("small.onnx", "--like", "lenet"), "3 channels"),
        (("small.onnx", "--like", "resnet5"), "expected one of"),
        (("small.onnx", "--mean", "9", "--labels", "gone.txt"), "gone.txt"),
        (("small.onnx", "--mean", "9", "--golden", "nowhere"), "expected a folder"),
        (("small.onnx", "--mean", "9", "--golden", "labels.txt"), "expected photographs"),
        (("small.onnx", "--mean", "9", "--name", "a/b"), "letters"),
        (("efficient-lite0",), "did you mean efficientnet-lite0"),
        (("labels.txt", "--mean", "9"), "ONNX"),
    ],
)
def test_mistakes_are_told_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], expected: str
) -> None:
    assert expected in complaint(capsys, "package", *arguments)
    assert not list(folder.glob("*.perwatt"))


@pytest.mark.parametrize(
    ("name", "content", "labels"),
    [
        ("l.txt", "cat\ndog\nBär\nhot dog, red hot\nzebra", LABELS),
        ("l.txt", "\ufeffcat\r\ndog\r\nBär\r\nhot dog, red hot\r\nzebra\r\n\r\n", LABELS),
        ("l.json", json.dumps(list(LABELS)), LABELS),
        ("l.json", json.dumps({str(place): label for place, label in reversed(list(enumerate(LABELS)))}), LABELS),
    ],
)
def test_labels_in_every_form(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, labels: tuple[str, ...]
) -> None:
    (folder / name).write_bytes(content.encode())
    assert made(capsys, *MEANS, "--labels", name)["labels"] == list(labels)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("l.txt", b"cat\n\ndog\nbird\ncow\n", "line 2"),
        ("l.txt", b"cat\ndog\n", "one for each of the 5"),
        ("l.txt", b"", "labels"),
        ("l.txt", b"\xff\xfe\x00", "UTF-8"),
        ("l.txt", b"a\nb\nc\nd\n\x1b[31me\n", "control characters"),
        ("l.json", b"{", "JSON"),
        ("l.json", b'{"0": "cat", "2": "dog"}', "JSON list"),
        ("l.json", b"[1, 2, 3, 4, 5]", "JSON list"),
    ],
)
def test_labels_that_are_none(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, expected: str
) -> None:
    (folder / name).write_bytes(content)
    for golden in ("photos", "none"):
        assert expected in complaint(
            capsys, "package", "small.onnx", *MEANS, "--labels", name, "--golden", golden, "-o", "x.perwatt"
        )
    assert not (folder / "x.perwatt").exists()


def test_a_network_with_channels_last_or_two_inputs_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    b = Builder("last")
    x = b.input("x", (1, 12, 10, 3))
    (folder / "last.onnx").write_bytes(write_network(b.finish((b.add("Relu", (x,)),))))
    assert "channels are last" in complaint(capsys, "package", "last.onnx", "--mean", "9")
    b = Builder("two")
    both = (b.input("x", (1, 3, 12, 10)), b.input("y", (1, 3, 12, 10)))
    (folder / "two.onnx").write_bytes(write_network(b.finish((b.add("Add", both),))))
    assert "expected one float32 input" in complaint(capsys, "package", "two.onnx", "--mean", "9")


def test_weights_in_another_file_are_taken_inside(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load_from_string(small_network())
    onnx.save_model(
        model, str(folder / "split.onnx"), save_as_external_data=True, location="split.weights", size_threshold=0
    )
    told(capsys, "package", "split.onnx", *MEANS, "--golden", "photos", "-o", "x.perwatt")
    (folder / "split.weights").unlink()
    package = read(folder / "x.perwatt")
    assert package.name == "x"
    assert package.golden == read_golden(capsys, folder)
    assert "%" in told(capsys, "run", "x.perwatt", "photos/1.png")


def read_golden(capsys: pytest.CaptureFixture[str], folder: Path) -> object:
    """Return the golden examples of the same network in one file."""
    told(capsys, "package", "small.onnx", *MEANS, "--golden", "photos", "-o", "whole.perwatt")
    return read(folder / "whole.perwatt").golden


def test_without_golden_examples(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "package", "small.onnx", *MEANS, "--golden", "none", "-o", "x.perwatt")
    assert "nothing shows that it answers rightly" in told(capsys, "inspect", "x.perwatt")
    assert "expected golden examples" in complaint(capsys, "inspect", "x.perwatt", "--replay")
    assert "%" in told(capsys, "run", "x.perwatt", "photos/1.png")


def test_a_package_that_no_longer_agrees_is_shown_and_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dataclasses import replace

    write(replace(small_package(), model=small_network(seed=4)), folder / "x.perwatt")
    assert "DIFFERS" in told(capsys, "inspect", "x.perwatt", "--replay", code=1)
    assert "golden answers" in complaint(capsys, "run", "x.perwatt", "photos/1.png")


def test_what_is_no_package_is_told_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "make one: perwatt package" in complaint(capsys, "inspect", "gone.perwatt")
    assert "another kind of file" in complaint(capsys, "inspect", "small.onnx")
    write(small_package(), folder / "x.perwatt")
    assert "expected one of fp32" in complaint(capsys, "run", "x.perwatt", "photos/1.png", "--precision", "fp8")
    (folder / "x.perwatt").write_bytes((folder / "x.perwatt").read_bytes()[:-1])
    assert "truncated" in complaint(capsys, "run", "x.perwatt", "photos/1.png")


def test_a_folder_that_cannot_be_written_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "file").write_text("")
    assert "expected to write here" in complaint(
        capsys, "package", "small.onnx", *MEANS, "--golden", "photos", "-o", "file/x.perwatt"
    )


def test_a_built_in_network_knows_its_preprocessing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(told(capsys, "package", "lenet", "--golden", "photos", "--json"))
    package = read(folder / "lenet.perwatt")
    assert facts["path"] == "lenet.perwatt"
    assert package.preprocessing.channel_order == "grey"
    assert package.preprocessing.size == (28, 28)
    assert package.labels is None
    assert package.source is not None
    assert "LeCun" in package.source


def test_drawn_photographs_serve_where_there_are_none(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perwatt.lab.photographs.find_spec", lambda name: None)
    assert cli.run(["package", "lenet", "--json"]) == 0
    captured = capsys.readouterr()
    assert "drawn pictures" in captured.err
    assert json.loads(captured.out)["replay"]["agrees"] is True
    package = read(folder / "lenet.perwatt")
    assert package.golden is not None
    assert len(package.golden.images) == len(DRAWN_SIZES)


def test_drawn_photographs_have_the_spectrum_of_photographs() -> None:
    for seed, (width, height) in enumerate(DRAWN_SIZES):
        content = drawn_photograph(width, height, seed)
        header = image_header(content)
        assert (header.format, header.width, header.height) == ("JPEG", width, height)
        assert content == drawn_photograph(width, height, seed)
    from io import BytesIO

    pixels = np.asarray(Image.open(BytesIO(drawn_photograph(512, 512, 3))).convert("L"), dtype=np.float64)
    power = np.abs(np.fft.fft2(pixels - pixels.mean())) ** 2
    frequency = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.fftfreq(512)[None])
    low, high = ((frequency > f / 1.3) & (frequency < f * 1.3) for f in (0.02, 0.08))
    # Amplitude as 1 / f is power as 1 / f^2: four times the frequency, a sixteenth of the power.
    assert 10 < power[low].mean() / power[high].mean() < 25


def test_the_demo_is_made_once_and_again_when_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perwatt.package.built_ins.DEMO", ("lenet",))
    path = demo(tmp_path)
    content = path.read_bytes()
    assert read(path) == built_in("lenet")
    path.write_bytes(content[:100])
    assert demo(tmp_path) == path
    assert path.read_bytes() == content
    before = path.stat().st_mtime_ns
    assert demo(tmp_path).stat().st_mtime_ns == before
    monkeypatch.setenv("PERWATT_CACHE", str(tmp_path / "cache"))
    assert demo().is_relative_to(tmp_path / "cache" / "demo")


def test_the_demo_without_trained_weights_is_another_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def without_weights(name: str, tell: object) -> Package:
        asked.append(name)
        if name == "efficientnet-lite0":
            raise NetworkError("expected the Python package, it is not installed")
        return small_package()

    monkeypatch.setattr("perwatt.package.built_ins.built_in", without_weights)
    path = demo(tmp_path)
    assert asked == ["efficientnet-lite0", "squeezenet1.1"]
    assert path.name.startswith("squeezenet1.1-")
    assert read(path) == small_package()
