"""The command of load tests; `cli.py` gives it its name. Every room is loaded inside it, as in cli.py."""

import sys
from pathlib import Path
from typing import Annotated

import typer

EXIT_FAULT = 1
EXIT_PARTIAL = 3
JsonOption = Annotated[bool, typer.Option("--json", help="Print figures as JSON on stdout, for programs.")]


def loadtest(
    url: Annotated[str, typer.Argument(metavar="URL", help="http://HOST:PORT, or with the path to post to.")],
    rate: Annotated[float | None, typer.Option(help="Requests per second, at Poisson times.")] = None,
    seconds: Annotated[float, typer.Option(help="How long; of a search, a probe at least.")] = 30.0,
    photos: Annotated[Path | None, typer.Option(help="Folder of photographs. [default: scikit-image's]")] = None,
    tensor: Annotated[bool, typer.Option("--tensor", help="Send binary tensors made of them instead.")] = False,
    model: Annotated[str, typer.Option(help="Models, with commas. [default: all that the server lists]")] = "",
    find_max: Annotated[
        bool, typer.Option("--find-max", help="Search the highest rate that keeps --p99, and its interval.")
    ] = False,
    p99: Annotated[float | None, typer.Option(help="Limit of the p99 latency, ms.")] = None,
    deadline: Annotated[float | None, typer.Option(help="Deadline of a request, ms; sent to the server.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds until the client gives up.")] = 10.0,
    check: Annotated[
        bool, typer.Option("--check", help="Compare each answer with that to the same request, asked alone.")
    ] = False,
    concurrency: Annotated[int | None, typer.Option(help="Closed loop instead: so many at a time.")] = None,
    connections: Annotated[int, typer.Option(help="Most connections.")] = 1024,
    token: Annotated[str, typer.Option(help="Bearer token.")] = "",
    out: Annotated[Path, typer.Option(help="Folder for the Record and the pictures.")] = Path("bench"),
    seed: Annotated[int, typer.Option(help="Seed of times and order.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Load a server as independent clients would, and tell what it holds.

    Open loop: requests come at their times whatever became of the others, and latency counts from when each was due.
    Keeps a Record with every request, and pictures. Nothing is concluded where the generator itself was too slow.
    """
    from perwatt.lab.load import command
    from perwatt.lab.load.loadtest import LoadRequest

    record = command.loadtest(
        LoadRequest(
            url=url,
            rate=rate,
            seconds=seconds,
            photos=photos,
            tensors=tensor,
            models=tuple(part.strip() for part in model.split(",")) if model else (),
            concurrency=concurrency,
            find_max=find_max,
            p99_s=None if p99 is None else p99 / 1000,
            deadline_s=None if deadline is None else deadline / 1000,
            timeout_s=timeout,
            connections=connections,
            check=check,
            token=token or None,
            seed=seed,
            out=out,
            command=command.shown(sys.argv[1:]),
        ),
        as_json=as_json,
    )
    if record.partial:
        raise typer.Exit(EXIT_PARTIAL)
    if command.is_fault(record):
        raise typer.Exit(EXIT_FAULT)
