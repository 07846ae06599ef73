"""How large the built-in networks are, written down: building them all to count would take ten seconds."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Size:
    """What a network holds (numbers in its weights) and what one image costs (products added to a sum)."""

    parameters: int
    multiply_adds: int


SIZES: Mapping[str, Size] = MappingProxyType(
    {
        "alexnet": Size(60_965_224, 724_406_816),
        "caffenet": Size(60_965_224, 724_406_816),
        "googlenet": Size(6_998_552, 1_582_671_872),
        "squeezenet1.1": Size(1_235_496, 387_747_520),
        "vgg16": Size(138_357_544, 15_470_264_320),
        "resnet50": Size(25_610_152, 4_089_184_256),
        "lenet": Size(431_080, 2_293_000),
        "efficientnet-lite0": Size(4_694_024, 385_187_552),
    }
)
