"""The part of the report on energy: every metered row with its scope, idle power, and what the watts leave out."""

from collections.abc import Iterator, Sequence
from html import escape

from perwatt.lab.energy_table import energy_lines, energy_reasons, metered
from perwatt.lab.notation import ABSENT, estimate_text
from perwatt.lab.record import EnergyFigures, Estimate, Record
from perwatt.lab.terminal import engine_name, grouped, shown

_HEADS = ("scope", "network", "batch", "precision", "engine", "images/s", "W", "images/s/W", "vs best other", "J/image",
          "above idle")  # fmt: skip


def energy(record: Record, picture: Sequence[str]) -> Iterator[str]:
    """Yield what the work took, or why that is not known."""
    yield "<h2>Energy</h2>"
    rows = []
    for (network, batch, precision), members in grouped(shown(record)):
        for row in members:
            found = metered(row)
            if found is None:
                continue
            cells = (
                found.scope or ABSENT,
                network,
                str(batch),
                precision.upper(),
                engine_name(record, row),
                estimate_text(row.figures.images_per_s),
                estimate_text(found.power_w),
                estimate_text(found.images_per_joule),
                _compared(found),
                estimate_text(found.joules_per_image),
                estimate_text(found.above_idle_joules_per_image),
            )
            rows.append("".join(f"<td>{escape(cell)}</td>" for cell in cells))
    if rows:
        heads = "".join(f"<th>{head}</th>" for head in _HEADS)
        lines = "".join(f"<tr>{cells}</tr>" for cells in rows)
        yield f'<div class="scroll wide"><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'
        yield (
            '<p class="soft">W, images/s/W (images per joule) and J/image are gross: all that the meter saw while the '
            "row ran. Above idle, what the engines at rest take in the same time is subtracted. Intervals of 95 % join "
            "the spread between blocks with the meter's own error. Only rows of one scope may be compared.</p>"
        )
        yield from picture
    lines = "".join(f"<li>{escape(line)}</li>" for line in (*energy_lines(record), *energy_reasons(record)))
    yield f"<ul>{lines}</ul>"


def _compared(found: EnergyFigures) -> str:
    ratio: Estimate | None = found.ratio_to_best
    if ratio is None or ratio.low is None or ratio.high is None:
        return ABSENT
    if found.verdict == "no difference seen":
        return "no difference seen"
    return f"{ratio.value:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"
