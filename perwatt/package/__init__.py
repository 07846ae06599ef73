"""The deployable file: network, preprocessing, labels, golden examples.

Only names live here, each loaded from its file on first use: who reads photographs need not load the engine.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perwatt.package.built_ins import built_in, demo
    from perwatt.package.golden import Replay, replay
    from perwatt.package.opened import open
    from perwatt.package.package import PRECISIONS, Golden, Package, Precision
    from perwatt.package.package_file import read, to_bytes, write
    from perwatt.package.packing import pack
    from perwatt.package.photograph import Header, Limits, decode, image_header
    from perwatt.package.preprocessing import Preprocessing, preprocess

__all__ = [
    "PRECISIONS",
    "Golden",
    "Header",
    "Limits",
    "Package",
    "Precision",
    "Preprocessing",
    "Replay",
    "built_in",
    "decode",
    "demo",
    "image_header",
    "open",
    "pack",
    "preprocess",
    "read",
    "replay",
    "to_bytes",
    "write",
]

_FILES = {
    "built_ins": ("built_in", "demo"),
    "opened": ("open",),
    "packing": ("pack",),
    "package": ("PRECISIONS", "Golden", "Package", "Precision"),
    "package_file": ("read", "to_bytes", "write"),
    "photograph": ("Header", "Limits", "decode", "image_header"),
    "preprocessing": ("Preprocessing", "preprocess"),
    "golden": ("Replay", "replay"),
}


def __getattr__(name: str) -> Any:
    for file, names in _FILES.items():
        if name in names:
            return getattr(import_module(f"perwatt.package.{file}"), name)
    raise AttributeError(f"module 'perwatt.package' has no attribute {name!r}; it has {', '.join(__all__)}")
