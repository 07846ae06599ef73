"""The published rows of 2015 that today's rows stand beside: only those with a source that can be read.

The study printed more rows than these; what could not be traced to a readable source is not here, and nothing is
computed from the text's ratios. The rows are no like-for-like comparison, neither among each other nor with today's:
the networks, large batches, precisions, software and meters differ by device.
"""

from dataclasses import dataclass
from typing import Literal

BLOG = "https://developer.nvidia.com/blog/inference-next-step-gpu-accelerated-deep-learning/"
REPLICATION = "https://github.com/charlyng/Embedded-Deep-Learning"


@dataclass(frozen=True)
class PublishedRow:
    """One published figure. `relation` says whether the source gives a value or only a bound on images/s.

    `images_per_joule` is what the source calls images/s/W; None where it gives none.
    """

    network: str
    batch: int
    precision: Literal["fp32", "fp16"]
    device: str
    software: str
    relation: Literal["=", ">", "<"]
    images_per_s: float
    images_per_joule: float | None
    source: str
    note: str


_CUDNN = "Caffe, cuDNN 4 preview"
_IDLF = "Intel Deep Learning Framework"
_CAFFENET = "CaffeNet, AlexNet's sibling: the only network this software ran"


def _study(
    precision: Literal["fp32", "fp16"],
    batch: int,
    device: str,
    relation: Literal["=", ">", "<"],
    images_per_s: float,
    images_per_joule: float | None = None,
) -> PublishedRow:
    processor = device.startswith(("Core", "Xeon"))
    return PublishedRow(
        network="alexnet",
        batch=batch,
        precision=precision,
        device=device,
        software=_IDLF if processor else _CUDNN,
        relation=relation,
        images_per_s=images_per_s,
        images_per_joule=images_per_joule,
        source=BLOG,
        note=_CAFFENET if processor else "",
    )


def _replicated(
    network: str, precision: Literal["fp32", "fp16"], device: str, by_batch: dict[int, float]
) -> tuple[PublishedRow, ...]:
    software = "Caffe experimental/fp16, cuDNN 4" if device == "Tegra X1" else "Caffe 0.14, cuDNN 4"
    return tuple(
        PublishedRow(
            network=network,
            batch=batch,
            precision=precision,
            device=device,
            software=software,
            relation="=",
            images_per_s=images_per_s,
            images_per_joule=None,
            source=REPLICATION,
            note="independent replication, fixed clocks, mean of 100 forward passes",
        )
        for batch, images_per_s in by_batch.items()
    )


PUBLISHED: tuple[PublishedRow, ...] = (
    _study("fp16", 128, "Tegra X1", "=", 258, 45),
    _study("fp32", 48, "Core i7 6700K", "=", 242, 3.9),
    _study("fp32", 128, "Titan X", ">", 3000),
    _study("fp32", 48, "Xeon E5-2698 v3", "<", 500),
    *_replicated("alexnet", "fp32", "Tegra X1", {1: 45.7, 64: 127.7, 128: 153.4}),
    *_replicated("alexnet", "fp16", "Tegra X1", {1: 65.1, 64: 253.1, 128: 257.8}),
    *_replicated("alexnet", "fp32", "Titan X", {1: 408.2, 64: 2730, 128: 3182}),
    *_replicated("googlenet", "fp32", "Tegra X1", {1: 34.2}),
    *_replicated("googlenet", "fp16", "Tegra X1", {1: 42.1, 64: 76.3, 128: 76.5}),
    *_replicated("googlenet", "fp32", "Titan X", {1: 131.1, 64: 931, 128: 978}),
    *_replicated("vgg16", "fp32", "Tegra X1", {1: 6.4}),
    *_replicated("vgg16", "fp16", "Tegra X1", {1: 9.6, 64: 12.4}),
    *_replicated("vgg16", "fp32", "Titan X", {1: 83.5, 64: 208, 128: 212}),
)


def published(network: str) -> tuple[PublishedRow, ...]:
    """Return the published rows of one network; CaffeNet's stand under AlexNet, as they did in the study."""
    return tuple(row for row in PUBLISHED if row.network == ("alexnet" if network == "caffenet" else network))
