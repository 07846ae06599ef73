"""The command of the server. Its room is loaded inside the command, as in cli.py."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def serve(
    packages: Annotated[
        list[Path] | None, typer.Argument(help="Packages (perwatt package makes them), or folders of them.")
    ] = None,
    p99: Annotated[
        float | None, typer.Option(min=0.1, help="Limit of a request's latency, ms. [default: 1000]")
    ] = None,
    objective: Annotated[str, typer.Option(help="Under that limit prefer: latency, throughput, energy.")] = "latency",
    host: Annotated[str, typer.Option(help="Address; any other than loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: a free one.")] = 8000,
    grpc_port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port of gRPC. [default: no gRPC]")] = None,
    token: Annotated[str, typer.Option(help="What clients must know; PERWATT_TOKEN hides it from ps.")] = "",
    max_batch: Annotated[int, typer.Option(min=1, max=1024, help="Most images of a batch.")] = 16,
    queue: Annotated[int, typer.Option(min=1, help="Most images that wait for the engine.")] = 1024,
    precision: Annotated[
        str, typer.Option(help="fp32, fp16, bf16 or auto, within the packages' own tolerances.")
    ] = "fp32",
    tune: Annotated[
        float, typer.Option(min=0.0, help="Seconds of timing for each batch size, at the first start.")
    ] = 6.0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the engine. [default: every core]")] = None,
    drain: Annotated[float, typer.Option(min=0.0, help="Seconds to finish what is inside after SIGTERM.")] = 30.0,
    demo: Annotated[bool, typer.Option("--demo", help="Serve a built-in package, made on the spot.")] = False,
    null: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SHAPE", help="Serve a network that does nothing: 3x224x224, or @5 after it for 5 ms an image."
        ),
    ] = None,
    unproven: Annotated[bool, typer.Option("--unproven", help="Take packages without golden examples.")] = False,
    meter: Annotated[str, typer.Option(help="auto, none, or a meter that perwatt meters lists.")] = "auto",
) -> None:
    """Serve packages over HTTP: the Open Inference Protocol v2, photographs to labels, metrics, a status page at /.

    Ready when the golden examples agree and every batch size ran warm. SIGTERM or Ctrl-C drains and ends with 0, a
    second one stops; SIGHUP loads packages whose files have changed, without a lost request.
    """
    from perwatt import settings
    from perwatt.lab.metering import open_for
    from perwatt.lab.meters.total import Total
    from perwatt.serve.command import Serving, run_server
    from perwatt.serve.energy import Joules

    opened = open_for(meter, "cpu")
    energy = None
    if opened.meters:
        facts, running = opened.meters[0]
        energy = Joules(Total(running), facts.name, facts.scope)
    elif meter != "none":
        print(f"perwatt: no joules: {opened.reason}; {opened.remedy or 'see perwatt meters'}", file=sys.stderr)
    code = run_server(
        Serving(
            packages=tuple(packages or ()),
            nulls=tuple(null or ()),
            demo=demo,
            p99_ms=1000.0 if p99 is None else p99,
            objective=objective,
            host=host,
            port=port,
            grpc_port=grpc_port,
            token=token or settings.token(),
            max_batch=max_batch,
            queue=queue,
            precision=precision,
            tune_limit_s=tune,
            threads=threads,
            drain_s=drain,
            unproven=unproven,
        ),
        energy,
    )
    if code:
        raise typer.Exit(code)
