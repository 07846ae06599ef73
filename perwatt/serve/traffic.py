"""The last minutes of traffic, second by second, for people who watch: rates, percentiles, queues, batch sizes."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

# 40 to a factor of ten: a percentile read from them is right to 6 %. From 0.1 ms to 100 s.
EDGES_S = np.logspace(-4, 2, 241)
KEPT_S = 300
# Percentiles and batch sizes are of so many seconds: of one second alone they jump about.
WINDOW_S = 10
# Answers whose way back is remembered, and after how many the percentile is computed anew.
WAYS_KEPT, WAYS_EVERY = 256, 32
# How quickly the pace follows a change: the share of the newest second.
NEWEST = 0.3


@dataclass(frozen=True)
class _Second:
    """What the window keeps of a second: counts of durations between EDGES_S, batches by size, images, joules."""

    durations: np.ndarray
    batches: Counter[int]
    images: int
    joules: float


class ModelTraffic:
    """What one package did since the last second ended, and the window over the seconds before."""

    def __init__(self) -> None:
        self.requests = self.images = 0
        self.joules: float = 0.0
        self.refused: Counter[str] = Counter()
        self.batches: Counter[int] = Counter()
        self.durations_s: list[float] = []
        self._window: deque[_Second] = deque(maxlen=WINDOW_S)

    def second(self) -> dict[str, Any]:
        """End this second: return its figures and begin the next."""
        counts, _ = np.histogram(np.clip(self.durations_s, EDGES_S[0], EDGES_S[-1]), EDGES_S)
        self._window.append(_Second(counts, self.batches, self.images, self.joules))
        whole = np.sum([each.durations for each in self._window], axis=0)
        images, joules = sum(each.images for each in self._window), sum(each.joules for each in self._window)
        figures = {
            "requests": self.requests,
            "images": self.images,
            "refused": dict(self.refused),
            "p50_ms": _percentile_ms(whole, 0.5),
            "p99_ms": _percentile_ms(whole, 0.99),
            "batches": {str(size): count for size, count in sorted(self._batches().items())},
            "joules_per_image": joules / images if joules and images else None,
        }
        self.requests = self.images = 0
        self.joules = 0.0
        self.refused, self.batches, self.durations_s = Counter(), Counter(), []
        return figures

    def _batches(self) -> Counter[int]:
        whole: Counter[int] = Counter()
        for each in self._window:
            whole.update(each.batches)
        return whole


class Traffic:
    """Seconds of traffic of a whole server; `answered_per_s` is its present pace, None before any request."""

    def __init__(self) -> None:
        self.models: dict[str, ModelTraffic] = {}
        self.seconds: deque[tuple[int, dict[str, Any]]] = deque(maxlen=KEPT_S)
        self.answered_per_s: float | None = None
        self._next = asyncio.Event()
        self._number = 0
        self._ended_s: float | None = None

    def of(self, model: str) -> ModelTraffic:
        """Return the counts of one package, for adding to."""
        found = self.models.get(model)
        if found is None:
            found = self.models[model] = ModelTraffic()
        return found

    def end_second(self, states: Mapping[str, Mapping[str, Any]], whole: Mapping[str, Any]) -> None:
        """Close a second: `states` are figures of each package that are no counts, `whole` those of the server."""
        now = time.monotonic()
        lasted_s = 1.0 if self._ended_s is None else max(now - self._ended_s, 1e-3)
        self._ended_s = now
        for name in set(self.models) - set(states):
            del self.models[name]
        models = {name: {**self.of(name).second(), **state} for name, state in states.items()}
        pace = sum(figures["requests"] for figures in models.values()) / lasted_s
        if pace:  # an idle second says nothing of how fast it could be
            before = pace if self.answered_per_s is None else self.answered_per_s
            self.answered_per_s = (1 - NEWEST) * before + NEWEST * pace
        self._number += 1
        self.seconds.append((self._number, {"lasted_s": round(lasted_s, 3), "models": models, **whole}))
        self.wake()

    def wake(self) -> None:
        """Let everybody go on who waits for the next second."""
        self._next.set()
        self._next = asyncio.Event()

    async def next_second(self) -> None:
        """Wait until another second has ended."""
        await self._next.wait()

    def since(self, number: int) -> list[tuple[int, dict[str, Any]]]:
        """Return the kept seconds after one that was seen, by its number."""
        return [(each, figures) for each, figures in self.seconds if each > number]

    def wait_s(self, requests: int) -> float | None:
        """Return in how many seconds so many requests will have been answered at the present pace, None if unknown."""
        return requests / self.answered_per_s if self.answered_per_s else None


class WayBack:
    """How long answers take from the network to their client, as far as this process sees it: the latest of them.

    Those of one batch are written one after the other, behind whatever else the event loop has to do.
    """

    def __init__(self) -> None:
        self.p99_s = 0.0
        self._latest: deque[float] = deque(maxlen=WAYS_KEPT)
        self._until = WAYS_EVERY

    def observe(self, seconds: float) -> None:
        """Add one; the percentile is computed anew every so often."""
        self._latest.append(seconds)
        self._until -= 1
        if not self._until:
            self._until = WAYS_EVERY
            self.p99_s = float(np.percentile(self._latest, 99))


def _percentile_ms(counts: np.ndarray, share: float) -> float | None:
    total = int(counts.sum())
    if not total:
        return None
    index = int(np.searchsorted(np.cumsum(counts), share * total))
    return round(1e3 * float(np.sqrt(EDGES_S[index] * EDGES_S[index + 1])), 3)
