"""The inputs of a measurement: many different crops of real photographs, made before any clock starts.

A reused or constant input flatters caches and, in watts, by up to 40 % and more (arXiv:2409.18324, arXiv:2212.08805).
"""

import hashlib
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from perwatt.errors import InputError
from perwatt.lab.record import Photograph
from perwatt.package.preprocessing import Crop, Photo, Preprocessing, decode, preprocess

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".avif"})
# The colour photographs in scikit-image's wheel; its other images are drawings, textures or need the network.
DEFAULT_NAMES = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)
ATTEMPTS = 50


def find_photographs(folder: Path | None) -> tuple[Path, ...]:
    """Return the photographs to measure with: those below `folder`, or those that scikit-image carries.

    Raises InputError when there is no such folder, no photograph in it, or no scikit-image.
    """
    if folder is None:
        return _carried()
    if folder.is_file():
        return (folder,)
    if not folder.is_dir():
        raise InputError(f"--photos {folder}: expected a folder with photographs, there is none; check the path")
    found = tuple(sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()))
    if not found:
        raise InputError(
            f"--photos {folder}: expected photographs ({', '.join(sorted(SUFFIXES))}), found none; "
            f"choose another folder"
        )
    return found


def _carried() -> tuple[Path, ...]:
    wheel = find_spec("skimage")
    if wheel is None or wheel.origin is None:
        raise InputError(
            "photographs: expected scikit-image, which carries the default ones, it is not installed; "
            "pip install 'perwatt[bench]', or give your own with --photos DIR"
        )
    folder = Path(wheel.origin).parent / "data"
    found = tuple(folder / name for name in DEFAULT_NAMES if (folder / name).is_file())
    if not found:
        raise InputError(
            f"photographs: expected {DEFAULT_NAMES[0]} and others in {folder}, found none; "
            f"give your own with --photos DIR"
        )
    return found


def input_batches(
    how: Preprocessing, photos: Sequence[Path], batch: int, count: int, seed: int
) -> tuple[np.ndarray, tuple[Photograph, ...]]:
    """Return `count` input batches of random crops and mirror images, no two alike, and the photographs used.

    The array is float32 [count, batch, channels, height, width], contiguous, and depends on nothing but the arguments
    and the photographs' bytes. Raises InputError when a photograph cannot be read or is too uniform to give
    different crops.
    """
    if batch < 1 or count < 1:
        raise InputError(f"inputs: expected a batch and a count of at least 1, got {batch} and {count}")
    slots = batch * count
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(photos))[: min(len(photos), slots)]
    # Slot i shows photograph i modulo their number, shuffled, so that every batch mixes subjects.
    owners = generator.permutation(np.arange(slots) % len(order))
    images = np.empty((slots, how.channels, *how.size), dtype=np.float32)
    seen: set[bytes] = set()
    used = []
    for owner, index in enumerate(order):  # one photograph decoded at a time: memory stays small for any folder
        content = _read(photos[index])
        image = decode(content, name=str(photos[index]))
        used.append(Photograph(name=photos[index].name, sha256=hashlib.sha256(content).hexdigest()))
        for slot in np.flatnonzero(owners == owner):
            images[slot] = _unseen_crop(image, how, generator, seen, photos[index])
    return images.reshape(count, batch, how.channels, *how.size), tuple(sorted(used, key=lambda photo: photo.name))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: expected a readable photograph, got: {error.strerror}; check the file") from error


def _unseen_crop(
    image: Photo, how: Preprocessing, generator: np.random.Generator, seen: set[bytes], path: Path
) -> np.ndarray:
    for _ in range(ATTEMPTS):
        pixels = preprocess(image, how, _random_crop(image.width, image.height, how.size, generator))
        if generator.random() < 0.5:
            pixels = np.ascontiguousarray(pixels[:, :, ::-1])
        mark = hashlib.blake2b(pixels.data, digest_size=16).digest()
        if mark not in seen:
            seen.add(mark)
            return pixels
    raise InputError(
        f"{path}: expected a photograph that gives different crops, {ATTEMPTS} crops in a row had been seen before; "
        f"give more or larger photographs"
    )


def _random_crop(width: int, height: int, size: tuple[int, int], generator: np.random.Generator) -> Crop:
    """Return a box of 20 to 100 % of the area, its aspect within 3/4 and 4/3 of the input's, as Inception trained."""
    area = width * height * generator.uniform(0.2, 1.0)
    aspect = size[1] / size[0] * math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
    crop_width = min(width, max(1, round(math.sqrt(area * aspect))))
    crop_height = min(height, max(1, round(math.sqrt(area / aspect))))
    left = int(generator.integers(0, width - crop_width + 1))
    top = int(generator.integers(0, height - crop_height + 1))
    return (left, top, left + crop_width, top + crop_height)
