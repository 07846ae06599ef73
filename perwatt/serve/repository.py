"""The packages a server holds, by name; each can be replaced while it answers, without a lost request."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from perwatt.errors import InputError, PerwattError, Refused
from perwatt.package.preprocessing import Preprocessing
from perwatt.serve.messages import Subject
from perwatt.serve.service import Service

State = Literal["READY", "LOADING", "UNAVAILABLE"]


@dataclass(frozen=True)
class Deployed:
    """A package that answers: its service, and what its requests and answers are read and written with."""

    name: str
    version: str
    service: Service
    subject: Subject
    preprocessing: Preprocessing | None
    labels: tuple[str, ...] | None
    platform: str
    about: Mapping[str, str] = field(default_factory=dict)
    dispose: Callable[[], None] = lambda: None

    async def close(self, drain_s: float) -> None:
        """Finish what is queued within the time, refuse the rest, and give back what it holds."""
        await self.service.close(drain_s)
        self.dispose()


# Opens a package by its source (a path, or whatever the opener understands): ready to answer, or an error.
Opener = Callable[[str], Awaitable[Deployed]]


@dataclass(eq=False)
class Held:
    """A loaded package and the number of requests that are using it; it may be closed when there are none."""

    loaded: Deployed
    users: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __enter__(self) -> Deployed:
        self.users += 1
        return self.loaded

    def __exit__(self, *_: object) -> None:
        self.users -= 1
        if not self.users:
            self.idle.set()


class Repository:
    """Packages by name. Only names that `sources` maps to a source can be loaded: a client never names a path.

    Everything here runs on one event loop.
    """

    def __init__(self, sources: Mapping[str, str], opener: Opener) -> None:
        self.sources = dict(sources)
        self.held: dict[str, Held] = {}
        self.states: dict[str, tuple[State, str]] = {}
        self.loaded_at_s: dict[str, float] = {}
        self._opener = opener
        self._loading = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        self.closing = False

    def lease(self, name: str, version: str | None) -> Held:
        """Return what serves this name and version; enter it for as long as it is used. Raises Refused (404, 503)."""
        held = self.held.get(name)
        if held is None:
            if name in self.states and self.states[name][0] == "LOADING":
                raise Refused(f"model {name!r} is loading; wait until it is ready", reason="not_ready", status=503)
            known = ", ".join(self.held) or "none"
            raise Refused(f"expected one of the models {known}, got {name[:80]!r}", reason="unknown_model", status=404)
        if version is not None and version != held.loaded.version:
            raise Refused(
                f"model {name!r}: expected version {held.loaded.version}, got {version[:80]!r}",
                reason="unknown_model",
                status=404,
            )
        return held

    @property
    def ready(self) -> bool:
        """Whether every package that should be here answers; one that was unloaded should not."""
        loading = any(state == "LOADING" for state, _ in self.states.values())
        answering = bool(self.held) and all(held.loaded.service.ready for held in self.held.values())
        return answering and not loading and not self.closing

    def expect(self, sources: Mapping[str, str]) -> None:
        """Name what is to be loaded; until it is, the server is not ready."""
        self.sources.update(sources)
        self.states.update(dict.fromkeys(sources, ("LOADING", "")))

    def model_ready(self, name: str, version: str | None) -> bool:
        """Return whether one package answers. Raises Refused (404) when there is none of this name."""
        return self.lease(name, version).loaded.service.ready and not self.closing

    async def load(self, name: str, drain_s: float) -> Deployed:
        """Open a package again from its source and put it in the place of the one that serves; return it.

        The old one answers until the new one is ready, then finishes what it holds. Raises Refused when the name has
        no source, and whatever opening raises, the old one serving on.
        """
        async with self._loading:
            if name not in self.sources:
                known = ", ".join(self.sources) or "none"
                raise Refused(
                    f"expected one of the models {known}, got {name[:80]!r}", reason="unknown_model", status=404
                )
            if name not in self.held:
                self.states[name] = ("LOADING", "")
            try:
                fresh = await self._opener(self.sources[name])
                if fresh.name != name:
                    await fresh.close(0)
                    raise InputError(
                        f"{self.sources[name]}: expected a package named {name!r}, got {fresh.name!r}; "
                        "serve it from a file of its own"
                    )
            except PerwattError as error:
                if name not in self.held:
                    self.states[name] = ("UNAVAILABLE", str(error))
                raise
            if self.closing:
                await fresh.close(0)
                raise Refused("the server is closing", reason="draining", status=503)
            old = self.held.get(name)
            self.held[name] = Held(fresh)
            self.states[name] = ("READY", "")
            self.loaded_at_s[name] = time.monotonic()
        if old is not None:
            self._retire(old, drain_s)
        return fresh

    async def unload(self, name: str, drain_s: float) -> None:
        """Take a package out of service; what it holds is finished. Raises Refused (404) when it is not loaded."""
        async with self._loading:
            held = self.lease(name, None)
            del self.held[name]
            self.states[name] = ("UNAVAILABLE", "unloaded")
        self._retire(held, drain_s)

    def index(self) -> list[dict[str, str]]:
        """Return name, version, state and reason of every package, as the repository extension wants them."""
        rows = []
        for name, (state, reason) in self.states.items():
            version = self.held[name].loaded.version if name in self.held else ""
            rows.append({"name": name, "version": version, "state": state, "reason": reason})
        return rows

    def __iter__(self) -> Iterator[Deployed]:
        return iter([held.loaded for held in self.held.values()])

    async def close(self, drain_s: float) -> None:
        """Close every package: what is queued is finished within `drain_s`, the rest refused."""
        self.closing = True
        tasks = [asyncio.ensure_future(held.loaded.close(drain_s)) for held in self.held.values()]
        await asyncio.gather(*tasks, *self._retiring, return_exceptions=True)

    def _retire(self, held: Held, drain_s: float) -> None:
        task = asyncio.get_running_loop().create_task(_finish(held, drain_s))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)


async def _finish(held: Held, drain_s: float) -> None:
    """Close a package that nobody can find any more, after the requests that had found it."""
    # A request may still decode its photograph for this package; closing now would lose it.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(drain_s):
            while held.users:
                held.idle.clear()
                await held.idle.wait()
    await held.loaded.close(drain_s)
