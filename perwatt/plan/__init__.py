"""Graph and machine to Plan: every decision, with its reason."""

from perwatt.plan.algorithm import Algorithm, Call, Operand, Packed, Places, Scratch, Step, Tensor, Tile, Word
from perwatt.plan.make import Considered, Timings, candidates, consider, deeper, make, shortlist, tile_key
from perwatt.plan.placement import Place, Placement, batch_of, place
from perwatt.plan.plan import Candidate, Plan, PlannedStep, without_constants
from perwatt.plan.precision import Allowance, Element, Precision, uniform
from perwatt.plan.work import Work, work

__all__ = [
    "Algorithm",
    "Allowance",
    "Call",
    "Candidate",
    "Considered",
    "Element",
    "Operand",
    "Packed",
    "Place",
    "Placement",
    "Places",
    "Plan",
    "PlannedStep",
    "Precision",
    "Scratch",
    "Step",
    "Tensor",
    "Tile",
    "Timings",
    "Word",
    "Work",
    "batch_of",
    "candidates",
    "consider",
    "deeper",
    "make",
    "place",
    "shortlist",
    "tile_key",
    "uniform",
    "without_constants",
    "work",
]  # fmt: skip
