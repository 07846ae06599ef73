"""What the README says of precision auto on trained weights is what the committed evidence says."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("network", "told"), [("efficientnet-lite0", "EfficientNet-Lite0"), ("squeezenet1.1", "SqueezeNet 1.1")]
)
def test_the_readme_quotes_the_evidence(network: str, told: str) -> None:
    evidence = json.loads((ROOT / "records" / f"half-{network}.json").read_text())
    agreement, readme = evidence["agreement"], " ".join((ROOT / "README.md").read_text().split())
    assert evidence["images"] == 1000
    assert agreement["share"] >= agreement["asked"] == 0.999
    found = re.search(rf"on ([\d,]+) for {told} \((?:95 % interval )?([\d.]+) to ([\d.]+) %\)", readme)
    assert found is not None
    assert int(found[1].replace(",", "")) == agreement["agreeing"]
    low, high = (100 * each for each in agreement["interval_95"])
    assert (float(found[2]), float(found[3])) == (round(low, 2), round(high, 2))
