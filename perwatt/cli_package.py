"""The commands of packages: package, inspect, run. Every room is loaded inside its command, as in cli.py."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

EXIT_USER = 2
TOP = 5
JsonOption = Annotated[bool, typer.Option("--json", help="Print figures as JSON on stdout, for programs.")]
PackageArgument = Annotated[Path, typer.Argument(metavar="PACKAGE", help="A .perwatt file.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Threads. [default: every usable core]")]


def make(
    source: Annotated[str, typer.Argument(metavar="NETWORK", help="A built-in network or an ONNX file.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file. [default: NAME.perwatt]")] = None,
    name: Annotated[str, typer.Option(help="The package's name. [default: that of the file --out]")] = "",
    release: Annotated[str, typer.Option(help="The package's version.")] = "1",
    labels: Annotated[Path | None, typer.Option(help="The classes' names: one a line, or JSON.")] = None,
    mean: Annotated[str, typer.Option(help="Taken from each pixel, per channel: 123.7,116.3,103.5.")] = "",
    std: Annotated[str, typer.Option(help="What each pixel is divided by after that.")] = "",
    scale: Annotated[str, typer.Option(help="Or what it is multiplied by.")] = "",
    pixels: Annotated[float | None, typer.Option("--range", help="Pixels before the mean are 0..1 or 0..255.")] = None,
    like: Annotated[str, typer.Option(help="Prepare photographs as for this built-in network.")] = "",
    resize: Annotated[str, typer.Option(help="short-side, squash or crop. [default: short-side]")] = "",
    resize_to: Annotated[
        int | None, typer.Option(min=1, help="Length before the centre crop. [default: 8/7 of it]")
    ] = None,
    interpolation: Annotated[str, typer.Option(help="nearest, box, bilinear, bicubic, lanczos.")] = "",
    channels: Annotated[str, typer.Option(help="rgb, bgr or grey. [default: rgb]")] = "",
    golden: Annotated[str, typer.Option(help="Photographs for the golden examples: DIR, or none.")] = "",
    golden_count: Annotated[int, typer.Option(min=1, max=64, help="How many of them, evenly from all.")] = 8,
    licence: Annotated[str, typer.Option("--licence", "--license", help="The weights' licence.")] = "",
    origin: Annotated[str, typer.Option("--source", help="Where the weights come from.")] = "",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make one file that can be deployed.

    It holds network, preprocessing, labels, and golden examples: photographs with the answers that a reference in
    float64 gives, replayed here and wherever the package is opened. Built-in networks know their preprocessing.
    """
    from perwatt.lab.photographs import find_photographs
    from perwatt.lab.terminal import console
    from perwatt.package.looking import facts_json, facts_of
    from perwatt.package.making import Wish
    from perwatt.package.making import make as make_package
    from perwatt.package.terminal import show_facts

    wish = Wish(
        source=source, name=name, version=release, labels=labels, mean=mean, scale=scale, deviation=std,
        pixel_range=pixels, like=like, resize=resize, resize_to=resize_to, interpolation=interpolation,
        channels=channels, golden=golden, golden_count=golden_count, licence=licence, origin=origin, threads=threads,
    )  # fmt: skip
    made = make_package(wish, out, lambda: find_photographs(None), _tell)
    facts = facts_of(made.package)
    if as_json:
        print(json.dumps({"path": str(made.path), **facts_json(facts, made.package, made.replay)}, indent=2))
        return
    show_facts(facts, console(), made.replay)
    print(f" package  {made.path}")


def inspect(
    package: PackageArgument,
    replay: Annotated[bool, typer.Option("--replay", help="Run the golden examples on this machine too.")] = False,
    precision: Annotated[str, typer.Option(help="For --replay: fp32, fp16, bf16, auto.")] = "fp32",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a package holds.

    Network, preprocessing, labels, licence, golden examples with their tolerances, evidence of training and export.
    """
    from perwatt.lab.terminal import console
    from perwatt.package.looking import facts_json, facts_of, load, replayed
    from perwatt.package.terminal import show_facts

    loaded = load(package)
    facts = facts_of(loaded)
    found = replayed(loaded, precision, threads) if replay else None
    if as_json:
        print(json.dumps(facts_json(facts, loaded, found), indent=2))
    else:
        show_facts(facts, console(), found)
    if found is not None and not found.agrees:
        raise typer.Exit(1)


def run(
    package: PackageArgument,
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTO...", help="Photographs.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to tell.")] = TOP,
    precision: Annotated[str, typer.Option(help="fp32, fp16, bf16, auto.")] = "fp32",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what a package sees in photographs.

    The golden examples are replayed first. A photograph that cannot be read costs the others nothing; the exit code is
    then 2.
    """
    from perwatt.lab.terminal import console
    from perwatt.package.looking import answers, answers_json, load, opened
    from perwatt.package.terminal import show_answers

    loaded = load(package)
    told = answers(loaded, opened(loaded, precision, threads), photos, top)
    if as_json:
        print(json.dumps(answers_json(loaded, told), indent=2))
    else:
        show_answers(told, console())
    if any(answer.error is not None for answer in told):
        raise typer.Exit(EXIT_USER)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
