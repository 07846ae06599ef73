"""open(): from a package to a Model that has been seen to answer rightly on this machine."""

from collections.abc import Callable, Mapping
from pathlib import Path

from perwatt.errors import InputError, InvalidPackage
from perwatt.package.golden import replay, require
from perwatt.package.package import PRECISIONS, Package, Precision
from perwatt.package.package_file import read
from perwatt.run import Model, compile
from perwatt.run.compile import Tune


def open(
    package: Package | Path,
    batch: int = 1,
    precision: Precision = "fp32",
    threads: int | None = None,
    *,
    tune: Tune = "measure",
    tune_limit_s: float = 12.0,
    progress: Callable[[int, int], None] | None = None,
    unproven: bool = False,
) -> Model:
    """Return a Model of a package at this batch, once the golden photographs gave their answers on it.

    precision: what steps may use besides FP32; the golden answers are then held to that precision's tolerance.
    `unproven` takes a package without golden examples as it is. Other settings are those of perwatt.run.compile. Raises
    GoldenMismatch, InvalidPackage when network and preprocessing do not fit, and what `read` and `compile` raise.
    """
    if isinstance(package, Path):
        package = read(package)
    if precision not in PRECISIONS:
        raise InputError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    mixture = package.evidence.get("precision") if precision == "auto" else precision
    if not isinstance(mixture, str | Mapping):
        raise InputError(
            f"{package.name}: expected the package to carry the evidence of precision auto, it has none; use fp32, or "
            "find one with perwatt tune --precision auto"
        )
    model = compile(
        package.model,
        batch,
        threads=threads,
        tune=tune,
        tune_limit_s=tune_limit_s,
        precision=mixture,
        progress=progress,
    )
    check_fit(package, model, batch)
    if package.golden is None and unproven:
        return model
    require(package, replay(package, model, precision, batch))
    return model


def check_fit(package: Package, model: Model, batch: int) -> None:
    """Raise InvalidPackage unless the network reads what the preprocessing makes."""
    how = package.preprocessing
    wanted = (batch, how.channels, *how.size)
    shapes = [value.shape for value in model.inputs.values()]
    if shapes != [wanted]:
        got = ", ".join(str(list(shape)) for shape in shapes)
        raise InvalidPackage(
            f"{package.name}: expected a network with one input {list(wanted)}, as its preprocessing makes, got {got}"
        )
