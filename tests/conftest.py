"""A Record made by hand, for everything that shows, checks or stores one: known figures, every kind of row."""

from collections.abc import Callable
from typing import Any

import pytest

from perwatt.lab.record import (
    NO_FIGURES,
    Block,
    Estimate,
    Figures,
    NetworkFacts,
    Noise,
    Percentile,
    Photograph,
    Profile,
    Record,
    Row,
)

SPEEDS = {"openvino": 90.0, "onnxruntime": 84.0, "torch": 70.0, "ncnn": 61.0}


def block(sequence: int, batch: int, speed: float) -> Block:
    """Return a block of three runs at `speed` images/s."""
    return Block(
        sequence=sequence,
        round=sequence // 4,
        start_s=1.5 * sequence,
        wait_s=0.1,
        rested=True,
        warmup_runs=1,
        elapsed_s=3 * batch / speed,
        durations_ns=(round(1e9 * batch / speed),) * 3,
        load_average=1.5 + 0.01 * sequence,
        clock_mhz=2596.0,
        temperature_c=None,
    )


def figures(speed: float, batch: int, **changes: Any) -> Figures:
    """Return the figures of a good row at `speed` images/s."""
    whole: dict[str, Any] = {
        "images_per_s": Estimate(value=speed, low=0.985 * speed, high=1.012 * speed),
        "latency_p50_s": batch / speed,
        "percentiles": (Percentile(percentile=90.0, latency_s=1.1 * batch / speed),),
        "relative_error": 2.3e-6,
        "tolerance": 1e-4,
        "top1_agreement": 1.0,
        "best_other": "onnxruntime",
        "ratio_to_best": Estimate(value=speed / 84, low=0.98 * speed / 84, high=1.02 * speed / 84),
        "verdict": "faster" if speed > 84 else "slower",
        "drift": 0.004,
        "rounds": 6,
        "rounds_wanted": 6,
        "warnings": (),
    }
    return Figures(**{**whole, **changes})


def row(network: str, engine: str, batch: int, precision: str, speed: float | None, **changes: Any) -> Row:
    """Return a row that ran at `speed` images/s, or one without figures."""
    whole: dict[str, Any] = {
        "network": network,
        "engine": engine,
        "batch": batch,
        "precision": precision,
        "device": "cpu",
        "status": "ok",
        "reason": None,
        "threads": 2,
        "version": "1.2.3",
        "precision_reported": precision,
        "options": {"streams": "1", "hint": "LATENCY"},
        "load_s": 0.8,
        "first_run_s": 0.05,
        "peak_memory_bytes": 400_000_000,
        "blocks": () if speed is None else tuple(block(i, batch, speed) for i in range(6)),
        "samples": (),
        "figures": NO_FIGURES if speed is None else figures(speed, batch),
    }
    return Row(**{**whole, **changes})


def rows() -> list[Row]:
    """Return rows of three networks: good, tied, invalid, missing, refused, crashed, the null engine."""
    made = []
    for network, share in (("alexnet", 1.0), ("googlenet", 0.6), ("efficientnet-lite0", 2.1)):
        for batch in (1, 48):
            for engine, speed in SPEEDS.items():
                made.append(row(network, engine, batch, "fp32", speed * share * (1.7 if batch > 1 else 1.0)))
            made.append(row(network, "openvino", batch, "bf16", 160 * share))
            made.append(
                row(network, "onnxruntime", batch, "bf16", None, status="refused", reason="no bf16 kernels on a CPU")
            )
    tie = figures(83.0, 1, ratio_to_best=Estimate(value=0.99, low=0.97, high=1.01), verdict="no difference seen")
    made[1] = made[1].model_copy(update={"figures": tie})
    wrong = figures(300.0, 1, relative_error=0.7, top1_agreement=0.1, best_other=None, ratio_to_best=None, verdict=None)
    made[3] = made[3].model_copy(
        update={"status": "invalid", "figures": wrong, "reason": "relative error 0.7, expected at most 1e-4"}
    )
    drifting = made[2].figures.model_copy(update={"drift": -0.08, "warnings": ("drift of -8 % between the halves",)})
    made[2] = made[2].model_copy(update={"figures": drifting})
    lost = "expected the library tinyengine, it is not installed; pip install tinyengine"
    made.append(row("alexnet", "tinyengine", 1, "fp32", None, status="missing", reason=lost, version=None, options={}))
    made.append(row("alexnet", "tinyengine", 48, "fp32", None, status="missing", reason=lost, version=None, options={}))
    made.append(
        row("googlenet", "fragile", 48, "fp32", None, status="crashed", reason="died of SIGSEGV <&> in block 3")
    )
    made.append(row("alexnet", "null", 1, "fp32", 100_000.0))
    return made


def facts(name: str, parameters: int, multiply_adds: int, size: int) -> NetworkFacts:
    """Return the facts of one network."""
    return NetworkFacts(
        name=name,
        source="built-in, seed 0",
        sha256="ab" * 32,
        parameters=parameters,
        multiply_adds=multiply_adds,
        input_shape=(1, 3, size, size),
        preprocessing={"resize_to": "256", "interpolation": "bilinear"},
    )


@pytest.fixture(scope="session")
def make_record() -> Callable[..., Record]:
    """Return a function that makes the Record; keyword arguments replace its fields."""

    def make(**changes: Any) -> Record:
        whole: dict[str, Any] = {
            "schema_version": 1,
            "created": "2026-03-04T05:06:07+00:00",
            "perwatt_version": "0.1.0",
            "commit": "0123456789abcdef",
            "command": ("perwatt", "bench", "alexnet", "googlenet"),
            "seed": 7,
            "profile": Profile(
                name="quick", half_width=0.02, block_s=0.3, minimum_rounds=4, limit_s=240.0, load_limit_s=60.0
            ),
            "machine": {"system": "Linux 6.1", "cpu": "Testium 9000", "cores": "2", "vector unit": "avx2, 8 floats"},
            "machine_id": "00112233",
            "partial": False,
            "partial_reason": None,
            "notes": ("a neighbour was busy during round 3",),
            "duration_s": 201.0,
            "networks": (
                facts("alexnet", 60_965_224, 714_188_480, 227),
                facts("googlenet", 6_998_552, 1_583_000_000, 224),
                facts("efficientnet-lite0", 4_652_008, 385_000_000, 224),
            ),
            "photographs": (Photograph(name="chelsea.png", sha256="cd" * 32),),
            "references": (),
            "rows": tuple(rows()),
            "noise": Noise(
                network="alexnet",
                engine="openvino",
                batch=1,
                precision="fp32",
                blocks=(block(99, 1, 90.0),),
                ratio=Estimate(value=1.002, low=0.991, high=1.013),
                floor=0.011,
            ),
            "harness_cost_s": 9.5e-6,
            "digest": "0" * 64,
        }
        return Record(**{**whole, **changes})

    return make
