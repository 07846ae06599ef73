"""The commands of data sets and training; `cli.py` gives them their names."""

from pathlib import Path
from typing import Annotated

import typer

EXIT_FAULT, EXIT_PARTIAL = 1, 3
JsonOption = Annotated[bool, typer.Option("--json", help="Print figures as JSON on stdout, for programs.")]


def data(
    source: Annotated[str, typer.Argument(metavar="DIR|NAME", help="A folder, a list, a CSV file, digits, ...")],
    picture: Annotated[Path | None, typer.Option(help="Where to write the contact sheet, a PNG.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Look at a labelled data set.

    Counts, sizes, class balance, broken pictures, the same picture twice or in two splits. Folders of pictures per
    class, text lists, CSV, IDX files, or a name: digits, fashion-mnist.
    """
    from perwatt.data.command import show_data
    from perwatt.lab.terminal import console

    if not show_data(source, picture, console(), console(stderr=True), as_json=as_json):
        raise typer.Exit(EXIT_FAULT)


def train(
    data: Annotated[str, typer.Argument(metavar="DATA", help="What perwatt data reads; left out with --resume.")] = "",
    network: Annotated[str, typer.Option(help="A built-in network, or the one of --from.")] = "",
    size: Annotated[int | None, typer.Option(min=1, help="Side of the input. [default: the network's own]")] = None,
    recipe: Annotated[str, typer.Option(help="quick, standard or long. [default: standard]")] = "",
    package: Annotated[
        Path | None, typer.Option("--from", metavar="PACKAGE", help="Let its network go on learning.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, where it was stopped.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. [default: runs/DATA-NETWORK]")] = None,
    epochs: Annotated[int | None, typer.Option(help="Times that every picture is learned from.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images in a step.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Parts a step is computed in, to save memory.")] = None,
    optimizer: Annotated[str, typer.Option(help="sgd or adamw.")] = "",
    learning_rate: Annotated[float | None, typer.Option(help="Highest, for 256 images a step.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Pull of weights to zero.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Share of the target spread over all classes.")] = None,
    mixup: Annotated[float | None, typer.Option(help="Alpha of mixed pairs of images, 0 for none.")] = None,
    augment: Annotated[str, typer.Option(help="crop, shift or none. [default: crop; shift for grey input]")] = "",
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Mirror half of the images. [default: unless grey]")
    ] = None,
    ema: Annotated[float | None, typer.Option(help="Decay of the average of weights that is kept, 0 for none.")] = None,
    patience: Annotated[int | None, typer.Option(help="Epochs without a better one before it ends; 0: never.")] = None,
    metric: Annotated[str, typer.Option(help="What makes an epoch the best: top1, top5, loss. [default: top1]")] = "",
    class_weights: Annotated[
        bool | None, typer.Option("--class-weights/--no-class-weights", help="Let rare classes count more.")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16. [default: fp32; on a GPU bf16]")] = "",
    device: Annotated[str, typer.Option(help="cpu or cuda. [default: a GPU where there is one]")] = "",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads. [default: every usable core]")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of weights, order, augmentation, split. [default: 1]")
    ] = None,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Leave broken pictures out.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a network on labelled pictures and publish it as a package.

    Writes an event log, checkpoints, curves and, when the deployed file was seen to answer as the trained network does,
    a package. Ctrl-C keeps a checkpoint; --resume goes on and ends as if there had been no stop.
    """
    from perwatt.lab.terminal import console
    from perwatt.train.command import run_training

    given = {
        "data": data, "network": network, "size": size, "recipe": recipe or None, "package": package, "epochs": epochs,
        "batch": batch, "accumulate": accumulate, "optimizer": optimizer or None, "learning_rate": learning_rate,
        "weight_decay": weight_decay, "label_smoothing": label_smoothing, "mixup": mixup, "augment": augment or None,
        "flip": flip, "ema": ema, "patience": patience, "metric": metric or None, "class_weights": class_weights,
        "precision": precision or None, "device": device or None, "threads": threads, "seed": seed,
        "skip_broken": skip_broken,
    }  # fmt: skip
    trained = run_training(given, out, resume, console(), console(stderr=True), as_json=as_json)
    if trained.ending == "interrupted":
        raise typer.Exit(EXIT_PARTIAL)
