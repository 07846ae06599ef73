"""compile(): the one function that joins the rooms."""

from perwatt.run.compile import compile
from perwatt.run.model import Model

__all__ = ["Model", "compile"]
