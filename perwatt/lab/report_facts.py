"""The parts of the report that let a reader doubt it: the published rows of 2015, and every fact of the run."""

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from perwatt.lab.energy_table import metered
from perwatt.lab.notation import ABSENT, count_text, duration_text, estimate_text, number_text
from perwatt.lab.published import published
from perwatt.lab.record import Record
from perwatt.lab.terminal import recognised, shown


def beside_2015(record: Record, picture: Sequence[str]) -> Iterator[str]:
    """Yield the published rows of 2015 for the networks of the Record, with the picture and their sources."""
    networks = list(dict.fromkeys(row.network for row in shown(record)))
    rows = [row for network in networks for row in published(network)]
    if not rows:
        return
    yield "<h2>Beside the study of 2015</h2>"
    yield from picture
    table = []
    for row in dict.fromkeys(rows):
        source = f'<a href="{row.source}">{escape(row.source.split("//")[1].split("/")[0])}</a>'
        sign = {"=": "", ">": "over ", "<": "under "}[row.relation]
        joules = ABSENT if row.images_per_joule is None else f"{row.images_per_joule:g}"
        table.append(
            f'<tr class="published"><td>{row.network}</td><td class="number">{row.batch}</td>'
            f"<td>{row.precision.upper()}</td><td>{row.device}</td><td>{row.software}</td>"
            f'<td class="number">{sign}{row.images_per_s:,g}</td><td class="number">{joules}</td>'
            f'<td class="text">{source}{escape(": " + row.note if row.note else "")}</td></tr>'
        )
    yield from _today(record, networks)
    yield "<details><summary>The published rows and their sources</summary>"
    yield (
        '<div class="scroll wide"><table><thead><tr><th>network</th><th class="number">batch</th><th>precision</th>'
        '<th>device</th><th>software</th><th class="number">images/s</th><th class="number">images/s/W</th>'
        f"<th>published by</th></tr></thead><tbody>{''.join(table)}</tbody></table></div></details>"
    )
    yield (
        '<p class="soft">Only figures whose source can be read are shown. Published without error bars, idle power or '
        "accuracy; watts came from a different meter on each device.</p>"
    )


def _today(record: Record, networks: Sequence[str]) -> Iterator[str]:
    """Yield images/s/W as published and as measured today: beside each other, for distance, and not comparable."""
    measured = [
        (row, found)
        for row in shown(record)
        if published(row.network) and (found := metered(row)) is not None and found.images_per_joule is not None
    ]
    told = dict.fromkeys(row for network in networks for row in published(network) if row.images_per_joule is not None)
    if not measured or not told:
        return
    lines = [
        (f"2015, {row.device}", row.network, str(row.batch), row.precision.upper(),
         f"{row.images_per_joule:g}", "not stated; another meter on each device")
        for row in told
    ] + [
        (f"today, {row.engine}", row.network, str(row.batch), row.precision.upper(),
         estimate_text(found.images_per_joule), f"{found.scope} ({found.meter})")
        for row, found in sorted(measured, key=lambda pair: (pair[0].network, pair[0].batch))
    ]  # fmt: skip
    yield "<h3>images/s/W, then and now: not comparable</h3>"
    yield text_table(
        ("device or engine", "network", "batch", "precision", "images/s/W", "what the watts are of"), lines
    )
    yield (
        '<p class="soft">The scopes differ, or are not known: a board, a processor and a wall socket count different '
        "things. These rows show how far apart the years are, not which machine is better.</p>"
    )


def facts(record: Record) -> Iterator[str]:
    """Yield everything a reader needs to doubt the figures, or to measure them again."""
    yield "<h2>Facts</h2>"
    yield "<h3>Machine</h3>"
    yield _pairs([*record.machine.items(), ("machine id", record.machine_id)])
    yield "<h3>Networks</h3>"
    yield text_table(
        ("network", "parameters", "multiply-adds", "input", "source", "SHA-256", "preprocessing"),
        [
            (
                each.name,
                count_text(each.parameters),
                ABSENT if each.multiply_adds is None else count_text(each.multiply_adds),
                "×".join(map(str, each.input_shape)),
                each.source,
                each.sha256[:16],
                ", ".join(f"{name} {value}" for name, value in each.preprocessing.items()),
            )
            for each in record.networks
        ],
    )
    for line in recognised(record):
        yield f"<p>{escape(line)}</p>"
    yield "<h3>Engines, as they were set</h3>"
    yield text_table(
        ("engine", "version", "precision", "threads", "options that differ from a bare install"), _engines(record)
    )
    yield "<h3>Conditions</h3>"
    yield _pairs(_conditions(record))
    yield "<h3>Run</h3>"
    yield _pairs(_run(record))
    names = ", ".join(f"{photo.name} ({photo.sha256[:8]})" for photo in record.photographs)
    yield f"<details><summary>{len(record.photographs)} photographs</summary>"
    yield f"<p><code>{escape(names)}</code></p></details>"


def _engines(record: Record) -> list[tuple[str, ...]]:
    """Return one line for each different setting of an engine that was loaded."""
    settings = {
        (
            row.engine,
            row.version or ABSENT,
            row.precision
            + ("" if row.precision_reported in (None, row.precision) else f" (ran {row.precision_reported})"),
            str(row.threads),
            ", ".join(f"{name}={value}" for name, value in row.options.items()) or "none",
        ): None
        for row in record.rows
        if row.version is not None
    }
    return sorted(settings)


def _conditions(record: Record) -> list[tuple[str, str]]:
    blocks = [block for row in record.rows for block in row.blocks]
    waits = sum(block.wait_s for block in blocks)
    restless = sum(not block.rested for block in blocks)
    return [
        ("load average", _span([block.load_average for block in blocks])),
        ("clock, MHz", _span([block.clock_mhz for block in blocks])),
        ("temperature, °C", _span([block.temperature_c for block in blocks])),
        ("blocks", str(len(blocks))),
        ("waited for other engines to rest", f"{waits:.1f} s in all; {restless} blocks began before they did"),
    ]


def _span(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{number_text(min(known))} to {number_text(max(known))}" if known else "not shown by this machine"


def _run(record: Record) -> list[tuple[str, str]]:
    profile = record.profile
    goal = f"until every interval is within ±{100 * profile.half_width:g} %, at most {duration_text(profile.limit_s)}"
    return [
        ("command", " ".join(record.command)),
        ("created", record.created),
        ("took", duration_text(record.duration_s)),
        (
            "profile",
            f"{profile.name}: blocks of {profile.block_s:g} s, {profile.minimum_rounds} rounds or more, {goal}",
        ),
        ("seed", str(record.seed)),
        ("commit", record.commit or "unknown"),
        ("energy", _energy(record)),
    ]


def _energy(record: Record) -> str:
    energy = record.energy
    if energy is None or not energy.meters:
        reason = energy.reason if energy is not None else "no meter was read"
        return f"not measured: {reason}"
    return "; ".join(f"{facts.name}, scope {facts.scope}" for facts in energy.meters)


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f'<tr><td>{escape(name)}</td><td class="text">{escape(value)}</td></tr>' for name, value in pairs)
    return f'<div class="scroll"><table><tbody>{lines}</tbody></table></div>'


def text_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of plain text as HTML; its last column may wrap."""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    lines = ""
    for row in rows:
        cells = [f"<td>{escape(cell)}</td>" for cell in row[:-1]]
        lines += f'<tr>{"".join(cells)}<td class="text">{escape(row[-1])}</td></tr>'
    return f'<div class="scroll wide"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
