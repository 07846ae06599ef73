"""Labelled data sets: folders, text lists, IDX, CSV; what accuracy is measured on and training learns from."""

from perwatt.data.dataset import DataSet, Split, Stored, fingerprint, held_out
from perwatt.data.source import open_data

__all__ = ["DataSet", "Split", "Stored", "fingerprint", "held_out", "open_data"]
