"""A package in a model process: it answers as its Model does, in a crowd and beside images that are no numbers."""

import asyncio
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perwatt import package as packages
from perwatt.errors import GoldenMismatch
from perwatt.graph import Builder, Graph
from perwatt.serve.batcher import Limits
from perwatt.serve.dispatch import Dispatch
from perwatt.serve.process import package_source
from perwatt.serve.service import Answer

SIZE = 16
HOW = packages.Preprocessing(
    size=(SIZE, SIZE), resize_to=SIZE, interpolation="bilinear", channel_order="rgb",
    mean=(128.0,) * 3, scale=(1 / 64,) * 3,
)  # fmt: skip


def network() -> Graph:
    """Return convolution, ReLU, pooling, fully connected, softmax: answers that differ from image to image."""
    random = np.random.default_rng(5)
    b = Builder("small", seed=1)
    x = b.input("pixels", (1, 3, SIZE, SIZE))
    w = b.constant("w", random.standard_normal((24, 3, 3, 3)).astype(np.float32) / 5)
    x = b.add("Relu", [b.add("Conv", [x, w], kernel_shape=(3, 3), pads=(1, 1, 1, 1))])
    x = b.add("Flatten", [b.add("MaxPool", [x], kernel_shape=(2, 2), strides=(2, 2))], axis=1)
    v = b.constant("v", random.standard_normal((10, b.shape(x)[1])).astype(np.float32) / 20)
    return b.finish([b.add("Softmax", [b.add("Gemm", [x, v], transB=1)], axis=1)])


def photo(number: int) -> bytes:
    noise = np.random.default_rng(number).integers(0, 256, (24, 31, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def package_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("package") / "small.perwatt"
    packages.write(packages.pack(network(), "small", HOW, photos=[photo(1), photo(2)]), path)
    return path


@pytest.mark.slow
def test_a_served_package_answers_as_its_model_does(package_path: Path) -> None:
    model = packages.open(packages.read(package_path), 1)
    inputs = np.stack([packages.preprocess(photo(number), HOW) for number in range(40)])
    expected = np.concatenate([model(image[None]) for image in inputs])
    bad = np.full((1, *inputs.shape[1:]), np.nan, np.float32)

    async def scene() -> None:
        service = await Dispatch.open(
            package_source(package_path, sizes=(1, 2, 4, 8), threads=1), limits=Limits(objective="throughput")
        )
        assert [facts.shape for facts in (*service.inputs, *service.outputs)] == [(3, SIZE, SIZE), (10,)]
        asked: list[asyncio.Task[Answer]] = []
        for number in range(40):
            asked.append(asyncio.ensure_future(service.infer(inputs[number : number + 1])))
            if number % 7 == 3:  # a neighbour that is no number, in the same batches
                asked.append(asyncio.ensure_future(service.infer(bad)))
        answers = await asyncio.gather(*asked)
        good = [answer for answer in answers if np.isfinite(answer.outputs[0]).all()]
        assert len(good) == 40
        assert {answer.batch_size for answer in good} & {4, 8}
        for answer, wanted in zip(good, expected, strict=True):
            # 3 x 3 x 3 and 24 x 8 x 8 products, summed in another order at another batch: rounding of FP32 only.
            assert np.abs(answer.outputs[0][0] - wanted).max() <= 2e-5 * np.abs(wanted).max()
        whole = await service.infer(inputs)
        assert np.abs(whole.outputs[0] - expected).max() <= 2e-5
        await service.close()

    asyncio.run(asyncio.wait_for(scene(), 300))


def test_a_package_that_no_longer_agrees_is_refused_before_anything_is_served(
    package_path: Path, tmp_path: Path
) -> None:
    package = packages.read(package_path)
    assert package.golden is not None
    other = packages.Golden(package.golden.images, 1 - package.golden.outputs, package.golden.tolerances)
    changed = packages.Package("small", "1", package.model, HOW, golden=other)
    packages.write(changed, tmp_path / "changed.perwatt")

    async def scene() -> None:
        with pytest.raises(GoldenMismatch, match="golden answers"):
            await Dispatch.open(package_source(tmp_path / "changed.perwatt", sizes=(1,), threads=1, tune_limit_s=0.1))

    asyncio.run(asyncio.wait_for(scene(), 300))
