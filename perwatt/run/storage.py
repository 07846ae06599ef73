"""How activations lie between steps: in halves where measured times say that this is faster, buffer by buffer.

Storing them so is a permission. It pays where moving them takes the time, as with many cores on one memory or with
arithmetic in halves; converting them costs time elsewhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from perwatt.cpu.catalogue import KERNELS
from perwatt.graph import Graph
from perwatt.machine import Machine
from perwatt.plan import Considered, Placement, Precision, Timings, consider, make, place

# What halves must gain over FP32: less is within the noise of timing, and FP32 is more exact.
LEAST_GAIN = 0.02
# Seconds that are known of a placement's steps; the number is the share of the time left that measuring may take.
Times = Callable[[Placement, Considered, float], Timings]


@dataclass(frozen=True)
class Laid:
    """A placement, the candidates of its steps, what is known of their times, and why activations lie as they do."""

    placement: Placement
    considered: Considered
    timings: Timings
    why: str | None = None


def settle(
    graph: Graph, machine: Machine, threads: int, images: Sequence[int], precision: Precision,
    workspace_bytes: int | None, times: Times,
) -> Laid:  # fmt: skip
    """Return a placement of a graph after the passes, its activations stored in halves where that is faster.

    Compared are halves wherever kernels and `precision` let them be, FP32 everywhere, and a mixture: each buffer as
    the steps that touch it were faster. Without times of every step: halves, as they may be.
    """

    def lay(given: Precision, share: float) -> Laid:
        placement = place(graph, machine, threads, images, given)
        considered = consider(placement, KERNELS, workspace_bytes)
        return Laid(placement, considered, times(placement, considered, share))

    if precision.storage == "fp32" or not halved(place(graph, machine, threads, images, precision)):
        return lay(precision, 1)
    halves = lay(precision, 1 / 3)
    exact = lay(replace(precision, storage="fp32"), 1 / 2)
    in_halves, in_exact = _step_seconds(halves), _step_seconds(exact)
    if in_halves is None or in_exact is None:
        return halves
    found = {f"{precision.storage} throughout": (sum(in_halves), halves), "fp32": (sum(in_exact), exact)}
    kept = _slower_in_halves(halves.placement, in_halves, in_exact)
    if kept and kept != halved(halves.placement):
        names = (name for name, where in halves.placement.places.items() if where.buffer in kept)
        mixed = lay(replace(precision, kept=precision.kept | {name.partition("@")[0] for name in names}), 1)
        in_mixed = _step_seconds(mixed)
        if in_mixed is not None:
            found[f"{precision.storage} where that is faster"] = (sum(in_mixed), mixed)
    how = min(found, key=lambda each: found[each][0] * (1 if each == "fp32" else 1 + LEAST_GAIN))
    told = ", ".join(f"{each} {seconds * 1e6:.0f} µs" for each, (seconds, _) in found.items())
    return replace(found[how][1], why=f"activations in {how}; measured for a batch: {told}")


def halved(placement: Placement) -> frozenset[str]:
    """Return the buffers that are stored in halves."""
    tensors = (t for step in placement.steps for t in (*step.inputs, *step.outputs) if t is not None)
    return frozenset(placement.places[t.name].buffer for t in tensors if t.element != "fp32")


def _step_seconds(laid: Laid) -> list[float] | None:
    """Return the measured seconds of each step for a batch as `make` would choose them; None where some have none."""
    plan = make("storage", laid.placement, KERNELS, timings=laid.timings, considered=laid.considered)
    seconds = []
    for position, planned in enumerate(plan.steps):
        if planned.choice.measured_s is None:
            return None
        seconds.append(planned.choice.measured_s * laid.placement.repeats(position))
    return seconds


def _slower_in_halves(placement: Placement, halves: Sequence[float], exact: Sequence[float]) -> frozenset[str]:
    """Return the buffers that cost time in halves: each has an equal share in what its steps gain or lose."""
    gains = dict.fromkeys(halved(placement), 0.0)
    for step, in_halves, in_exact in zip(placement.steps, halves, exact, strict=True):
        tensors = (t for t in (*step.inputs, *step.outputs) if t is not None and t.element != "fp32")
        touched = {placement.places[t.name].buffer for t in tensors}
        for buffer in touched:
            gains[buffer] += (in_exact - in_halves) / len(touched)
    return frozenset(buffer for buffer, gain in gains.items() if gain <= 0)
