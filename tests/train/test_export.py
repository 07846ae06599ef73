"""A trained network is published when its file answers as it does, at every batch, and not at all otherwise."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnxruntime
import pytest
import torch

from perwatt.data import Split, Stored
from perwatt.errors import ExportMismatch, GoldenMismatch, InputError
from perwatt.graph import Builder, Graph
from perwatt.networks import build
from perwatt.package import Package, Preprocessing, preprocess
from perwatt.package import open as open_package
from perwatt.package import read as read_package
from perwatt.train import export
from perwatt.train.export import publish
from perwatt.train.module import TrainingForm, initialise, training_form

HOW = Preprocessing(
    size=(20, 20), resize_to=20, interpolation="bilinear", channel_order="grey", mean=(0.0,), scale=(1 / 256,)
)
LABELS = ("first", "second", "third")


def pictures(count: int = 10) -> Split:
    random = np.random.default_rng(11)
    coarse = random.integers(0, 256, (count, 6, 6), dtype=np.uint8)
    return Split(Stored(np.kron(coarse, np.ones((1, 4, 4), np.uint8)), "squares"), np.arange(count) % len(LABELS))


@pytest.fixture(scope="module")
def trained() -> TrainingForm:
    """A LeNet that has seen some steps, so that its answers differ from image to image."""
    module = training_form(build("lenet", 1, classes=3, size=20))
    initialise(module, "lenet", seed=1)
    data = pictures()
    images = torch.from_numpy(np.stack([preprocess(data.photo(place), HOW) for place in range(len(data))]))
    optimizer = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9)
    for _ in range(20):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module.train()(images), torch.from_numpy(data.labels)).backward()
        optimizer.step()
    return module


def published(module: TrainingForm, path: Path | None, graph: Graph | None = None, **more: object) -> Package:
    given = {"name": "squares", "batches": (1, 3), "threads": 1, **more}
    return publish(module, graph or module.graph, pictures(), HOW, LABELS, path, **given)  # type: ignore[arg-type]


@pytest.mark.slow
def test_what_is_published_answers_as_what_was_trained(trained: TrainingForm, tmp_path: Path) -> None:
    path = tmp_path / "squares.perwatt"
    trained.train()
    made = published(trained, path, batches=(1, 2, 3, 8), training={"top1": 0.5})
    assert trained.training  # the mode it came in
    package = read_package(path)
    assert package == made
    assert package.labels == LABELS
    assert package.evidence["training"] == {"top1": 0.5}
    data = pictures()
    images = np.stack([preprocess(data.photo(place), HOW) for place in range(len(data))])
    wanted = trained.answer(torch.from_numpy(images)).double().numpy()
    session = onnxruntime.InferenceSession(package.model, providers=["CPUExecutionProvider"])
    told = package.evidence["export"]
    assert isinstance(told, dict)
    assert told["images"] == len(data)
    for batch in (1, 2, 3, 5, 10):
        answers = np.concatenate(
            [session.run(None, {"data": images[at : at + batch]})[0] for at in range(0, len(images), batch)]
        )
        assert np.abs(answers - wanted).max() <= told["tolerance"]
    assert [each["batch"] for each in told["batches"]] == [1, 2, 3, 8]  # type: ignore[index, union-attr]
    for each in told["batches"]:  # type: ignore[union-attr]
        assert 0 <= each["largest_difference"] <= each["largest_relative_error"] <= told["tolerance"]  # type: ignore[index, call-overload, operator]
        assert each["top1_agreement"] == 1.0  # type: ignore[index, call-overload]


def test_golden_examples_are_the_images_that_rounding_moves_most(trained: TrainingForm) -> None:
    package = published(trained, None)
    assert package.golden is not None
    data = pictures()
    images = np.stack([preprocess(data.photo(place), HOW) for place in range(len(data))])
    exact = export.answers(trained, images, torch.float64)
    moved = np.abs(export.answers(trained, images, torch.float32) - exact).max(1) / exact.max(1)
    encoded = [data.encoded(place) for place in range(len(data))]
    order = [encoded.index(image) for image in package.golden.images]
    assert order == sorted(range(len(data)), key=lambda place: -moved[place])[:8]
    np.testing.assert_allclose(package.golden.outputs, exact[order], rtol=1e-6)


@pytest.mark.parametrize("where", ["graph", "engine", "engine in one batch", "not finite"])
def test_a_network_that_answers_otherwise_is_not_published(
    where: str, trained: TrainingForm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, graph = tmp_path / "squares.perwatt", trained.graph
    if where == "graph":
        # The same tensors in a network that is wired otherwise: what an exporter gets wrong.
        node = next(node for node in graph.nodes if node.operator == "Relu")
        other = replace(node, operator="LeakyRelu", attributes=MappingProxyType({"alpha": 0.01}))
        graph = replace(graph, nodes=tuple(other if each is node else each for each in graph.nodes))
    else:

        def wrong(package: Package, batch: int = 1, **settings: object) -> Callable[[np.ndarray], np.ndarray]:
            model = open_package(package, batch, threads=1, tune="estimate")

            def run(images: np.ndarray) -> np.ndarray:
                answer = model(images)
                if where == "engine":
                    answer[-1] = answer[-1][::-1]
                elif where == "not finite":
                    answer[0, 0] = np.nan
                elif batch == 3:
                    answer = np.roll(answer, 1, axis=0)  # every image gets its neighbour's answer
                return answer

            return run

        monkeypatch.setattr(export, "open_package", wrong)
    with pytest.raises((ExportMismatch, GoldenMismatch), match="expected") as caught:
        published(trained, path, graph)
    assert not path.exists()
    if where == "engine in one batch":
        assert "at batch 3" in str(caught.value)


def test_a_wrong_request_is_refused_before_anything_is_computed(trained: TrainingForm) -> None:
    with pytest.raises(InputError, match="labels: expected 3, one for each output of lenet, got 2"):
        publish(trained, trained.graph, pictures(), HOW, LABELS[:2], None, name="squares")
    empty = pictures().subset(np.array([], np.int64))
    with pytest.raises(InputError, match="expected images to verify the export on, got none"):
        publish(trained, trained.graph, empty, HOW, LABELS, None, name="squares")


def test_images_to_verify_on_come_from_every_class_and_fewer_of_large_networks() -> None:
    labels = np.repeat(np.arange(5), 40)
    split = Split(Stored(np.zeros((200, 2, 2), np.uint8), "none"), labels)
    many = export._chosen(split, 1_000_000)
    assert len(many) == export.MOST_IMAGES
    assert set(labels[many]) == set(range(5))
    assert len(export._chosen(split, 15_000_000_000)) == export.FEWEST_IMAGES


def test_batch_normalisation_is_deployed_exactly(tmp_path: Path) -> None:
    builder = Builder("normalised")
    random = np.random.default_rng(5)
    data = builder.input("data", (1, 1, 20, 20))
    x = data
    for layer in range(2):
        channels = 1 if layer == 0 else 6
        weights = random.standard_normal((6, channels, 3, 3)).astype(np.float32)
        x = builder.add("Conv", [x, builder.constant(f"conv{layer}.w", weights)], name=f"c{layer}", kernel_shape=(3, 3))
        keys = ("weight", "bias", "running_mean", "running_var")
        names = [builder.constant(f"bn{layer}.{key}", random.uniform(0.5, 1.5, 6).astype(np.float32)) for key in keys]
        x = builder.add("Relu", [builder.add("BatchNormalization", [x, *names], name=f"bn{layer}")], name=f"r{layer}")
    x = builder.add("Flatten", [builder.add("GlobalAveragePool", [x], name="pool")], name="flat")
    last = builder.constant("last.weight", random.standard_normal((3, 6)).astype(np.float32))
    x = builder.add("Gemm", [x, last], name="logits", transB=1)
    module = training_form(builder.finish([builder.add("Softmax", [x], name="prob", axis=1)]))
    split = pictures()
    images = torch.from_numpy(np.stack([preprocess(split.photo(place), HOW) for place in range(len(split))]))
    for _ in range(3):  # moves the running statistics
        module.train()(images)
    package = published(module, tmp_path / "normalised.perwatt")
    session = onnxruntime.InferenceSession(package.model, providers=["CPUExecutionProvider"])
    wanted = module.eval().answer(images).numpy()
    assert np.abs(session.run(None, {"data": images.numpy()})[0] - wanted).max() < 1e-5
