"""perwatt: runs a trained network as fast, and on as little energy, as the machine allows, and proves it.

Only names live here. Each is loaded from its room on first use, so that `import perwatt` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from perwatt.graph import Graph, read
    from perwatt.run import Model

__version__ = "0.1.0"
__all__ = ["Graph", "Model", "__version__", "compile", "read"]

_ROOMS = {"Graph": "perwatt.graph", "read": "perwatt.graph", "Model": "perwatt.run"}


def compile(source: "str | Path | bytes | Graph", batch: int | None = None, **settings: Any) -> "Model":
    """Return a Model of a network on this machine: an ONNX file, a Graph, or the name of a built-in network.

    batch: images in a call; None keeps the network's own, 1 where it is free. `settings` are those of
    perwatt.run.compile: threads, workspace_bytes, tune, images, progress. Raises what that raises.
    """
    networks = import_module("perwatt.networks")
    if isinstance(source, str) and source in networks.NETWORKS:
        source = networks.build(source, 1 if batch is None else batch)
    model: Model = import_module("perwatt.run").compile(source, batch, **settings)
    return model


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'perwatt' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_ROOMS[name]), name)
