"""From Caffe's files to a classified photograph, through the commands alone: import, package, run."""

import json
from pathlib import Path

import numpy as np
import pytest
from caffe_files import Net
from PIL import Image

from perwatt import cli

MEAN = {"red": 123.0, "green": 117.0, "blue": 104.0}
SIZE = 12


def colour_network(folder: Path) -> tuple[Path, Path]:
    """Write a Caffe network whose class is the colour that stands out from MEAN: channels come as blue, green, red."""
    net = Net("colours", inputs={"data": (1, 3, SIZE, SIZE)})
    net.pool("average", "data", "AVE", global_pooling=True)
    net.linear("score", "average", 3, 3)
    net.blobs["score"][0][:] = 0.05 * np.eye(3)[::-1]  # red first, as in the labels
    net.blobs["score"][1][:] = 0.0
    net.add("Softmax", "prob", "score")
    return net.save(folder)


def command(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert cli.run([*map(str, words)]) == 0
    return capsys.readouterr().out


def test_a_caffe_network_classifies_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for place, name in enumerate(MEAN):
        pixels = np.tile(np.round([*MEAN.values()]).astype(np.uint8), (30, 40, 1))
        pixels[..., place] += 60
        Image.fromarray(pixels).save(photos / f"{name}.png")
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(MEAN) + "\n")
    network, package = tmp_path / "net.onnx", tmp_path / "colours.perwatt"

    told = command(capsys, "import", *colour_network(tmp_path), "-o", network)
    assert "--channels bgr --mean MEAN" in told
    # Blue, green, red, as Caffe's files say their means, and as the pixels of this package come.
    means = ",".join(str(MEAN[name]) for name in ("blue", "green", "red"))
    command(
        capsys, "package", network, "--channels", "bgr", "--mean", means, "--range", "255", "--labels", labels,
        "--golden", photos, "-o", package,
    )  # fmt: skip
    answers = json.loads(command(capsys, "run", package, *sorted(photos.iterdir()), "--json"))["answers"]
    assert len(answers) == 3
    for answer in answers:
        first = answer["top"][0]
        assert first["label"] == Path(answer["photo"]).stem
        # The mean is taken off, so that 60 steps of one colour are 3 in its score and 0 in the others.
        assert first["value"] == pytest.approx(np.exp(3) / (np.exp(3) + 2), rel=1e-4)
