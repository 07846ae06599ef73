"""A Record as one HTML file that needs nothing from any network, and its pictures as SVG and PNG files.

The page shows what was measured, how sure it is, what is missing and why, and every fact a reader needs to doubt it.
"""

from collections.abc import Iterable, Iterator
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from perwatt.errors import InputError
from perwatt.lab.best import best_lines
from perwatt.lab.notation import (
    ABSENT,
    error_text,
    estimate_text,
    milliseconds_text,
    number_text,
    percent_text,
    ratio_text,
)
from perwatt.lab.record import Record, Row
from perwatt.lab.report_energy import energy
from perwatt.lab.report_facts import beside_2015, facts, text_table
from perwatt.lab.terminal import certainty, engine_name, grouped, reasons, shown, warnings
from perwatt.package.atomic_file import write_whole

PICTURES = ("bars", "accuracy", "latency", "frontier", "then-and-now")
_CAPTIONS = {
    "bars": "Images per second by network, batch, precision and engine; higher is better. Bars of one panel share a "
    "scale that begins at zero; whiskers are 95 % intervals.",
    "accuracy": "Speed against accuracy: images per second against the worst relative error of any checked image, on a "
    "logarithmic axis; left and up is better. Labels: precision and top-1 agreement with the FP32 reference. Hollow: "
    "BF16 and FP16; a diamond: auto.",
    "latency": "Median latency of one batch against throughput: left is sooner, up is more.",
    "frontier": "Images per joule against images per second; up and right is better. The dashed line joins the "
    "settings that no other beats in speed, latency and images/s/W at once. Unlike scopes have panels of their own.",
    "then-and-now": "The published figures of 2015 beside today's fastest engine of each batch and precision, on a "
    "logarithmic axis. Devices, large batches, precisions and software differ: this shows the distance, not a contest.",
}


def write(record: Record, path: Path) -> tuple[Path, ...]:
    """Write the report as `path` (HTML) with the pictures beside it, and return every file written, the page first.

    Raises OutputError when a file cannot be written, InputError when matplotlib is missing.
    """
    pictures = draw(record)
    written = [path]
    for name, (vector, pixels) in pictures.items():
        for suffix, content in ((".svg", vector.encode()), (".png", pixels)):
            beside = path.with_name(f"{path.stem}-{name}{suffix}")
            write_whole(beside, content)
            written.append(beside)
    write_whole(path, page(record, {name: vector for name, (vector, _) in pictures.items()}).encode())
    return tuple(written)


def draw(record: Record) -> dict[str, tuple[str, bytes]]:
    """Return the pictures by name as (SVG, PNG); those with nothing to show are left out. Raises InputError."""
    try:
        from perwatt.lab import pictures
    except ImportError as error:
        raise InputError(
            f"report: expected matplotlib, which draws the pictures, got: {error}; pip install 'perwatt[bench]'"
        ) from error
    drawn = (
        pictures.bars(record),
        pictures.speed_against_accuracy(record),
        pictures.latency_against_throughput(record),
        pictures.frontier_of_settings(record),
        pictures.then_and_now(record),
    )
    return {
        name: (pictures.svg(figure, name), pictures.png(figure))
        for name, figure in zip(PICTURES, drawn, strict=True)
        if figure is not None
    }


def page(record: Record, pictures: dict[str, str]) -> str:
    """Return the whole HTML page; `pictures` are SVG elements by name."""
    networks = ", ".join(dict.fromkeys(row.network for row in shown(record)))
    title = f"perwatt: {networks} on {record.machine.get('cpu', 'this machine')}"
    body = "\n".join(
        [
            f"<h1>{escape(networks)}</h1>",
            f'<p class="soft">{escape(_subtitle(record))}</p>',
            *_notices(record),
            *_answers(record),
            *_picture(pictures, "bars"),
            "<h2>Every row</h2>",
            *_rows_table(record),
            *_reading_help(),
            *_more_of_rows(record),
            *_doubts(record),
            *_picture(pictures, "accuracy", heading="Speed against accuracy"),
            *_picture(pictures, "latency", heading="Latency against throughput"),
            *energy(record, list(_picture(pictures, "frontier"))),
            *_choice(record),
            *beside_2015(record, list(_picture(pictures, "then-and-now"))),
            *facts(record),
            f"<footer>Made by perwatt {escape(record.perwatt_version)} from the Record with digest <code>"
            f"{record.digest[:16]}</code>; <code>perwatt check</code> computes every figure of it again.</footer>",
        ]
    )
    template = files("perwatt.lab").joinpath("report.html").read_text(encoding="utf-8")
    return Template(template).substitute(title=escape(title), body=body)


def _subtitle(record: Record) -> str:
    cores = record.machine.get("cores")
    parts = [
        record.machine.get("cpu", "unknown machine"),
        f"{cores} cores" if cores else "",
        record.machine.get("gpu", ""),
    ]
    parts += [record.created, f"profile {record.profile.name}"]
    return ", ".join(part for part in parts if part)


def _notices(record: Record) -> Iterator[str]:
    if record.partial:
        reason = record.partial_reason or "it was cut short"
        yield f'<p class="notice"><b>Partial:</b> {escape(reason)}. The rows that were measured are valid.</p>'
    for note in record.notes:
        yield f'<p class="notice">{escape(note)}</p>'


def _answers(record: Record) -> Iterator[str]:
    """Yield the fastest correct row of each network, batch and precision, as cards."""
    cards = []
    for (network, batch, precision), rows in grouped(shown(record)):
        fastest = rows[0]
        if fastest.status != "ok" or fastest.figures.images_per_s is None:
            continue
        cards.append(
            f"<li><span>{escape(network)}, batch {batch}, {precision.upper()}</span>"
            f"<b>{estimate_text(fastest.figures.images_per_s)} <small>images/s</small></b>"
            f"<span>{escape(fastest.engine)}{escape(_compared(fastest))}</span></li>"
        )
    if cards:
        yield f'<ul class="answers">{"".join(cards)}</ul>'


def _compared(row: Row) -> str:
    if row.figures.best_other is None or row.figures.ratio_to_best is None:
        return ", alone"
    if row.figures.verdict == "faster":
        return f", {ratio_text(row.figures)} times {row.figures.best_other}"
    return f", no difference seen to {row.figures.best_other}"


def _picture(pictures: dict[str, str], name: str, heading: str | None = None) -> Iterator[str]:
    if name in pictures:
        if heading is not None:
            yield f"<h2>{heading}</h2>"
        yield f"<figure>{pictures[name]}<figcaption>{_CAPTIONS[name]}</figcaption></figure>"


def _rows_table(record: Record) -> Iterator[str]:
    heads = (
        "network",
        "batch",
        "precision",
        "engine",
        "images/s",
        "p50 ms",
        "vs best other",
        "error",
        "top-1",
        "status",
    )
    numbers = {"batch", "images/s", "p50 ms", "error", "top-1"}
    lines, last = [], None
    for (network, batch, _), rows in grouped(shown(record)):
        for row in rows:
            first = ' class="first"' if last not in (None, (network, batch)) else ""
            last = (network, batch)
            cells = zip(heads, _cells(row, engine_name(record, row)), strict=True)
            marked = (
                f'<td class="number">{cell}</td>' if head in numbers else f"<td>{cell}</td>" for head, cell in cells
            )
            lines.append(f"<tr{first}>{''.join(marked)}</tr>")
    named = (f'<th class="number">{head}</th>' if head in numbers else f"<th>{head}</th>" for head in heads)
    yield '<div class="scroll wide"><table><thead><tr>'
    yield from named
    yield "</tr></thead><tbody>"
    yield from lines
    yield "</tbody></table></div>"


def _cells(row: Row, engine: str) -> tuple[str, ...]:
    figures = row.figures
    fast = estimate_text(figures.images_per_s)
    if row.status != "ok" and figures.images_per_s is not None:  # shown, but struck out: it is no result
        fast = f"<s>{fast}</s>"
    ratio = escape(ratio_text(figures)) if row.status == "ok" else ABSENT
    return (
        escape(row.network),
        str(row.batch),
        row.precision.upper(),
        escape(engine),
        fast,
        milliseconds_text(figures.latency_p50_s),
        f'<span class="faster">{ratio}</span>' if figures.verdict == "faster" else ratio,
        error_text(figures.relative_error),
        percent_text(figures.top1_agreement),
        f'<span class="{row.status}">{row.status}</span>',
    )


def _reading_help() -> Iterator[str]:
    yield (
        '<p class="soft">± is the wider half of the 95 % interval over blocks. "vs best other" is this engine\'s '
        "speed over that of the fastest other engine in the same network, batch and precision, paired block by block, "
        'with its 95 % interval; where that covers 1, no difference was seen. "error" is the worst relative error of '
        'any checked image, "top-1" the share of images with the reference\'s class; both are taken from outputs of '
        "the timed runs. A struck-out speed belongs to wrong outputs.</p>"
    )


def _more_of_rows(record: Record) -> Iterator[str]:
    """Yield the figures that fewer people ask for, folded away."""
    heads = ("row", "percentiles, ms", "tolerance", "drift", "rounds", "load s", "first run ms", "memory MB")
    lines = []
    for _, rows in grouped(shown(record)):
        for row in (row for row in rows if row.blocks):
            figures = row.figures
            lines.append(
                (
                    f"{row.network} {row.batch} {row.precision} {row.engine}",
                    ", ".join(
                        f"p{each.percentile:g} {milliseconds_text(each.latency_s)}" for each in figures.percentiles
                    )
                    or ABSENT,
                    error_text(figures.tolerance),
                    ABSENT if figures.drift is None else f"{100 * figures.drift:+.1f}%",
                    str(figures.rounds),
                    ABSENT if row.load_s is None else number_text(row.load_s),
                    milliseconds_text(row.first_run_s),
                    ABSENT if row.peak_memory_bytes is None else number_text(row.peak_memory_bytes / 1e6),
                )
            )
    yield "<details><summary>Percentiles, cold start, memory</summary>"
    yield text_table(heads, lines)
    yield (
        '<p class="soft">A percentile that the number of runs does not carry is not shown. Memory is the worker\'s '
        "largest, its library and the lab's inputs included.</p></details>"
    )


def _choice(record: Record) -> Iterator[str]:
    if record.limits is not None:
        yield "<h2>The choice</h2>"
        yield _list(line.plain for line in best_lines(record))


def _doubts(record: Record) -> Iterator[str]:
    yield "<h3>How sure</h3>"
    yield _list(certainty(record))
    why = [line.plain for line in reasons(record)]
    if why:
        yield "<h3>Rows without a result</h3>"
        yield _list(why)
    doubtful = [line.plain.removeprefix("* ") for line in warnings(record)]
    if doubtful:
        yield "<h3>Warnings</h3>"
        yield _list(doubtful)


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
