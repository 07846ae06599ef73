"""A load test on a terminal: a line a run, what was not good, whether the generator kept up, and the conclusion."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from perwatt.lab.load.claims import RULES
from perwatt.lab.load.record import Claim, LoadRecord, Run, Search, unpack
from perwatt.lab.notation import ABSENT, duration_text, estimate_text, milliseconds_text, number_text, percent_text

_GOOD = ("good", "hostile", "left")
_UNITS = {"p50 latency": (1000.0, " ms"), "p99 latency": (1000.0, " ms"), "recovery": (1.0, " s")}


def show(record: LoadRecord, to: Console, *, record_path: Path | None = None, pictures: tuple[Path, ...] = ()) -> None:
    """Print the whole answer to a load test."""
    to.print(Padding(table(record), (0, 0, 1, 1)))
    for line in (*unlike(record), *conclusions(record)):
        to.print(Padding(line, (0, 0, 0, 1)))
    to.print()
    for footer in footers(record):
        to.print(Padding(Text(footer), (0, 0, 0, 1)), style="dim")
    for name, path in (("record", record_path), *(("picture", each) for each in pictures if each.suffix == ".png")):
        if path is not None:
            to.print(Text.assemble(f" {name}  ", (str(path), "bold")), soft_wrap=True)


def table(record: LoadRecord) -> Table:
    """Return a line a run: what was asked, what came back, how long it took, whether the limit held."""
    made = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    limited = any(run.limit_s is not None for run in record.runs)
    names = ["run", "asked/s", "right/s", "good/s", "p50 ms", "p90", "p99", "p99.9", "good", *["limit"] * limited]
    for name in names:
        made.add_column(name, justify="left" if name in ("run", "limit") else "right", no_wrap=name != "run")
    several, last = len(record.targets) > 1, ""
    for run in record.runs:
        figures = run.figures
        if several and run.target != last:
            made.add_row(Text(run.target, style="bold"))
            last = run.target
        carried = {each.percentile: each.latency_s for each in figures.percentiles}
        asked = number_text(run.rate) if run.rate is not None else f"{run.concurrency} at a time"
        plain = figures.requests - sum(figures.outcomes.get(name, 0) for name in _GOOD[1:])
        cells = [
            Text(f"  {run.label}" if several else run.label),
            Text(asked),
            Text(estimate_text(figures.answers_per_s)),
            Text(estimate_text(figures.goodput_per_s)),
            Text(milliseconds_text(figures.latency_p50_s)),
            *(Text(milliseconds_text(carried.get(percentile))) for percentile in (90.0, 99.0, 99.9)),
            Text(percent_text(figures.outcomes.get("good", 0) / plain if plain else None)),
        ]
        if limited:
            cells.append(_limit(run))
        made.add_row(*cells)
    return made


def _limit(run: Run) -> Text:
    if run.limit_s is None:
        return Text(ABSENT)
    if not run.figures.kept_up:
        return Text("generator too slow", style="yellow")
    if run.figures.holds is None:
        return Text("too few requests", style="yellow")
    return Text("holds", style="green") if run.figures.holds else Text("fails", style="red")


def unlike(record: LoadRecord) -> Iterator[Text]:
    """Yield what was not good of each run, and why nothing is concluded from some."""
    for run in record.runs:
        name = f"{run.target}, {run.label}" if len(record.targets) > 1 else run.label
        other = {each: count for each, count in run.figures.outcomes.items() if each not in _GOOD}
        if other:
            told = ", ".join(f"{count:,} {each}" for each, count in other.items())
            yield Text(f"{name}  {told} of {run.figures.requests:,} requests")
        apart = {each: run.figures.outcomes[each] for each in _GOOD[1:] if each in run.figures.outcomes}
        if apart:
            told = ", ".join(f"{count:,} {each}" for each, count in apart.items())
            yield Text(f"{name}  as meant: {told}", style="dim")
        if run.figures.kept_up_reason is not None:
            yield Text(f"{name}  nothing concluded about the server: {run.figures.kept_up_reason}", style="yellow")
        for warning in run.figures.warnings:
            yield Text(f"{name}  {warning}", style="yellow")


def conclusions(record: LoadRecord) -> Iterator[Text]:
    """Yield the answer of a search, how many answers were checked, and each claim with its value."""
    for search in record.searches:
        yield Text(search_text(search), style="bold")
    if record.checking is not None:
        checked = sum(_checked(run) for run in record.runs)
        bad = sum(run.figures.outcomes.get(name, 0) for run in record.runs for name in ("wrong", "stranger"))
        verdict = "each is its own request's" if not bad else f"{bad} WRONG"
        yield Text(
            f"{checked:,} answers checked: {verdict} ({record.checking.distinct} of {record.checking.shots} expected "
            f"answers differ from all others; {record.checking.source})",
            style="bold red" if bad else "",
        )
    for claim in record.claims:
        mark = {True: "yes", False: "NO", None: "not shown"}[claim.met]
        yield Text(f"{mark}  {claim_text(claim)}", style={True: "green", False: "red", None: "yellow"}[claim.met])


def search_text(search: Search) -> str:
    """Return the answer of a search in one sentence."""
    limit = f"p99 of {number_text(1000 * search.limit_s)} ms"
    if search.held is None:
        above = f" down to {number_text(search.failed)} requests/s" if search.failed is not None else ""
        return f"{search.target} was seen to hold no rate at a {limit}{above}"
    if search.limited_by == "server" and search.failed is not None:
        fails = number_text(search.failed)
        return f"{search.target} holds {number_text(search.held)} requests/s at a {limit}, not {fails}"
    why = "the generator could not keep up above" if search.limited_by == "generator" else "nothing higher was tried"
    return f"{search.target} holds at least {number_text(search.held)} requests/s at a {limit}; {why}"


def claim_text(claim: Claim) -> str:
    """Return a claim with its value, its interval and what was wanted."""
    factor, unit = _UNITS.get(claim.rule, (1.0, ""))
    sign = "at least" if claim.relation == ">=" else "at most"
    wanted = f"{sign} {number_text(factor * claim.wanted)}{unit}"
    if claim.value is None or claim.rule not in RULES:
        return f"{claim.text}: no value, wanted {wanted}"
    interval = ""
    if claim.low is not None and claim.high is not None:
        interval = f" ({number_text(factor * claim.low)} to {number_text(factor * claim.high)})"
    return f"{claim.text}: {number_text(factor * claim.value)}{unit}{interval}, wanted {wanted}"


def _checked(run: Run) -> int:

    return int((unpack(run.samples.verdict) > 0).sum())


def footers(record: LoadRecord) -> Iterator[str]:
    """Yield how it was measured: server, generator, machine, notes."""
    for target in record.targets:
        yield (
            f"{target.name}  {target.url}, {target.server or 'says nothing of itself'}; {target.payload}, "
            f"{len({shot.name for shot in target.shots})} different for {target.options.get('models', '1 model')}"
        )
    shared = " on the server's machine, whose cores it shares" if record.shared_machine else ""
    late = [run.figures.lateness_p99_s for run in record.runs if run.mode == "open"]
    worst = max((each for each in late if each is not None), default=None)
    cost = max((run.figures.generator_cost_s for run in record.runs), default=0.0)
    share = max((run.figures.generator_share for run in record.runs), default=0.0)
    yield (
        f"generator{shared}: at most {number_text(1e6 * cost, 2)} µs of processor a request, "
        f"{100 * share:.0f} % of a core"
        + (f"; late by {milliseconds_text(worst)} ms at p99" if worst is not None else "")
    )
    yield "latency counts from when a request was due; p90 and above are bounds at 99 % confidence"
    yield f"{record.machine.get('cpu', 'this machine')}; {duration_text(record.duration_s)}; seed {record.seed}"
    yield from (f"note  {note}" for note in record.notes)
    if record.partial:
        yield f"partial  {record.partial_reason or 'cut short'}: what was measured is valid"


def as_json(record: LoadRecord, record_path: Path | None, pictures: tuple[Path, ...]) -> dict[str, Any]:
    """Return what programs want of a load test: every figure, without the raw samples."""
    kept = record.model_dump(mode="json", exclude={"runs": {"__all__": {"samples"}}, "targets": {"__all__": {"shots"}}})
    return {
        "record": None if record_path is None else str(record_path),
        "pictures": [str(path) for path in pictures],
        **{name: kept[name] for name in ("partial", "runs", "searches", "checking", "claims", "series", "notes")},
    }
