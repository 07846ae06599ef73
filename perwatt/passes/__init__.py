"""Graph to Graph: every rewrite, in the one order in which they run.

graph = apply(graph)                       all of PASSES until none changes anything, the Graph checked after each
for step in steps(graph): print(step)      the same, one step at a time: name, nodes before → after
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from perwatt.graph import Graph, check
from perwatt.passes.fold_constants import fold_constants
from perwatt.passes.fold_scales import fold_scales, scales_to_convolutions
from perwatt.passes.fuse_products import fuse_followers, to_fused
from perwatt.passes.merge_duplicates import merge_duplicates
from perwatt.passes.merge_pads import merge_pads
from perwatt.passes.merge_siblings import merge_siblings
from perwatt.passes.normalise_gemm import normalise_gemm
from perwatt.passes.normalise_pools import normalise_pools
from perwatt.passes.normalise_softmax import normalise_softmax
from perwatt.passes.recognise_activations import recognise_activations
from perwatt.passes.remove_no_ops import remove_no_ops
from perwatt.passes.remove_unused import remove_unused
from perwatt.passes.share_constants import share_constants
from perwatt.passes.simplify_clips import simplify_clips
from perwatt.passes.simplify_concats import simplify_concats
from perwatt.passes.simplify_reshapes import simplify_reshapes

# Two passes that undid each other would never end; a graph that needs more rounds than this was not seen.
MOST_ROUNDS = 6


@dataclass(frozen=True)
class Pass:
    """One rewrite, named as its function; `contract` says in one sentence what it requires and what it leaves."""

    rewrite: Callable[[Graph], Graph]
    contract: str

    @property
    def name(self) -> str:
        """The name that a trace prints."""
        return self.rewrite.__name__


@dataclass(frozen=True)
class Step:
    """One pass that ran: how many nodes there were before, and the Graph it left."""

    name: str
    before: int
    graph: Graph

    def __str__(self) -> str:
        return f"{self.name}: {self.before} → {len(self.graph.nodes)} nodes"


PASSES: tuple[Pass, ...] = (
    Pass(remove_unused, "Leaves no node or constant that no output depends on; every pass keeps it so."),
    Pass(fold_constants, "Leaves what is computed from constants as constants."),
    Pass(remove_no_ops, "Wants constants folded; leaves no Identity, Dropout or arithmetic with 0 or 1."),
    Pass(simplify_reshapes, "Leaves Reshape and Flatten axis 1 only, and no two in a row."),
    Pass(simplify_concats, "Leaves no Concat that only another Concat reads."),
    Pass(share_constants, "Leaves no two constants with the same content."),
    Pass(merge_duplicates, "Wants constants shared, reshapes in one spelling; leaves no two nodes that do the same."),
    Pass(recognise_activations, "Wants no duplicates, so that x·Sigmoid(x) reads one x; leaves Silu, HardSwish, Add."),
    Pass(simplify_clips, "Wants HardSwish recognised, which holds a Clip; leaves no two limits in a row."),
    Pass(
        merge_pads, "Wants limits simplified, to see which tensors are never negative; leaves pads in Conv and pools."
    ),
    Pass(normalise_pools, "Wants pads merged; leaves global pools for all that pool the whole map."),
    Pass(normalise_softmax, "Leaves Softmax with no axes of size 1 behind its own."),
    Pass(simplify_reshapes, "Wants pools and Softmax normal; merges the reshapes they left with those around them."),
    Pass(normalise_gemm, "Leaves products with constant weights as Gemm transB 1 with a bias per output."),
    Pass(fold_scales, "Wants normal Gemm and merged pads; leaves no scale beside a Conv or Gemm that can take it."),
    Pass(scales_to_convolutions, "Wants scales folded where they can be; leaves no BatchNormalization of constants."),
    Pass(to_fused, "Wants every fold done; leaves FusedConv and FusedGemm for Conv and Gemm with constant weights."),
    Pass(fuse_followers, "Wants to_fused; leaves no activation or residual sum that a product can take."),
    Pass(share_constants, "Shares what folding made: biases of zeros, most of all."),
    Pass(merge_duplicates, "Wants constants shared; merges what the passes above brought into one spelling."),
    Pass(merge_siblings, "Wants followers fused; leaves FusedConv with splits, which a plan can do without."),
)


def steps(graph: Graph, passes: Sequence[Pass] = PASSES) -> Iterator[Step]:
    """Yield each pass as it is done, all of them once, then those that a later round still finds something for.

    One rewrite may bring about what an earlier one looks for; rounds end when nothing changes, or after MOST_ROUNDS.
    Raises InvalidGraph when a pass leaves a Graph that breaks a rule: its defect.
    """
    for number in range(MOST_ROUNDS):
        begun = graph
        for each in passes:
            before = len(graph.nodes)
            rewritten = each.rewrite(graph)
            changed, graph = rewritten is not graph, rewritten
            if changed:  # what has not changed has been checked
                check(graph)
            if changed or not number:
                yield Step(each.name, before, graph)
        if graph is begun:
            return


def apply(graph: Graph, passes: Sequence[Pass] = PASSES) -> Graph:
    """Return the Graph after all passes. Raises InvalidGraph as `steps` does."""
    for step in steps(graph, passes):
        graph = step.graph
    return graph
