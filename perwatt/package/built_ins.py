"""Packages of the built-in networks, whose preprocessing and labels are known; one of them is the server's demo."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from perwatt import __version__, settings
from perwatt.errors import InputError, NetworkError, PackageError
from perwatt.networks import NETWORKS, build, labels
from perwatt.package.package import Package
from perwatt.package.package_file import read, write
from perwatt.package.packing import Tell, pack
from perwatt.package.preprocessing import Preprocessing

# The first whose weights are installed: one that was trained, so that its labels mean something, and a small one.
DEMO = ("efficientnet-lite0", "squeezenet1.1")
DRAWN_SIZES = ((320, 240), (240, 320), (300, 300), (400, 180))


def preprocessing_of(name: str) -> Preprocessing:
    """Return how a built-in network's input is made. Raises InputError when there is no such network."""
    network = NETWORKS.get(name)
    if network is None:
        raise InputError(f"network: expected one of {', '.join(NETWORKS)}, got {name!r}; choose one of them")
    return Preprocessing(
        size=network.input_size,
        resize_to=network.resize_to,
        interpolation=network.interpolation,
        channel_order=network.channel_order,
        mean=network.mean,
        scale=network.scale,
    )


def built_in(
    name: str,
    photos: Sequence[bytes] = (),
    *,
    package_name: str | None = None,
    version: str = "1",
    tell: Tell | None = None,
) -> Package:
    """Return the package of a built-in network; without photographs its golden examples are drawn ones.

    Labels are inside when the weights were trained. Raises InputError when there is no such network, NetworkError when
    its weights or the names of its classes are not installed.
    """
    how = preprocessing_of(name)
    network = NETWORKS[name]
    return pack(
        build(name),
        package_name or name,
        how,
        version=version,
        labels=labels() if network.labels else None,
        licence=network.weights_licence,
        origin=f"built-in {name}: {network.paper}",
        photos=photos or [drawn_photograph(*size, seed) for seed, size in enumerate(DRAWN_SIZES)],
        tell=tell,
    )


def demo(folder: Path | None = None, tell: Tell | None = None) -> Path:
    """Return the path of a small package to try a server with; it is made on first use and kept.

    `folder` is perwatt's cache folder by default. Raises OutputError when it cannot be written.
    """
    folder = folder or settings.cache_folder() / "demo"
    for name in DEMO:
        path = folder / f"{name}-{__version__}.perwatt"
        if path.is_file():
            try:
                read(path)
                return path
            except PackageError:
                path.unlink(missing_ok=True)  # made by another version while it was written, or damaged since
        try:
            package = built_in(name, tell=tell)
        except NetworkError:
            if name == DEMO[-1]:
                raise
            continue
        write(package, path)
        return path
    raise AssertionError("the last network of DEMO needs nothing that could be missing")


def drawn_photograph(width: int, height: int, seed: int) -> bytes:
    """Return a JPEG with the spectrum of a photograph: amplitudes fall as 1 / frequency (Field, JOSA A 4(12), 1987).

    It serves where no photographs are at hand: decoder, resizing and network see what real ones would show them.
    """
    random = np.random.default_rng(seed)
    down = np.fft.fftfreq(height)[:, np.newaxis]
    across = np.fft.rfftfreq(width)[np.newaxis, :]
    amplitude = 1 / np.maximum(np.hypot(down, across), 1 / max(width, height))
    amplitude[0, 0] = 0
    planes = []
    for _ in range(3):
        phase = random.uniform(0, 2 * np.pi, amplitude.shape)
        plane = np.fft.irfft2(amplitude * np.exp(1j * phase), s=(height, width))
        planes.append(plane / plane.std())
    # Channels of photographs are much alike: brightness is shared, colour is a third of it.
    brightness, first, second = planes
    colours = np.stack([brightness + first / 3, brightness - (first + second) / 6, brightness + second / 3], axis=-1)
    pixels = np.clip(118 + 48 * colours, 0, 255).astype(np.uint8)
    stored = BytesIO()
    Image.fromarray(pixels).save(stored, "JPEG", quality=90)
    return stored.getvalue()
