"""The documented run is what its Record says, and the README quotes that."""

import json
from pathlib import Path

from PIL import Image

from perwatt.train import record

ROOT = Path(__file__).parent.parent.parent
PUBLISHED = ROOT / "records" / "training-fashion-mnist.json"


def test_fashion_mnist_reached_91_percent_with_a_small_network() -> None:
    content = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    assert record.check(content) == ()
    assert content["data"]["pictures"] == {"train": 54_000, "validation": 6_000, "test": 10_000}
    assert content["parameters"] < 500_000
    assert content["figures"]["test_top1"] >= 0.91
    assert f"{100 * content['figures']['test_top1']:.2f} % of the test pictures" in (ROOT / "README.md").read_text()
    with Image.open(PUBLISHED.with_suffix(".png")) as picture:
        assert picture.format == "PNG"
    assert PUBLISHED.with_suffix(".svg").read_text().startswith("<?xml")
