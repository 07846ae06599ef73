"""`perwatt tune NET --precision auto` on photographs: what it says of a network that is beyond FP16."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perwatt import cli
from perwatt.graph import Builder, write


def beyond_fp16() -> bytes:
    """Return a network whose answer is small differences between channels that all lie near 200,000."""
    r, b = np.random.default_rng(5), Builder("beyond")
    first = r.standard_normal((32, 3, 1, 1)).astype(np.float32)
    eye = np.eye(32, dtype=np.float32)[:, :, None, None]
    x = b.add(
        "Conv", [b.input("data", (1, 3, 8, 8)), b.constant("w1", first), b.constant("up", np.full(32, 2e5, "f4"))]
    )
    x = b.add("Relu", [x], name="huge")
    x = b.add("Relu", [b.add("Conv", [x, b.constant("w2", eye)])])
    x = b.add("Flatten", [b.add("GlobalMaxPool", [x])])
    last = r.standard_normal((10, 32)).astype(np.float32)
    last -= last.mean(axis=1, keepdims=True)
    return write(b.finish([b.add("Gemm", [x, b.constant("w3", last)], transB=1)]))


@pytest.mark.slow
def test_what_is_beyond_fp16_stays_fp32_and_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERWATT_CACHE", str(tmp_path / "cache"))
    network, photos = tmp_path / "beyond.onnx", tmp_path / "photos"
    network.write_bytes(beyond_fp16())
    photos.mkdir()
    noise = np.random.default_rng(2)
    for number in range(4):
        Image.fromarray(noise.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(photos / f"{number}.png")
    monkeypatch.setattr(
        "sys.argv",
        [
            "perwatt",
            "tune",
            str(network),
            "--batch",
            "1",
            "--precision",
            "auto",
            "--data",
            str(photos),
            "--images",
            "12",
        ],
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    said = capsys.readouterr().out
    assert "top-1 agrees with FP32 on 12 of 12 images" in said
    assert "not stored in fp16: huge reaches 2e+05; fp16 ends at 6.55e+04, of which 8 times is kept free" in said
    assert "activations between steps: " in said
    stored = said.partition("activations between steps: ")[2].partition("\n")[0]
    halves = re.search(r"(\d+) in fp16", stored)
    assert halves is None or halves[1] == "1", (
        "the answers alone are small enough for it, if it is measured to be faster"
    )
