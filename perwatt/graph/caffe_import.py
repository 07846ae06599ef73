"""Caffe's files to the bytes of an ONNX file, and what a person should know of the way: `perwatt import`."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perwatt.errors import NetworkError
from perwatt.graph.caffe_reader import Imported, MeanAs, build, load
from perwatt.graph.cost import total_cost
from perwatt.graph.onnx_writer import write

# A batch that is no size of anything else: what a network fixes to one or ten images cannot be built with it.
TRIAL_BATCH = 3


@dataclass(frozen=True)
class Converted:
    """An ONNX file's bytes, and what became of Caffe's layers; `batch` None: the file runs at any batch.

    `fixed` is the reason for a fixed batch that nobody asked for.
    """

    model: bytes
    imported: Imported
    batch: int | None
    fixed: str | None


def convert(
    prototxt: str | Path,
    caffemodel: str | Path,
    mean: str | Path | None = None,
    *,
    batch: int | None = None,
    shape: tuple[int, ...] | None = None,
    outputs: Sequence[str] = (),
    mean_as: MeanAs = "image",
) -> Converted:
    """Return Caffe's network as an ONNX file; without `batch` one that runs at any, where nothing in it fixes one.

    Arguments and errors as for `read_caffe`.
    """
    files = load(prototxt, caffemodel, mean, outputs)
    if batch is not None:
        imported = build(files, batch, shape, mean_as)
        return Converted(write(imported.graph), imported, batch, None)
    try:
        model = write(build(files, TRIAL_BATCH, shape, mean_as).graph, batch="batch")
    except NetworkError as error:
        imported = build(files, None, shape, mean_as)  # an error that is not the batch's is raised here
        own = imported.graph.values[imported.graph.inputs[0]].shape[0]
        return Converted(write(imported.graph), imported, own, str(error))
    return Converted(model, build(files, 1, shape, mean_as), None, None)


def facts(converted: Converted) -> dict[str, Any]:
    """Return everything that was found out, for programs."""
    imported, graph = converted.imported, converted.imported.graph
    return {
        "name": graph.name,
        "bytes": len(converted.model),
        "batch": converted.batch,
        "batch_fixed_because": converted.fixed,
        "inputs": {name: list(graph.values[name].shape) for name in graph.inputs},
        "outputs": {name: list(graph.values[name].shape) for name in graph.outputs},
        "parameters": sum(layer.parameters for layer in imported.layers),
        "multiply_adds": total_cost(graph).multiply_adds,
        "layers": [asdict(layer) for layer in imported.layers],
        "dropped": [asdict(layer) for layer in imported.dropped],
        "unused_weights": list(imported.unused),
        "mean_values": imported.mean_values,
        "mean_inside": imported.mean_inside,
        "data_layer": None if imported.reading is None else asdict(imported.reading),
        "preprocessing": preprocessing(imported),
        "notes": list(imported.notes),
    }


def preprocessing(imported: Imported) -> dict[str, Any]:
    """Return what is known of how photographs become the input, None where nothing is.

    Caffe's tools read photographs with blue first. A mean image has the size that pictures had in training before the
    input was cut out of them; where the network subtracts it itself, what is left to take away is 0.
    """
    graph, reading = imported.graph, imported.reading
    shape = graph.values[graph.inputs[0]].shape
    channels = shape[1] if len(shape) == 4 else 0
    mean: tuple[float, ...] | None = imported.mean_values
    scale = None if reading is None else reading.scale
    if imported.mean_inside:
        mean, scale = (0.0,) * channels, 1.0
    elif mean is None and reading is not None and not reading.mean_file:
        mean = reading.mean_values or (0.0,)
    if mean is not None and len(mean) == 1:
        mean *= channels
    return {
        "size": list(shape[2:]) if channels else None,
        "resize_to": min(imported.mean_size) if imported.mean_size is not None else None,
        "channel_order": {1: "grey", 3: "bgr"}.get(channels),
        "mean": None if mean is None else list(mean),
        "scale": scale,
    }


def lines(converted: Converted, path: Path) -> list[str]:
    """Return the report for a terminal: a table of the layers, what was dropped, what the input is, what comes next."""
    imported, graph = converted.imported, converted.imported.graph
    rows = [
        (layer.name, layer.type, "+".join(layer.operators) or "–", _sizes(layer.shape, converted.batch),
         f"{layer.parameters:,}" if layer.parameters else "")
        for layer in imported.layers
    ]  # fmt: skip
    told = [*_table(("layer", "type", "became", "output", "parameters"), rows), ""]
    count, total = len(imported.layers), sum(layer.parameters for layer in imported.layers)
    cost = total_cost(graph).multiply_adds
    told.append(
        f"{graph.name}: {count} layers, {total:,} parameters"
        + (f", {cost:,} multiply-adds for {_images(graph.values[graph.inputs[0]].shape)}" if cost else "")
    )
    for what, names in (("input", graph.inputs), ("output", graph.outputs)):
        told += [f"  {what:8}{name}  {_sizes(graph.values[name].shape, converted.batch)}" for name in names]
    reasons: dict[str, list[str]] = {}
    for layer in imported.dropped:
        reasons.setdefault(layer.reason, []).append(f"{layer.name} ({layer.type})")
    told += [f"  dropped {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    if imported.unused:
        told.append(f"  unused  weights of {len(imported.unused)} layers: {_few(imported.unused)}")
    told += [f"  note    {note}" for note in (*imported.notes, *_advice(converted))]
    told.append(f"  file    {path}, {len(converted.model) / 1e6:,.1f} MB, {_batch_text(converted)}")
    return [*told, *_next(imported, path)]


def _table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in [headings, *rows]) for column in range(len(headings))]
    last = len(headings) - 1

    def line(row: tuple[str, ...]) -> str:
        cells = [cell.rjust(width) if at == last else cell.ljust(width)
                 for at, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
        return "  ".join(cells).rstrip()

    return [line(headings), *map(line, rows)]


def _sizes(shape: tuple[int, ...], batch: int | None) -> str:
    if not shape:
        return "one number"
    return "×".join(["N" if batch is None else str(shape[0]), *map(str, shape[1:])])


def _images(shape: tuple[int, ...]) -> str:
    return "one image" if shape[:1] in ((), (1,)) else f"{shape[0]} images"


def _few(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} others" if len(names) > most else "")


def _batch_text(converted: Converted) -> str:
    if converted.batch is None:
        return "for any batch"
    return f"for a batch of {converted.batch}"


def _advice(converted: Converted) -> list[str]:
    """Return what a person has to know before the network is used."""
    imported, graph, found = converted.imported, converted.imported.graph, []
    reading = imported.reading
    if converted.fixed is not None:
        found.append(f"the batch stays {converted.batch}; one of {TRIAL_BATCH}, tried: {converted.fixed}")
    if imported.mean_inside:
        found.append("the mean image is subtracted inside the network (a Sub node): feed pixels as they are, 0 to 255")
        if reading is not None and reading.scale != 1:
            found.append(f"so is the scale of {reading.scale:g} that the data layer {reading.layer!r} applies after it")
    if reading is not None:
        if reading.mean_file and imported.mean_values is None:
            found.append(f"training took away the mean in {reading.mean_file!r}: give that file as the third argument")
        if reading.mean_values:
            found.append(f"training took away {', '.join(f'{value:g}' for value in reading.mean_values)}")
        if reading.scale != 1 and not imported.mean_inside:
            found.append(f"training multiplied pixels by {reading.scale:g}")
    shape = graph.values[graph.inputs[0]].shape
    if len(shape) == 4 and shape[1] == 3:
        found.append("Caffe's tools feed channels as blue, green, red, pixels from 0 to 255")
    if len(graph.outputs) > 1:
        found.append(f"{len(graph.outputs)} outputs; --outputs {graph.outputs[-1]} keeps one and what leads to it")
    return found


def _next(imported: Imported, path: Path) -> list[str]:
    """Return the command that makes a package of the file, with what is known filled in."""
    how = preprocessing(imported)
    if how["channel_order"] is None:
        return []
    mean = "MEAN" if how["mean"] is None else ",".join(f"{value:.6g}" for value in how["mean"])
    words = ["perwatt", "package", str(path), "--channels", how["channel_order"], "--mean", mean]
    if how["scale"] not in (None, 1.0):
        words += ["--scale", f"{how['scale']:.6g}"]
    if how["resize_to"] is not None and how["resize_to"] >= min(how["size"]):
        words += ["--resize-to", str(how["resize_to"])]
    words += ["--range", "255", "--labels", "LABELS.txt"]
    ask = " (MEAN: what training took from each channel, which these files do not say)" if "MEAN" in words else ""
    return ["", f"next{ask}:", "  " + shlex.join(words)]
