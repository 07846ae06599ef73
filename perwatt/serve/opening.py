"""Opening what is to be served: a package file (as a private copy), or the network that does nothing."""

import shutil
import tempfile
from asyncio import to_thread
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from perwatt import package as packages
from perwatt.errors import InputError, NetworkError
from perwatt.serve.batcher import Limits
from perwatt.serve.dispatch import BatchReport, Dispatch
from perwatt.serve.energy import Joules
from perwatt.serve.fairness import Cores
from perwatt.serve.messages import Subject
from perwatt.serve.process import Source, batch_sizes, null_source, package_source
from perwatt.serve.repository import Deployed

NULL = "null:"
Observer = Callable[[str, BatchReport], None]


@dataclass(frozen=True)
class EngineSettings:
    """How packages are run: threads None is every usable core; `unproven` takes packages without golden examples."""

    max_batch: int = 16
    precision: str = "fp32"
    threads: int | None = None
    tune_limit_s: float = 6.0
    unproven: bool = False


@dataclass(eq=False)
class Opening:
    """Opens sources, each in a process of its own; all share the cores fairly.

    A source is a package's path or "null:3x224x224". `energy` is a meter, for the energy
    objective.
    """

    engine: EngineSettings
    limits: Limits
    observer: Observer
    tell: Callable[[str], None]
    energy: Joules | None = None
    cores: Cores = field(default_factory=Cores)

    def __post_init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="perwatt-serve-"))
        self._number = 0

    def close(self) -> None:
        """Remove the private copies."""
        shutil.rmtree(self.folder, ignore_errors=True)

    async def open(self, source: str) -> Deployed:
        """Return a source ready to answer. Raises whatever reading, compiling or replaying it raises."""
        if source.startswith(NULL):
            return await self._open_null(source)
        # A copy: the file may be replaced while this version serves, and its process must find it when it starts again.
        self._number += 1
        copy = self.folder / f"{self._number}.perwatt"
        try:
            await to_thread(_copy, Path(source), copy)
            package = await to_thread(packages.read, copy)
            sizes = batch_sizes(self.engine.max_batch)
            worker = package_source(
                copy,
                sizes=sizes,
                precision=self.engine.precision,
                threads=self.engine.threads,
                tune_limit_s=self.engine.tune_limit_s,
                unproven=self.engine.unproven,
            )
            name, version = package.name, package.version
            preprocessing, labels = package.preprocessing, package.labels
            about = {"licence": package.licence or "", "source": package.source or ""}
            del package  # the weights are the model process's matter
            service = await self._start(worker, name)
        except BaseException:
            copy.unlink(missing_ok=True)
            raise
        subject = Subject(service.inputs[0], service.outputs, takes_photos=True)
        return Deployed(
            name, version, service, subject, preprocessing, labels, "perwatt_onnx", about,
            dispose=lambda: copy.unlink(missing_ok=True),
        )  # fmt: skip

    async def _open_null(self, source: str) -> Deployed:
        text = source.removeprefix(NULL)
        shape, image_s = null_shape(text)
        name = null_name(text)
        worker = null_source(shape, sizes=batch_sizes(self.engine.max_batch), image_s=image_s)
        service = await self._start(worker, name)
        subject = Subject(service.inputs[0], service.outputs, takes_photos=False)
        return Deployed(name, "1", service, subject, None, None, "perwatt_null", {})

    async def _start(self, worker: Source, name: str) -> Dispatch:
        def observe(report: BatchReport) -> None:
            self.observer(name, report)

        return await Dispatch.open(
            worker,
            name=name,
            limits=self.limits,
            cores=self.cores,
            observer=observe,
            joules=None if self.energy is None else self.energy.read,
            progress=lambda words: self.tell(f"{name}: {words}"),
        )


def sources_of(paths: tuple[Path, ...], nulls: tuple[str, ...]) -> Mapping[str, str]:
    """Return name to source of everything that is to be served; a folder stands for the packages in it.

    Raises InputError for two of one name and a folder without packages, and what reading a package raises.
    """
    files: list[Path] = []
    for path in paths:
        found_here = sorted(path.glob("*.perwatt")) if path.is_dir() else [path]
        if not found_here:
            raise InputError(
                f"{path}: expected packages in this folder (*.perwatt), got none; make one with perwatt package"
            )
        files += found_here
    named = [(packages.read(path).name, str(path.resolve())) for path in files]
    named += [(null_name(shape), NULL + shape) for shape in nulls]
    found: dict[str, str] = {}
    for name, source in named:
        if name in found:
            raise InputError(f"expected packages of different names, got {name!r} twice: {found[name]} and {source}")
        found[name] = source
    return found


def null_name(text: str) -> str:
    """Return the name of a null network, such as null-3x224x224."""
    return f"null-{'x'.join(map(str, null_shape(text)[0]))}"


def null_shape(text: str) -> tuple[tuple[int, ...], float]:
    """Return the shape of one image and the seconds that it takes, from 3x224x224 or 3x224x224@5 (milliseconds).

    Raises InputError for anything else.
    """
    sides, _, pace = text.lower().partition("@")
    parts = sides.split("x")
    right = 1 <= len(parts) <= 4 and all(part.isdecimal() and 0 < int(part) < 1 << 16 for part in parts)
    if not right or (pace and not pace.replace(".", "", 1).isdecimal()) or text.endswith("@"):
        raise InputError(f"null: expected the shape of one image such as 3x224x224 or 3x224x224@5 (ms), got {text!r}")
    return tuple(int(part) for part in parts), float(pace or 0) / 1000


def _copy(source: Path, copy: Path) -> None:
    try:
        shutil.copyfile(source, copy)
    except FileNotFoundError as error:
        raise InputError(f"{source}: expected a package, there is no such file; check the path") from error
    except OSError as error:
        raise NetworkError(f"{source}: expected a package that can be read: {error}") from error
