"""What `perwatt package` does: from what a person gives to a package that has been seen to answer on this machine."""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from perwatt.errors import InputError, NetworkError, PackageError
from perwatt.graph import Graph, read
from perwatt.networks import NETWORKS, build
from perwatt.networks import labels as imagenet_labels
from perwatt.package.built_ins import DRAWN_SIZES, drawn_photograph, preprocessing_of
from perwatt.package.golden import Replay, replay, require
from perwatt.package.opened import check_fit
from perwatt.package.package import MOST_IMAGE_BYTES, MOST_LABELS, NAME, Package
from perwatt.package.package_file import write
from perwatt.package.packing import Tell, pack
from perwatt.package.photograph import image_format
from perwatt.package.preprocessing import Preprocessing
from perwatt.run import compile

NO_GOLDEN = "none"
MOST_LABEL_BYTES = 64 << 20


@dataclass(frozen=True)
class Wish:
    """What was asked for on the command line; an empty text or None: not given."""

    source: str
    name: str = ""
    version: str = "1"
    labels: Path | None = None
    mean: str = ""
    scale: str = ""
    deviation: str = ""
    pixel_range: float | None = None
    like: str = ""
    resize: str = ""
    resize_to: int | None = None
    interpolation: str = ""
    channels: str = ""
    golden: str = ""
    golden_count: int = 8
    licence: str = ""
    origin: str = ""
    threads: int | None = None


@dataclass(frozen=True)
class Made:
    """A package that was written, where, and how it answered here; no replay when it has no golden examples."""

    path: Path
    package: Package
    replay: Replay | None


def make(wish: Wish, out: Path | None, default_photos: Callable[[], Sequence[Path]], tell: Tell) -> Made:
    """Make the package, replay its golden examples on this machine's engine, and write it.

    `default_photos` returns the photographs to use when the wish names none; it raises InputError when there are none,
    and then drawn ones serve. Raises InputError, NetworkError, PackageError, OutputError, before anything is written.
    """
    network = NETWORKS.get(wish.source)
    source = _source(wish)
    how = preprocessing(wish, source)
    # A server answers under the name: what the file is called is what its user will ask for.
    name = wish.name or (_name_of(out) if out else wish.source if network else _name_of(Path(wish.source)))
    labels = read_labels(wish.labels) if wish.labels else imagenet_labels() if network and network.labels else None
    package = pack(
        source,
        name,
        how,
        version=wish.version,
        labels=labels,
        licence=wish.licence or (network.weights_licence if network else None),
        origin=wish.origin or (f"built-in {wish.source}: {network.paper}" if network else Path(wish.source).name),
        photos=_photos(wish, default_photos, tell),
        tell=tell,
    )
    found = proven(package, wish.threads, tell)
    path = out or Path(f"{name}.perwatt")
    write(package, path)
    return Made(path, package, found)


def proven(package: Package, threads: int | None, tell: Tell) -> Replay | None:
    """Replay a package's golden examples on this machine's engine; None when it has none.

    Raises GoldenMismatch, InvalidPackage when network, preprocessing or labels do not fit, NetworkError.
    """
    tell("replaying the golden examples on perwatt's engine")
    model = compile(package.model, 1, threads=threads, tune="estimate")
    check_fit(package, model, 1)
    values = math.prod(next(iter(model.outputs.values())).shape)
    if package.labels is not None and len(package.labels) != values:
        raise PackageError(
            f"labels: expected one for each of the {values} values of the output, got {len(package.labels)}; give the "
            "network's own list"
        )
    if package.golden is None:
        return None
    found = replay(package, model)
    require(package, found)
    return found


def preprocessing(wish: Wish, source: Path | Graph) -> Preprocessing:
    """Return the preprocessing that was asked for. Nothing is guessed: a wrong mean is an error nobody sees.

    Raises InputError when the mean is missing, or numbers and network do not fit.
    """
    graph = source if isinstance(source, Graph) else read(source, 1)
    channels, size = _input_of(graph, wish.source)
    like = wish.like or (wish.source if wish.source in NETWORKS else "")
    if like:
        how = preprocessing_of(like)
        if how.channels != channels:
            raise InputError(f"like {like}: expected a network of {channels} channels, got one of {how.channels}")
        grown = how.resize_to * min(size) / min(how.size)
        how = replace(how, size=size, resize_to=round(grown))
    elif not wish.mean:
        raise InputError(
            f"{wish.source}: expected --mean (with --std or --scale), or --like NETWORK, got neither: an ONNX file "
            "does not say how its input is made, and a guess would give wrong answers quietly; ask the network's maker"
        )
    else:
        how = Preprocessing(
            size=size,
            resize_to=round(min(size) * 256 / 224),
            interpolation="bilinear",
            channel_order="grey" if channels == 1 else "rgb",
            mean=(0.0,) * channels,
            scale=(1.0,) * channels,
        )
    return _changed(how, wish, channels)


def _changed(how: Preprocessing, wish: Wish, channels: int) -> Preprocessing:
    if wish.scale and wish.deviation:
        raise InputError("expected --std or --scale, got both; one is 1 over the other")
    changes: dict[str, Any] = {}
    mean = _numbers("mean", wish.mean, channels)
    scale = _numbers("scale", wish.scale, channels)
    deviation = _numbers("std", wish.deviation, channels)
    if deviation is not None and min(map(abs, deviation)) == 0:
        raise InputError(f"std: expected numbers that are not 0, got {wish.deviation}; the input is divided by them")
    whole = 255.0
    if wish.pixel_range is not None:
        whole = wish.pixel_range
        if whole not in (1.0, 255.0):
            raise InputError(f"range: expected 1 or 255, got {whole:g}; the largest value of a pixel before the mean")
    elif mean is not None and 0 < max(map(abs, mean)) <= 1:
        raise InputError(
            f"mean: expected numbers for pixels from 0 to 255, got {wish.mean}, which looks like pixels from 0 to 1; "
            "say which with --range 1 or --range 255"
        )
    # (pixel / 255 - mean) / std is (pixel - 255 mean) / (255 std).
    grow = 255.0 / whole
    if mean is not None:
        changes["mean"] = tuple(grow * each for each in mean)
    if scale is not None:
        changes["scale"] = tuple(each / grow for each in scale)
    elif deviation is not None:
        changes["scale"] = tuple(1 / (grow * each) for each in deviation)
    elif mean is not None and not wish.like and wish.source not in NETWORKS:
        changes["scale"] = (1 / grow,) * channels
    for field, given in (
        ("resize", wish.resize),
        ("resize_to", wish.resize_to),
        ("interpolation", wish.interpolation),
        ("channel_order", wish.channels),
    ):
        if given:
            changes[field] = given
    return replace(how, **changes)


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the labels of a file: one a line, or JSON: a list, or an object from class number to label.

    Raises InputError when it cannot be read or is neither.
    """
    try:
        content = path.read_bytes()
        if len(content) > MOST_LABEL_BYTES:
            raise InputError(f"{path}: expected labels, got {len(content):,} bytes; is it another file?")
        text = content.decode("utf-8-sig")
        if path.suffix.lower() != ".json":
            lines = tuple(line.strip() for line in text.splitlines())
            while lines and not lines[-1]:
                lines = lines[:-1]
            if "" in lines:
                raise InputError(f"{path}: line {lines.index('') + 1}: expected a label, got an empty line; fill it")
            return lines
        listed = json.loads(text)
    except OSError as error:
        raise InputError(f"{path}: expected a file of labels, got: {error.strerror}; check the path") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected labels as UTF-8 text, one a line, or JSON, got: {error}") from error
    if isinstance(listed, dict) and len(listed) <= MOST_LABELS and set(listed) == {str(n) for n in range(len(listed))}:
        listed = [listed[str(number)] for number in range(len(listed))]
    if not isinstance(listed, list) or not all(isinstance(label, str) for label in listed):
        raise InputError(f"{path}: expected a JSON list of labels, or an object from 0, 1, 2, ... to them, got other")
    return tuple(listed)


def _source(wish: Wish) -> Path | Graph:
    if wish.source in NETWORKS:
        return build(wish.source)
    if Path(wish.source).is_file():
        return Path(wish.source)
    near = get_close_matches(wish.source, NETWORKS, n=1)
    raise InputError(
        f"network: expected an ONNX file or one of {', '.join(NETWORKS)}, got {wish.source!r}; "
        + (f"did you mean {near[0]}?" if near else "check the path")
    )


def _name_of(path: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")[:64]
    if not NAME.fullmatch(name):
        raise InputError(f"name: expected one for {path.name!r}; give it with --name")
    return name


def _input_of(graph: Graph, name: str) -> tuple[int, tuple[int, int]]:
    values = [graph.values[each] for each in graph.inputs]
    if len(values) != 1 or len(values[0].shape) != 4 or values[0].dtype != np.float32:
        got = ", ".join(f"{value.dtype.name} {list(value.shape)}" for value in values)
        raise NetworkError(f"{name}: expected one float32 input [batch, channels, height, width], got {got}")
    shape = values[0].shape
    if shape[1] not in (1, 3):
        hint = "; its channels are last: export it in ONNX's own layout, channels first" if shape[3] in (1, 3) else ""
        raise NetworkError(f"{name}: expected 1 or 3 channels, got an input {list(shape)}{hint}")
    return shape[1], (shape[2], shape[3])


def _numbers(what: str, given: str, channels: int) -> tuple[float, ...] | None:
    if not given:
        return None
    try:
        numbers = tuple(float(part) for part in given.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) == 1:
        numbers *= channels
    if len(numbers) != channels or not all(map(math.isfinite, numbers)):
        raise InputError(
            f"{what}: expected 1 or {channels} numbers with commas, got {given!r}; such as 123.7,116.3,103.5"
        )
    return numbers


def _photos(wish: Wish, default_photos: Callable[[], Sequence[Path]], tell: Tell) -> tuple[bytes, ...]:
    if wish.golden == NO_GOLDEN:
        return ()
    if not wish.golden:
        try:
            paths = list(default_photos())
        except InputError:  # scikit-image, which carries some, is not installed
            tell("golden examples: drawn pictures, for here are no photographs; give your own with --golden DIR")
            return tuple(drawn_photograph(*size, seed) for seed, size in enumerate(DRAWN_SIZES))
    else:
        folder = Path(wish.golden)
        if not folder.exists():
            raise InputError(f"golden: expected a folder of photographs, a photograph or none, got {wish.golden!r}")
        paths = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else [folder]
    usable = []
    for path in paths:
        try:
            with path.open("rb") as file:
                content = file.read(MOST_IMAGE_BYTES + 1)
        except OSError as error:
            raise InputError(f"{path}: expected a photograph that can be read, got: {error.strerror}") from error
        if image_format(content) != "bin" and len(content) <= MOST_IMAGE_BYTES:
            usable.append(content)
    if not usable:
        raise InputError(
            f"golden {wish.golden}: expected photographs of at most {MOST_IMAGE_BYTES >> 20} MiB, got none"
        )
    # Evenly from all of them: a folder sorted by class gives different classes.
    count = min(wish.golden_count, len(usable))
    return tuple(usable[place * len(usable) // count] for place in range(count))
