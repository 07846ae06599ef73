"""The command line. Every room is loaded inside its command, so that `perwatt --help` answers at once."""

import json
import signal
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast, get_args

import typer

from perwatt import __version__, cli_evaluate, cli_import, cli_loadtest, cli_package, cli_serve, cli_train
from perwatt.errors import InputError, PerwattError

if TYPE_CHECKING:
    from collections.abc import Callable

    from perwatt.graph import Graph
    from perwatt.lab.record import Profile, Record

Choice = TypeVar("Choice", bound=str)
EXIT_OK = 0
EXIT_FAULT = 1
EXIT_USER = 2
EXIT_PARTIAL = 3
EXIT_INTERRUPTED = 130
# What a command may miss that is no part of the core, and what brings it.
EXTRAS = {
    **dict.fromkeys(("torch", "safetensors"), "train"),
    **dict.fromkeys(("starlette", "uvicorn", "httptools", "uvloop", "orjson", "prometheus_client"), "serve"),
    **dict.fromkeys(("matplotlib", "psutil"), "bench"),
}
_EXIT_CODES = (
    "Exit codes: 0 done; 1 check, compare or data found a fault, or bench measured no valid row; 2 the request cannot "
    "be met (one line on stderr says why); 3 stopped by Ctrl-C, what was measured is kept as a partial Record; "
    "130 stopped by Ctrl-C before anything was measured."
)

app = typer.Typer(
    name="perwatt",
    help="Runs trained networks fast and on little energy, and proves it with numbers that hold up.",
    epilog=_EXIT_CODES,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print figures as JSON on stdout, for programs.")]
AsOption = Annotated[
    str, typer.Option("--as", metavar="NAME", help="Show the meters of a simulated machine, such as intel-server.")
]
RecordArgument = Annotated[Path, typer.Argument(metavar="RECORD", help="A Record that bench wrote.")]


def main() -> None:
    """Run the command line and end the process: one line on stderr for whatever a person can mend."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    # The base of Typer's messages about the command line itself has no name that all its versions share.
    usage_error = cast("type[Exception]", typer.BadParameter.__mro__[2])
    try:
        code = app(arguments, prog_name="perwatt", standalone_mode=False)
    except PerwattError as error:
        return _complain(str(error))
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        return _complain(
            f"{' '.join(arguments[:1])}: expected {error.name}, it is not installed; pip install 'perwatt[{extra}]'"
        )
    except KeyboardInterrupt:
        return _complain("stopped by Ctrl-C; nothing was kept", EXIT_INTERRUPTED)
    except typer.Abort:
        return _complain("stopped; nothing was kept", EXIT_INTERRUPTED)
    except usage_error as error:
        told = error.format_message() if hasattr(error, "format_message") else str(error)
        return _complain(f"{told} (see perwatt --help)")
    return code if isinstance(code, int) else EXIT_OK


def _complain(message: str, code: int = EXIT_USER) -> int:
    # Typer's messages may wrap; a program that reads stderr wants one line.
    print(f"perwatt: {' '.join(message.split())}", file=sys.stderr)
    return code


@app.callback(invoke_without_command=True)
def perwatt(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Runs trained networks fast and on little energy, and proves it with numbers that hold up."""
    if show_version:
        print(f"perwatt {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def bench(
    networks: Annotated[list[str], typer.Argument(help="Built-in networks (perwatt networks) or ONNX files.")],
    batch: Annotated[str, typer.Option(help="Batch sizes. [default: 1,48 on a CPU, 1,128 on a GPU]")] = "",
    precision: Annotated[
        str, typer.Option(help="fp32, bf16, fp16, auto. [default: fp32,bf16; on a GPU fp32,fp16]")
    ] = "",
    engines: Annotated[str, typer.Option(help="Which engines. [default: every one of the device]")] = "",
    photos: Annotated[Path | None, typer.Option(help="Folder of photographs. [default: scikit-image's]")] = None,
    profile: Annotated[str, typer.Option(help="quick (minutes), standard, long.")] = "standard",
    minutes: Annotated[float | None, typer.Option(help="Longest duration, instead of the profile's own.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the Record and the report.")] = Path("bench"),
    seed: Annotated[int, typer.Option(help="Seed of crops, order and samples.")] = 1,
    threads: Annotated[str, typer.Option(help="Threads of each engine. [default: every usable core]")] = "",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    meter: Annotated[str, typer.Option(help="auto, none, or a meter that perwatt meters lists.")] = "auto",
    best: Annotated[bool, typer.Option("--best", help="End with the best settings of all that were measured.")] = False,
    p99: Annotated[float | None, typer.Option(min=0.0, help="With --best: most p99 latency of a batch, ms.")] = None,
    agreement: Annotated[
        float | None, typer.Option(min=0.0, max=100.0, help="With --best: least top-1 agreement, percent.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure networks with every engine, side by side.

    Prints a table and keeps a Record with every raw sample and a report. Engines that are missing or refuse are rows
    that say so. Lists take commas: --batch 1,48. With a meter, watts and images/s/W come from the same blocks.
    """
    from perwatt.lab.bench import PROFILES, BenchRequest, run_bench
    from perwatt.lab.engine import PRECISIONS, Device
    from perwatt.lab.engines import ENGINES
    from perwatt.lab.progress import Display
    from perwatt.lab.record import Limits
    from perwatt.lab.record_file import save
    from perwatt.lab.terminal import console, shown

    if not best and (p99 is not None or agreement is not None):
        raise InputError("p99, agreement: expected together with --best, got no --best; add it")
    limits = Limits(
        p99_s=None if p99 is None else p99 / 1000, top1_agreement=None if agreement is None else agreement / 100
    )
    devices: tuple[Device, ...] = get_args(Device)
    chosen_device = _one_of("device", device, devices)
    usual = "fp32,bf16" if chosen_device == "cpu" else "fp32,fp16"
    request = BenchRequest(
        networks=tuple(_network(name) for name in networks),
        batches=_whole_numbers("batch", batch) if batch else None,
        precisions=_each_of("precision", precision or usual, PRECISIONS),
        engines=_each_of("engine", engines, tuple(each.name for each in ENGINES)) if engines else None,
        photos=photos,
        profile=_lasting(PROFILES[_one_of("profile", profile, tuple(PROFILES))], minutes),
        out=out,
        seed=seed,
        threads=_whole_numbers("threads", threads) if threads else None,
        device=chosen_device,
        meter=meter,
        limits=limits if best else None,
        command=("perwatt", *sys.argv[1:]),
    )
    errors = console(stderr=True)
    # A polite end from outside (a scheduler, CI) keeps what was measured, as Ctrl-C does.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Display(errors) as display:
            record = run_bench(request, display)
    finally:
        signal.signal(signal.SIGTERM, before)
    path = save(record, out)
    report_path = _try_report(record, path)
    _print(record, as_json, path, report_path)
    if record.partial:
        raise typer.Exit(EXIT_PARTIAL)
    if not any(row.status == "ok" for row in shown(record)):
        raise typer.Exit(EXIT_FAULT)


def _print(record: "Record", as_json: bool, path: Path | None, report_path: Path | None) -> None:
    from perwatt.lab import terminal

    if as_json:
        print(json.dumps(terminal.as_json(record, path, report_path), indent=2, allow_nan=False))
    else:
        terminal.show(record, terminal.console(), record_path=path, report_path=report_path)


def _try_report(record: "Record", path: Path) -> Path | None:
    """Write the report beside its Record; where matplotlib is missing say so, for the Record is what counts."""
    from perwatt.lab.report import write

    page = _beside(path)
    try:
        return write(record, page)[0]
    except InputError as error:
        _complain(str(error))
        return None


def _beside(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".json") + ".html")


@app.command()
def networks(as_json: JsonOption = False) -> None:
    """List the built-in networks."""
    from rich.table import Table

    from perwatt.lab.notation import count_text
    from perwatt.lab.terminal import console
    from perwatt.networks import NETWORKS
    from perwatt.networks.sizes import SIZES

    listed: list[dict[str, Any]] = [
        {
            "name": name,
            "parameters": SIZES[name].parameters,
            "multiply_adds": SIZES[name].multiply_adds,
            "input": [1 if network.channel_order == "grey" else 3, *network.input_size],
            "weights": "trained" if network.labels else "seeded",
            "source": network.paper,
        }
        for name, network in NETWORKS.items()
    ]
    if as_json:
        print(json.dumps(listed, indent=2))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for heading in ("name", "parameters", "multiply-adds", "input", "weights", "source"):
        table.add_column(heading, justify="right" if heading in {"parameters", "multiply-adds"} else "left")
    for each in listed:
        counts = (count_text(each["parameters"]), count_text(each["multiply_adds"]))
        table.add_row(each["name"], *counts, "×".join(map(str, each["input"])), each["weights"], each["source"])
    console().print(table)


@app.command()
def doctor(as_name: AsOption = "", as_json: JsonOption = False) -> None:
    """Tell what this machine has, and what is missing.

    The machine, engines, meters, packages, and the command that would add each missing one.
    """
    from dataclasses import asdict

    from perwatt.lab.doctor import examine, show_findings
    from perwatt.lab.terminal import console
    from perwatt.lab.virtual.stage import stage
    from perwatt.machine import this_machine

    machine = this_machine()
    if as_name:
        with stage(as_name) as world:
            findings = examine(machine, world.host())
        print(f"meters of the simulated machine {as_name}; all else is this machine's", file=sys.stderr)
    else:
        findings = examine(machine)
    if as_json:
        print(json.dumps({"machine": machine.facts(), "findings": [asdict(each) for each in findings]}, indent=2))
    else:
        show_findings(machine, findings, console())


@app.command()
def meters(
    watch: Annotated[bool, typer.Option("--watch", help="Show live watts, until Ctrl-C.")] = False,
    test: Annotated[float | None, typer.Option(min=1, help="Seconds: read each meter idle and under load.")] = None,
    meter: Annotated[str, typer.Option(help="A wall meter: log:FILE or http://PLUG/status#path.to.watts.")] = "",
    as_name: AsOption = "",
    as_json: JsonOption = False,
) -> None:
    """List the meters of this machine, and how to open the closed ones.

    With what each covers, its step, its period, its error, who may read it and which others count the same joules.
    """
    from perwatt.lab import meters_command

    if watch and test is not None:
        raise InputError("meters: expected --watch or --test, got both; ask for one after the other")
    if test is not None:
        bad = meters_command.test(test, meter, as_name, as_json=as_json)
        if bad:
            raise typer.Exit(EXIT_FAULT)
    elif watch:
        meters_command.watch(meter, as_name, as_json=as_json)
    else:
        meters_command.listing(meter, as_name, as_json=as_json)


@app.command()
def report(
    record: RecordArgument,
    out: Annotated[Path | None, typer.Option(help="The HTML file. [default: beside the Record]")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a Record as one HTML page with pictures.

    The page needs no network; its pictures lie beside it as SVG and PNG. The table is printed too.
    """
    from perwatt.lab.check import require_valid
    from perwatt.lab.evaluation import command as evaluation
    from perwatt.lab.evaluation.record_file import is_evaluation
    from perwatt.lab.load import command as load_test
    from perwatt.lab.load.record_file import is_load_test
    from perwatt.lab.record_file import load
    from perwatt.lab.report import write

    if is_load_test(record):
        load_test.report_file(record, as_json=as_json)
        return
    if is_evaluation(record):
        evaluation.report_file(record, as_json=as_json)
        return
    loaded = load(record)
    require_valid(loaded, str(record))
    written = write(loaded, out or _beside(record))
    _print(loaded, as_json, record, written[0])


@app.command()
def check(record: RecordArgument) -> None:
    """Compute a Record's figures again from raw samples.

    Says VALID, or INVALID with each place that differs.
    """
    from perwatt.lab.check import check as find_faults
    from perwatt.lab.evaluation import command as evaluation
    from perwatt.lab.evaluation.record_file import is_evaluation
    from perwatt.lab.load import command as load_test
    from perwatt.lab.load.record_file import is_load_test
    from perwatt.lab.record_file import load, read_fields
    from perwatt.train.record import check_file, is_training

    if is_training(read_fields(record)):
        if check_file(read_fields(record), str(record)):
            raise typer.Exit(EXIT_FAULT)
        return
    if is_load_test(record) or is_evaluation(record):
        kind = load_test if is_load_test(record) else evaluation
        if kind.check_file(record):
            raise typer.Exit(EXIT_FAULT)
        return
    loaded = load(record)
    faults = find_faults(loaded)
    for fault in faults:
        print(f"INVALID  {fault}")
    if faults:
        raise typer.Exit(EXIT_FAULT)
    partial = f"; partial: {loaded.partial_reason}" if loaded.partial else ""
    print(f"VALID  {record}: every figure of {len(loaded.rows)} rows follows from its raw samples{partial}")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="The Record to compare with.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The Record that may be faster or slower.")],
    as_json: JsonOption = False,
) -> None:
    """Compare two Records, B's speed over A's.

    Row by row, with every setting that differs. Across unlike machines no difference is called.
    """
    from dataclasses import asdict

    from perwatt.lab.check import require_valid
    from perwatt.lab.compare import compare as side_by_side
    from perwatt.lab.comparison import is_fault, show_comparison
    from perwatt.lab.record_file import load
    from perwatt.lab.terminal import console

    records = [load(path) for path in (first, second)]
    for path, loaded in zip((first, second), records, strict=True):
        require_valid(loaded, str(path))
    comparison = side_by_side(*records)
    if as_json:
        print(json.dumps(asdict(comparison), indent=2, allow_nan=False, default=lambda part: part.model_dump()))
    else:
        show_comparison(comparison, console())
    if is_fault(comparison):
        raise typer.Exit(EXIT_FAULT)


@app.command()
def explain(
    network: Annotated[str, typer.Argument(help="A built-in network or an ONNX file.")],
    batch: Annotated[int, typer.Option(min=1, help="Images in a call.")] = 1,
    stop: Annotated[str, typer.Option(help="graph, passes, plan or code: the stage to print.")] = "plan",
    time: Annotated[
        bool, typer.Option("--time", help="Time every step and set it against the machine's peak.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads. [default: every usable core]")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what perwatt's own engine makes of a network.

    The graph, what the passes left of it, the plan with the reason of every choice, or the code that runs. With --time
    the plan is tuned and a table tells where the time goes: GFLOP/s count the multiply-adds of the definition, so a
    Winograd step can exceed the machine's peak.
    """
    from dataclasses import asdict

    from perwatt.run.compile import compile as compile_network
    from perwatt.run.explain import STAGES, step_times, table
    from perwatt.run.explain import explain as explain_stage

    source = _source(network, batch)
    if not time:
        stage = _one_of("stop", stop, STAGES)
        text = explain_stage(source, batch, stage, threads)
        print(json.dumps({"stage": stage, "lines": text.splitlines()}, indent=2) if as_json else text)
        return
    model = compile_network(source, batch, threads=threads, progress=_tuning_progress(network, batch))
    rows = step_times(model)
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        print("\n".join(table(rows)))


@app.command()
def tune(
    network: Annotated[str, typer.Argument(help="A built-in network or an ONNX file.")],
    batch: Annotated[str, typer.Option(help="Batch sizes, with commas.")] = "1,48",
    workspace: Annotated[str, typer.Option(help="Most working memory of a step, such as 256MiB. [default: any]")] = "",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads. [default: every usable core]")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="No new round of timing begins after so long.")] = 60.0,
    precision: Annotated[str, typer.Option(help="fp32, fp16, bf16, or auto: measured on photographs.")] = "fp32",
    agreement: Annotated[float, typer.Option(help="auto: least top-1 agreement with FP32, percent.")] = 99.9,
    data: Annotated[Path | None, typer.Option(help="auto: folder of photographs. [default: scikit-image's]")] = None,
    images: Annotated[int, typer.Option(min=1, help="auto: crops to compare on.")] = 1000,
    as_json: JsonOption = False,
) -> None:
    """Time the algorithms of every step on this machine, and keep the results for every later start.

    With --precision auto, also find the cheapest numbers per step that keep the answers, on your own photographs.
    """
    from perwatt.machine import size_text, this_machine
    from perwatt.run import tuning_file
    from perwatt.run.compile import compile as compile_network

    limit = _bytes("workspace", workspace) if workspace else None
    if as_json and precision != "auto":
        raise InputError("json: expected together with --precision auto, got --json alone; leave one of them out")
    if precision == "auto":
        from perwatt.lab.precision_command import tune_on_photographs

        for size in _whole_numbers("batch", batch):
            tune_on_photographs(
                network, size, _source(network, size), data, images, agreement, threads, seconds,
                lambda text: print(f"  {text}", file=sys.stderr), as_json=as_json,
            )  # fmt: skip
        return
    for size in _whole_numbers("batch", batch):
        model = compile_network(
            _source(network, size), size, threads=threads, workspace_bytes=limit, tune="again", tune_limit_s=seconds,
            precision=precision, progress=_tuning_progress(network, size),
        )  # fmt: skip
        counts: dict[str, int] = {}
        for planned in model.plan.steps:
            counts[planned.choice.algorithm] = counts.get(planned.choice.algorithm, 0) + 1
        chosen = ", ".join(f"{count} x {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
        print(f"{network}, batch {size}: {chosen}; workspace {size_text(model.plan.scratch_bytes)}")
    print(f"kept in {tuning_file.path(this_machine())}")


app.command("loadtest")(cli_loadtest.loadtest)
app.command("evaluate")(cli_evaluate.evaluate)
app.command("data")(cli_train.data)
app.command("train")(cli_train.train)
app.command("import")(cli_import.caffe)
app.command("package")(cli_package.make)
app.command("inspect")(cli_package.inspect)
app.command("run")(cli_package.run)
app.command("serve")(cli_serve.serve)


@app.command()
def version() -> None:
    """Print the version."""
    print(f"perwatt {__version__}")


def _network(name: str) -> str:
    """Return the name of a network or file as it was given. Raises InputError when it is neither."""
    from perwatt.networks import NETWORKS

    if name in NETWORKS or Path(name).is_file():
        return name
    raise InputError(
        f"network: expected an ONNX file or one of {', '.join(NETWORKS)}, got {name!r}; {_hint(name, tuple(NETWORKS))}"
    )


def _source(name: str, batch: int) -> "Path | Graph":
    """Return a built-in network's Graph, or the path of an ONNX file. Raises InputError when it is neither."""
    from perwatt.networks import NETWORKS, build

    found = _network(name)
    return build(found, batch) if found in NETWORKS else Path(found)


def _tuning_progress(name: str, batch: int) -> "Callable[[int, int], None]":
    """Return a function that tells on stderr how far tuning has come."""

    def tell(done: int, rounds: int) -> None:
        end = "\n" if done >= rounds else ""
        print(f"\rtuning {name}, batch {batch}: round {done} of {rounds}", end=end, file=sys.stderr, flush=True)

    return tell


def _lasting(profile: "Profile", minutes: float | None) -> "Profile | str":
    """Return the profile's name, or the profile with another longest duration. Raises InputError."""
    if minutes is None:
        return profile.name
    if not 0.1 <= minutes <= 10_000:
        raise InputError(f"minutes: expected a number from 0.1 to 10000, got {minutes}; leave it out for the profile's")
    return profile.model_copy(update={"limit_s": 60 * minutes})


def _bytes(what: str, given: str) -> int:
    """Return a size such as 256MiB, 1GiB or 4096 in bytes. Raises InputError."""
    units = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
    number = given.strip().rstrip("BKMGi ")
    unit = given.strip()[len(number) :].strip()
    if unit not in units or not number.replace(".", "", 1).isdecimal():
        raise InputError(f"{what}: expected a size such as 256MiB, got {given!r}; units are B, KiB, MiB and GiB")
    return int(float(number) * units[unit])


def _one_of(what: str, given: str, known: tuple[Choice, ...]) -> Choice:
    """Return the known choice that was given. Raises InputError with the nearest one."""
    for choice in known:
        if choice == given.strip():
            return choice
    raise InputError(f"{what}: expected one of {', '.join(known)}, got {given!r}; {_hint(given, known)}")


def _each_of(what: str, given: str, known: tuple[Choice, ...]) -> tuple[Choice, ...]:
    """Return the known choices of a list with commas, each once. Raises InputError."""
    return tuple(dict.fromkeys(_one_of(what, part, known) for part in given.split(",")))


def _hint(given: str, known: tuple[str, ...]) -> str:
    near = get_close_matches(given.strip().lower(), known, n=1, cutoff=0.7)
    return f"did you mean {near[0]}?" if near else "choose among them"


def _whole_numbers(what: str, given: str) -> tuple[int, ...]:
    """Return the numbers of a list with commas. Raises InputError."""
    parts = [part.strip() for part in given.split(",")]
    for part in parts:
        if not part.isdecimal() or int(part) < 1:
            raise InputError(f"{what}: expected whole numbers from 1, with commas, got {given!r}; for example 1,48")
    return tuple(dict.fromkeys(int(part) for part in parts))
