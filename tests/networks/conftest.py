"""What the tests of the networks share: photographs, Graphs built once, and ONNX Runtime on two threads."""

from collections.abc import Callable
from functools import cache

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from perwatt.graph.graph import Graph
from perwatt.graph.onnx_writer import write
from perwatt.networks import Network, build


@pytest.fixture(scope="session")
def photographs() -> tuple[str, ...]:
    """Name colour photographs that scikit-image carries."""
    return ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina")


@pytest.fixture(scope="session")
def photograph() -> Callable[[str], Image.Image]:
    data = pytest.importorskip("skimage.data")
    return cache(lambda name: Image.fromarray(getattr(data, name)()))


@pytest.fixture(scope="session")
def network_input(photograph: Callable[[str], Image.Image]) -> Callable[[Network, str], np.ndarray]:
    """Make an input [1, channels, height, width] as the network's description says, with Pillow and NumPy only."""

    def make(network: Network, name: str) -> np.ndarray:
        image = photograph(name)
        short = network.resize_to / min(image.size)
        size = (round(image.width * short), round(image.height * short))
        image = image.resize(size, Image.Resampling[network.interpolation.upper()])
        height, width = network.input_size
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
        if network.channel_order == "grey":
            pixels = np.asarray(image.convert("L"), np.float64)[:, :, None]
        else:
            pixels = np.asarray(image, np.float64)[:, :, :: -1 if network.channel_order == "bgr" else 1]
        fed = (pixels - np.array(network.mean)) * np.array(network.scale)
        return fed.transpose(2, 0, 1)[None].astype(np.float32)

    return make


@pytest.fixture(scope="module")
def graph_of() -> Callable[[str], Graph]:
    """Build a network at batch 1, once for the tests of a file."""
    return cache(build)


@pytest.fixture(scope="session")
def onnxruntime_of() -> Callable[[Graph], onnxruntime.InferenceSession]:
    def session(graph: Graph) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        return onnxruntime.InferenceSession(write(graph), options, providers=["CPUExecutionProvider"])

    return session
