"""The command import. Every room is loaded inside its command, as in cli.py."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from perwatt.errors import InputError

SLOW_BYTES = 64 << 20  # what takes longer than a second or two is announced


def caffe(
    prototxt: Annotated[Path, typer.Argument(metavar="PROTOTXT", help="The network's text, best the deploy file.")],
    caffemodel: Annotated[Path, typer.Argument(metavar="CAFFEMODEL", help="Its weights.")],
    mean: Annotated[Path | None, typer.Argument(metavar="MEAN", help="The mean image: binaryproto or npy.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The ONNX file. [default: PROTOTXT.onnx]")] = None,
    mean_as: Annotated[
        str, typer.Option(help="image: subtracted inside the network; values: told, for the package.")
    ] = "image",
    shape: Annotated[
        str, typer.Option("--input", help="Channels, height, width, instead of the file's: 3,227,227.")
    ] = "",
    outputs: Annotated[str, typer.Option(help="Blobs to end at, with commas. [default: all that nobody reads]")] = "",
    batch: Annotated[int | None, typer.Option(min=1, help="Fix the batch. [default: any]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON on stdout, for programs.")] = False,
) -> None:
    """Bring a Caffe network: prototxt and caffemodel become an ONNX file.

    Any of Caffe's three syntaxes. What only training has is dropped, and told. Next is perwatt package.
    """
    from perwatt.graph.caffe_import import convert, facts, lines
    from perwatt.graph.caffe_reader import MeanAs
    from perwatt.package.atomic_file import write_whole

    if mean_as not in ("image", "values"):
        raise InputError(f"mean-as: expected image or values, got {mean_as!r}")
    size = caffemodel.stat().st_size if caffemodel.is_file() else 0
    if size > SLOW_BYTES:
        print(f"reading {size / 1e6:,.0f} MB of weights and writing them as ONNX", file=sys.stderr, flush=True)
    converted = convert(
        prototxt,
        caffemodel,
        mean,
        batch=batch,
        shape=_sizes(shape) if shape else None,
        outputs=[name.strip() for name in outputs.split(",") if name.strip()],
        mean_as=cast("MeanAs", mean_as),
    )
    path = out or prototxt.with_suffix(".onnx")
    write_whole(path, converted.model)
    if as_json:
        told: dict[str, Any] = {"path": str(path), **facts(converted)}
        print(json.dumps(told, indent=2, allow_nan=False))
    else:
        print("\n".join(lines(converted, path)))


def _sizes(given: str) -> tuple[int, ...]:
    """Return sizes such as 3,227,227. Raises InputError."""
    parts = [part.strip() for part in given.replace("x", ",").split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts) or len(parts) not in (3, 4):
        raise InputError(f"input: expected channels, height and width such as 3,227,227, got {given!r}")
    return tuple(int(part) for part in parts)
