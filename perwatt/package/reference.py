"""Golden answers and how far rounding may move them, from the network itself.

A layer computed in a precision of unit roundoff u is, to first order, the exact layer with weights that differ
relatively by about u, and with noise of about u on its result (backward error of inner products: Higham, Accuracy and
Stability of Numerical Algorithms, 2nd ed., section 3.1; for errors that are independent: Higham, Mary, SIAM J. Sci.
Comput. 41(5), 2019). So the network is run with its weights and the result of every dense layer disturbed at random by
that much, which is Monte Carlo arithmetic (Parker, UCLA CSD-970002, 1997) layer by layer, and its answers show how far
rounding moves them: sensitive networks get wide tolerances, others narrow ones.

The sizes, as RMS relative to the RMS of what is disturbed. A rounding to nearest errs by u / sqrt(3) over the
significand, which from 1 to 2 is distributed as 1 / m (Benford): u sqrt(1 / 8 / ln 2), 0.42 u.
  bf16, fp16  u = 2^-8, 2^-11: 0.42 u for weights, and again for results, each rounded once; sums are in FP32
  fp32        u = 2^-24: a running sum of n products errs by u sqrt(n / 6); n = 512, where kernels split their sums;
              and five times that, the error budget within which plans may choose Winograd and FFT (plan/make.py)
The tolerance is five times the RMS of the disturbed answers' errors on the worst photograph: a normal error goes beyond
five times its RMS once in two million photographs. It is at least the error of the last layer alone.
"""

from collections.abc import Callable, Mapping
from math import log, sqrt

import numpy as np

from perwatt.errors import NetworkError
from perwatt.graph.reference import Reference
from perwatt.package.golden import relative_errors
from perwatt.package.package import Precision

ROUNDOFF: Mapping[str, float] = {"fp16": 2.0**-11, "bf16": 2.0**-8}
LAYER_ERRORS: Mapping[str, float] = {
    "fp32": 5 * 2.0**-24 * sqrt(512 / 6),
    **{precision: roundoff * sqrt(1 / 8 / log(2)) for precision, roundoff in ROUNDOFF.items()},
}
DRAWS = 4
TIMES = 5.0
MOST_PHOTOS = 4
# An answer that has nothing to do with the photograph differs by about 1: the top class is another. Beyond three
# quarters of that no replay can tell rounding from it.
UNRELATED = 0.75
SEED = 2019


def reference(model: bytes, inputs: np.ndarray) -> np.ndarray:
    """Return the first output for each input, float64 [images, values]. Raises NetworkError."""
    outputs = Reference(model)(inputs)
    if not np.isfinite(outputs).all():
        raise NetworkError("expected finite golden answers, got NaN or infinity; mend the network's weights")
    return outputs


def tolerances(
    model: bytes, inputs: np.ndarray, outputs: np.ndarray, tell: Callable[[str], None]
) -> dict[Precision, float]:
    """Return, by precision, the largest relative error that rounding explains on this network.

    The error is the largest |difference| over the largest |expected| of an image. A precision whose rounding may turn
    the answers into unrelated ones is left out; "auto" has the larger of the others, for it chooses among them, and has
    to choose such that it stays below that. Raises NetworkError when that is so even for fp32.
    """
    inputs, outputs = inputs[:MOST_PHOTOS], outputs[:MOST_PHOTOS]
    found: dict[Precision, float] = {}
    for precision in ROUNDOFF:
        tell(f"measuring what rounding in {precision} does to the golden answers")
        error = spread(model, inputs, outputs, LAYER_ERRORS[precision])
        if precision == "fp16":
            # Errors are proportional to what disturbs the layers as long as that is small; at FP32's own size the
            # arithmetic that measures them would disturb as much itself.
            found["fp32"] = max(error * LAYER_ERRORS["fp32"] / LAYER_ERRORS["fp16"], LAYER_ERRORS["fp32"])
            found["fp16"] = max(error, LAYER_ERRORS["fp16"])
        else:
            found["bf16"] = max(error, LAYER_ERRORS["bf16"])
    if found["fp32"] >= UNRELATED:
        raise NetworkError(
            f"expected a network whose answers survive rounding in FP32, got errors of up to {found['fp32']:.2g}; "
            "check its weights"
        )
    kept = {precision: tolerance for precision, tolerance in found.items() if tolerance < UNRELATED}
    return {**kept, "auto": min(max(found["fp16"], found["bf16"]), UNRELATED)}


def spread(model: bytes, inputs: np.ndarray, outputs: np.ndarray, size: float, draws: int = DRAWS) -> float:
    """Return five times the RMS error of answers whose layers are disturbed by `size`, of the worst photograph."""
    squares = np.zeros(len(inputs))
    for draw in range(draws):
        random = np.random.Generator(np.random.SFC64(np.random.SeedSequence([SEED, draw])))

        def disturbed(weights: np.ndarray, random: np.random.Generator = random) -> np.ndarray:
            drawn = random.random(weights.shape, dtype=np.float32)
            return np.asarray(weights * (1 + np.float32(2 * sqrt(3) * size) * (drawn - np.float32(0.5))))

        def noisy(result: np.ndarray, random: np.random.Generator = random) -> np.ndarray:
            power = np.float32(sqrt(float(np.mean(np.square(result, dtype=np.float64)))))
            return np.asarray(result + np.float32(size) * power * random.standard_normal(result.shape, np.float32))

        got = Reference(model, np.float32, disturbed)(inputs, noisy)
        errors = [np.inf if error is None else error for error in relative_errors(got, outputs)]
        squares += np.square(errors)
    return TIMES * float(np.sqrt(squares.max() / draws))
