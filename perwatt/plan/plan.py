"""Plan: every decision about running a network on one machine at one batch size, with the reasons."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from perwatt.plan.algorithm import Step, Tile
from perwatt.plan.placement import Placement
from perwatt.plan.precision import Element


@dataclass(frozen=True)
class Candidate:
    """One algorithm with one tile for one step: its estimate, and its time on this machine where it was measured.

    `error` is the expected RMS error of the step's result over the result's RMS; `weights` is how weights are stored,
    `arithmetic` what products are computed in.
    """

    algorithm: str
    tile: Tile
    scratch_bytes: int
    estimated_s: float
    error: float = 0.0
    measured_s: float | None = None
    weights: Element = "fp32"
    arithmetic: Element = "fp32"

    @property
    def seconds(self) -> float:
        """The measured time where there is one, else the estimate."""
        return self.estimated_s if self.measured_s is None else self.measured_s

    def __str__(self) -> str:
        settings = " ".join(f"{key}={value}" for key, value in self.tile.items())
        return f"{self.algorithm} {settings}".rstrip()


@dataclass(frozen=True)
class PlannedStep:
    """A step, how it will be done, and why not otherwise: (algorithm, reason) for each that was rejected."""

    step: Step
    choice: Candidate
    why: str
    why_not: tuple[tuple[str, str], ...]

    @property
    def numbers(self) -> str | None:
        """How the step stores and computes, and the error expected of it; None where everything is FP32."""
        choice, data = self.choice, [t for t in self.step.inputs[:1] if t is not None]
        read, written = ({t.element for t in tensors} for tensors in (data, self.step.outputs))
        if choice.weights == choice.arithmetic == "fp32" and read | written == {"fp32"}:
            return None
        products = "fp32" if choice.arithmetic == "fp32" else f"{choice.arithmetic}, sums fp32"
        weights = f"weights {choice.weights}, products {products}, " if choice.error else ""
        stores = f"reads {'/'.join(sorted(read))}, writes {'/'.join(sorted(written))}"
        return f"numbers: {weights}{stores}" + (f"; expected error {choice.error:.1e}" if choice.error else "")


@dataclass(frozen=True)
class Plan:
    """Everything decided before machine code is made. Offsets of `buffers` count floats in the arena.

    `why`: how activations are stored and what was measured, None where there was no choice.
    """

    name: str
    placement: Placement
    steps: tuple[PlannedStep, ...]
    buffers: Mapping[str, int]
    arena_floats: int
    scratch_bytes: int
    threads: int
    why: str | None = None

    def lines(self) -> Iterator[str]:
        """Yield the plan as text: one paragraph for each step."""
        p = self.placement
        yield (
            f"plan of {self.name}: batch {p.batch}, {self.threads} threads, "
            f"arena {self.arena_floats * 4 / 2**20:.1f} MiB, workspace {self.scratch_bytes / 2**20:.1f} MiB"
        )
        if self.why is not None:
            yield self.why
        start = 1
        for level in p.levels:
            yield f"steps {start} to {level.end} take {level.images} of {p.batch} images at a time"
            start = level.end + 1
        for number, planned in enumerate(self.steps, 1):
            step = planned.step
            made = ", ".join(f"{'x'.join(map(str, t.shape))} {t.layout}" for t in step.outputs)
            yield f"{number:3} {step.operator} {step.name} -> {made}"
            yield f"      {planned.choice}"
            if (numbers := planned.numbers) is not None:
                yield f"      {numbers}"
            yield f"      why: {planned.why}"
            by_reason: dict[str, list[str]] = {}
            for algorithm, reason in planned.why_not:
                by_reason.setdefault(reason, []).append(algorithm)
            for reason, algorithms in by_reason.items():
                yield f"      not {', '.join(algorithms)}: {reason}"

    def __str__(self) -> str:
        return "\n".join(self.lines())


def without_constants(plan: Plan) -> Plan:
    """Return the Plan without the values of weights: all that people and programs read of it, at no memory."""

    def bare(step: Step) -> Step:
        return replace(step, constants={})

    placement = replace(plan.placement, steps=tuple(bare(step) for step in plan.placement.steps))
    return replace(plan, placement=placement, steps=tuple(replace(p, step=bare(p.step)) for p in plan.steps))
