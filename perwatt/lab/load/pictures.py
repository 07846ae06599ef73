"""The pictures of a load test: latency over time, its distribution, and rate against goodput for a search."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from perwatt.lab.load.figures import LIMIT_PERCENTILE, OUTCOMES, good_within_s, latencies_s, outcomes
from perwatt.lab.load.record import LoadRecord, Run, Search, ShotFacts, unpack_samples
from perwatt.lab.notation import number_text
from perwatt.lab.pictures import INK, STYLE, laid_out, png, svg
from perwatt.package.atomic_file import write_whole

# Okabe and Ito's colours; every outcome that is not good has a mark of its own too.
GROUPS: Mapping[str, tuple[str, str, tuple[str, ...]]] = MappingProxyType(
    {
        "good": ("#0072B2", "o", ("good",)),
        "late": ("#E69F00", "s", ("late",)),
        "refused": ("#CC79A7", "v", ("refused", "unavailable", "expired")),
        "wrong": ("#D55E00", "X", ("wrong", "stranger")),
        "no answer": ("#000000", "x", ("unanswered", "broken", "unconnected", "unfinished")),
        "error": ("#8C6D31", "P", ("rejected", "failed", "other")),
        "hostile, refused": ("#7F7F7F", "^", ("hostile", "left")),
    }
)
MOST_DOTS = 4000
MOST_RUNS = 8
WIDTH_INCHES = 9.2
_LIMIT: dict[str, Any] = {"color": "#D55E00", "linewidth": 1, "linestyle": "--", "zorder": 1}


def over_time(record: LoadRecord) -> Figure | None:
    """Return a panel per run: each request's latency at its due time, by outcome; None without samples.

    All requests that are not good are drawn; of the good ones a seeded sample and the slowest.
    """
    runs = _chosen(record)
    if not runs:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 2.1 * len(runs) + 0.5), layout="constrained")
        panels = figure.subplots(len(runs), 1, squeeze=False)[:, 0]
        seen: dict[str, Any] = {}
        for axes, run in zip(panels, runs, strict=True):
            seen |= _dots(axes, run, _shots(record, run))
        panels[-1].set_xlabel("due, seconds since the start of the run")
        figure.legend(seen.values(), seen.keys(), loc="outside lower left", ncols=len(seen), markerscale=2.5)
        return laid_out(figure)


def distribution(record: LoadRecord) -> Figure | None:
    """Return the share of requests that took longer than so long, of right answers; None without any.

    The vertical axis is logarithmic, so that the slowest of a thousand take as much room as the slowest of ten.
    """
    runs = [run for run in _chosen(record) if run.figures.answers_per_s.value > 0]
    if not runs:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 3.4), layout="constrained")
        axes = figure.subplots()
        shades = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8C6D31")
        for run, colour in zip(runs, shades, strict=False):
            samples = unpack_samples(run.samples)
            names = outcomes(samples, _shots(record, run), good_within_s(run))
            right = np.isin(names, (OUTCOMES.index("good"), OUTCOMES.index("late")))
            ordered = np.sort(latencies_s(samples)[right]) * 1000
            above = 1 - np.arange(len(ordered)) / len(ordered)
            axes.step(ordered, above, where="post", color=colour, linewidth=1.4, label=_title(run))
        limits = {run.limit_s for run in runs if run.limit_s is not None}
        for limit in limits:
            axes.axvline(1000 * limit, label=f"limit {number_text(1000 * limit)} ms", **_LIMIT)
        axes.set_xscale("log")
        axes.set_yscale("log")
        _milliseconds(axes, "x")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("latency from the due time, ms")
        axes.set_ylabel("right answers that took longer")
        axes.legend(loc="lower left", fontsize=8)
        return laid_out(figure)


def rate_against_goodput(record: LoadRecord) -> Figure | None:
    """Return goodput and p99 of each search's probes against the rate that was asked; None without a search."""
    searches = [search for search in record.searches if search.probes]
    if not searches:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 3.4 * len(searches)), layout="constrained")
        panels = figure.subplots(len(searches), 2, squeeze=False)
        for (left, right), search in zip(panels, searches, strict=True):
            _search_panels(left, right, record, search)
        return laid_out(figure)


def _search_panels(left: Axes, right: Axes, record: LoadRecord, search: Search) -> None:
    probes = sorted((record.runs[index] for index in search.probes), key=lambda run: run.rate or 0)
    rates = [run.rate or 0.0 for run in probes]
    top = 1.08 * max(rates)
    left.plot([0, top], [0, top], color=INK, linewidth=0.8, linestyle=":", alpha=0.6, zorder=0)
    for axes in (left, right):
        if search.held is not None and search.failed is not None:
            axes.axvspan(search.held, search.failed, color="#009E73", alpha=0.18, linewidth=0)
    for run in probes:
        good = run.figures.holds
        mark: dict[str, Any] = {
            "marker": "o" if good else "X",
            "color": "#009E73" if good else "#7F7F7F" if good is None else "#D55E00",
            "linestyle": "none",
            "markersize": 6,
        }
        goodput = run.figures.goodput_per_s
        low, high = goodput.low or goodput.value, goodput.high or goodput.value
        left.errorbar(
            [run.rate or 0],
            [goodput.value],
            yerr=[[goodput.value - low], [high - goodput.value]],
            capsize=2,
            **mark,
        )
        bound = _p99(record, run)
        if bound is not None:
            right.plot([run.rate or 0], [1000 * bound], **mark)
    right.axhline(1000 * search.limit_s, **_LIMIT)
    right.set_yscale("log")
    _milliseconds(right, "y")
    left.set_xlim(0, top)
    left.set_ylim(0, top)
    left.set_xlabel("requests/s asked")
    left.set_ylabel("good answers/s")
    right.set_xlim(0, top)
    right.set_xlabel("requests/s asked")
    right.set_ylabel("p99, ms (dashed: the limit)")
    left.set_title(f"{search.target}; circle: the limit held, cross: not, grey: not shown", loc="left", fontsize=8)


def draw(record: LoadRecord) -> dict[str, Figure]:
    """Return every picture of a Record that has something to show, by name."""
    made = {
        "latency over time": over_time(record),
        "latency distribution": distribution(record),
        "rate against goodput": rate_against_goodput(record),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def write(record: LoadRecord, path: Path) -> tuple[Path, ...]:
    """Write the pictures beside a Record's path, as SVG and PNG; return their paths. Raises OutputError."""
    stem = path.name.removesuffix(".gz").removesuffix(".json")
    written = []
    for name, figure in draw(record).items():
        place = path.with_name(f"{stem}-{name.replace(' ', '-')}")
        for suffix, content in ((".svg", svg(figure, name).encode()), (".png", png(figure))):
            write_whole(place.with_name(place.name + suffix), content)
            written.append(place.with_name(place.name + suffix))
    return tuple(written)


def _chosen(record: LoadRecord) -> list[Run]:
    """Return the runs to draw: of a search its probes nearest to the answer, else the first ones."""
    runs = [run for run in record.runs if run.samples.due.count]
    chosen: list[Run] = []
    for search in record.searches:
        middle = search.held or search.failed or 1.0
        probes = [record.runs[index] for index in search.probes]
        near = sorted(probes, key=lambda run: abs(math.log((run.rate or middle) / middle)))[:4]
        chosen += sorted(near, key=lambda run: run.rate or 0)
    return (chosen or runs)[:MOST_RUNS]


def _shots(record: LoadRecord, run: Run) -> Sequence[ShotFacts]:
    return next(target.shots for target in record.targets if target.name == run.target)


def _title(run: Run) -> str:
    pace = f"{number_text(run.rate)} requests/s" if run.rate is not None else f"{run.concurrency} at a time"
    return f"{run.label}, {run.target}: {pace}"


def _dots(axes: Axes, run: Run, shots: Sequence[ShotFacts]) -> dict[str, Any]:
    samples = unpack_samples(run.samples)
    names = outcomes(samples, shots, good_within_s(run))
    due_s, latency_ms = samples.due_ns * 1e-9, 1000 * latencies_s(samples)
    drawn: dict[str, Any] = {}
    for name, (colour, mark, members) in GROUPS.items():
        chosen = np.flatnonzero(np.isin(names, [OUTCOMES.index(member) for member in members]))
        chosen = chosen[np.isfinite(latency_ms[chosen])]
        if not len(chosen):
            continue
        if len(chosen) > MOST_DOTS:
            slow = chosen[np.argsort(latency_ms[chosen])[-MOST_DOTS // 4 :]]
            some = np.random.RandomState(run.seed % 2**32).choice(chosen, MOST_DOTS * 3 // 4, replace=False)
            chosen = np.union1d(slow, some)
        size = 3 if mark == "o" else 9
        drawn[name] = axes.scatter(
            due_s[chosen], np.maximum(latency_ms[chosen], 1e-3), s=size, c=colour, marker=mark, linewidths=0.6,
            alpha=0.7, rasterized=True,
        )  # fmt: skip
    if run.limit_s is not None:
        axes.axhline(1000 * run.limit_s, **_LIMIT)
    axes.set_yscale("log")
    _milliseconds(axes, "y")
    axes.set_xlim(0, max(run.seconds, 1e-3))
    axes.set_ylabel("latency, ms")
    axes.set_title(_title(run), loc="left", fontweight="bold", fontsize=9)
    return drawn


def _p99(record: LoadRecord, run: Run) -> float | None:
    """Return the bound of p99 that the limit was held against, or the plain p99 where the samples carry no bound."""
    for each in run.figures.percentiles:
        if each.percentile == LIMIT_PERCENTILE:
            return each.latency_s
    samples = unpack_samples(run.samples)
    names = outcomes(samples, _shots(record, run), good_within_s(run))
    right = np.isin(names, (OUTCOMES.index("good"), OUTCOMES.index("late")))
    return float(np.percentile(latencies_s(samples)[right], 99)) if right.any() else None


def _milliseconds(axes: Axes, which: str) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    narrow = high < 30 * max(low, 1e-9)
    axis.set_major_formatter(FuncFormatter(lambda value, _: number_text(value, 1)))
    axis.set_minor_formatter(
        FuncFormatter(lambda value, _: number_text(value, 1) if str(value).strip("0.")[:1] in "25" else "")
        if narrow
        else NullFormatter()
    )
