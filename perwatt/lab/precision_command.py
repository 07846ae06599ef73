"""`perwatt tune NET --precision auto`: photographs in, the cheapest numbers that keep the answers, told and kept."""

import json
from collections.abc import Callable
from pathlib import Path

from perwatt.errors import InputError
from perwatt.graph import Graph
from perwatt.lab.photographs import find_photographs, input_batches
from perwatt.lab.subject import find
from perwatt.run import precision_file
from perwatt.run.automatic import summary, tune_precision
from perwatt.run.compile import read_graph

PHOTOGRAPHS = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


def tune_on_photographs(
    network: str, batch: int, source: Path | Graph, data: Path | None, images: int, agreement: float,
    threads: int | None, tune_limit_s: float, progress: Callable[[str], None], *, as_json: bool,
) -> None:  # fmt: skip
    """Find the precision of a network at one batch size on crops of photographs, print and keep it.

    `data`: a folder of photographs, in folders of their own if they like; None: scikit-image's. `agreement` in percent.
    Raises InputError for a network, photographs or numbers that cannot be used, and what compiling raises.
    """
    if images < 1 or not 0 < agreement <= 100:
        raise InputError(
            f"expected at least one image and an agreement above 0 and at most 100, got {images} and {agreement:g}"
        )
    photos = find_photographs(None) if data is None else _photographs(data)
    pixels, _ = input_batches(find(network).how, photos, 1, images, seed=1)
    graph = read_graph(source, batch)
    _, evidence = tune_precision(
        graph, batch, pixels[:, 0], agreement=agreement / 100, threads=threads, progress=progress,
        tune_limit_s=tune_limit_s,
    )  # fmt: skip
    kept = precision_file.path(graph)
    if as_json:
        print(json.dumps({"batch": batch, **evidence, "kept_in": str(kept)}, indent=2, allow_nan=False))
        return
    print(f"{network}, batch {batch}, precision auto on {images} crops of {min(len(photos), images)} photographs")
    for line in summary(evidence):
        print(f"  {line}")
    print(f"kept in {kept}; compile(..., precision='auto') finds it")


def _photographs(folder: Path) -> tuple[Path, ...]:
    found = tuple(sorted(each for each in folder.rglob("*") if each.suffix.lower() in PHOTOGRAPHS and each.is_file()))
    if not found:
        raise InputError(f"data: expected a folder with photographs ({', '.join(sorted(PHOTOGRAPHS))}), got {folder}")
    return found
