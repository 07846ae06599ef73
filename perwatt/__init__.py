"""perwatt: runs a trained network as fast, and on as little energy, as the machine allows, and proves it.

Only names live here. Each is loaded from its room on first use, so that `import perwatt` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perwatt.graph import Graph, read

__version__ = "0.1.0"
__all__ = ["Graph", "__version__", "read"]

_ROOMS = {"Graph": "perwatt.graph", "read": "perwatt.graph"}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'perwatt' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_ROOMS[name]), name)
