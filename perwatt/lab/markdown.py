"""A Record as a Markdown table, for a README or an issue: a line a case, a column an engine."""

from perwatt.lab.notation import ABSENT, estimate_text
from perwatt.lab.record import Record, Row
from perwatt.lab.terminal import grouped, shown


def markdown(record: Record) -> str:
    """Return images/s of every engine by network, batch and precision, and one line on where it was measured.

    Bold: faster than every other engine of its line, by more than the noise. A word: why there is no figure.
    """
    cases = list(grouped(shown(record)))
    engines = list(dict.fromkeys(row.engine for row in sorted(shown(record), key=lambda row: row.engine != "perwatt")))
    lines = [
        f"| images/s | batch | precision | {' | '.join(engines)} |",
        f"|---|--:|---|{'--:|' * len(engines)}",
    ]
    for (network, batch, precision), rows in cases:
        by_engine = {row.engine: row for row in rows}
        cells = [_cell(by_engine[engine]) if engine in by_engine else ABSENT for engine in engines]
        lines.append(f"| {network} | {batch} | {precision.upper()} | {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\n{_where(record)}\n"


def _cell(row: Row) -> str:
    if row.status != "ok" or row.figures.images_per_s is None:
        return row.status
    text = estimate_text(row.figures.images_per_s)
    return f"**{text}**" if row.figures.verdict == "faster" else text


def _where(record: Record) -> str:
    machine = record.machine
    cores = f", {machine['cores']} cores" if "cores" in machine else ""
    floor = record.noise.floor if record.noise is not None else None
    noise = "noise floor unknown" if floor is None else f"noise floor {100 * floor:.1f} %"
    return (
        f"{machine.get('cpu', 'unknown machine')}{cores}, {machine.get('vector unit', 'unknown vector unit')}; "
        f"{record.created[:10]}, profile {record.profile.name}, {noise}. ± is a 95 % interval; bold: faster than every "
        "other engine of its line; every figure stands for outputs that agree with the FP32 reference."
    )
