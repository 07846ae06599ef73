"""Labelled pictures made for tests: every one different, drawn from its class and number."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(label: int, number: int, width: int = 12, height: int = 10) -> np.ndarray:
    """Return uint8 [height, width, 3]: noise over a colour of the class."""
    drawn = np.random.default_rng((label, number)).integers(0, 60, (height, width, 3))
    return (drawn + 60 * (label % 3 == np.arange(3)) + 40).astype(np.uint8)


def encoded(label: int, number: int, form: str = "PNG", width: int = 12, height: int = 10) -> bytes:
    """Return the picture as the bytes of an image file."""
    buffer = BytesIO()
    Image.fromarray(pixels(label, number, width, height)).save(buffer, format=form)
    return buffer.getvalue()


def class_folders(root: Path, counts: dict[str, int], first: int = 0, form: str = "PNG") -> Path:
    """Write a folder per class with so many pictures and return the root."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(first, first + count):
            (root / name / f"{number:03d}.{form.lower()}").write_bytes(encoded(label, number, form))
    return root
