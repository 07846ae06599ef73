"""The command of evaluations; `cli.py` gives it its name. Every room is loaded inside it, as in cli.py."""

import sys
from pathlib import Path
from typing import Annotated

import typer

EXIT_FAULT = 1
JsonOption = Annotated[bool, typer.Option("--json", help="Print figures as JSON on stdout, for programs.")]


def evaluate(
    package: Annotated[Path, typer.Argument(metavar="PACKAGE", help="A .perwatt file.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="Labelled pictures, as perwatt data reads them.")],
    split: Annotated[str, typer.Option(help="train, validation or test. [default: the last of them there is]")] = "",
    engines: Annotated[str, typer.Option(help="With commas: perwatt,onnxruntime,openvino,...")] = "perwatt",
    precision: Annotated[str, typer.Option(help="With commas: fp32,bf16,fp16.")] = "fp32",
    images: Annotated[
        int | None, typer.Option(min=1, help="Only so many, evenly from the classes. [default: all]")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images in a call.")] = 16,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads. [default: every usable core]")] = None,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Leave broken pictures out, and say so.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the Record and the pictures.")] = Path("evaluation"),
    as_json: JsonOption = False,
) -> None:
    """Hold a package's answers against labels, on any engine and in any precision.

    Top-1 and top-5 with their intervals, per-class precision and recall, confusion matrix, calibration, the surest
    mistakes as a picture, and what each engine and precision loses against the FP32 reference on the same images.
    """
    from perwatt.lab.evaluation.command import answered, run_evaluation
    from perwatt.lab.evaluation.evaluate import EvaluationRequest

    record = run_evaluation(
        EvaluationRequest(
            package=package,
            data=data,
            split=split or None,
            engines=_names(engines),
            precisions=_names(precision),
            batch=batch,
            images=images,
            threads=threads,
            skip_broken=skip_broken,
            out=out,
            command=("perwatt", *sys.argv[1:]),
        ),
        as_json=as_json,
    )
    if not answered(record):
        raise typer.Exit(EXIT_FAULT)


def _names(given: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in given.split(",")))
