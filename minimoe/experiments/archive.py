"""Stored results of runs that are too long to repeat: one small file, read as label -> name -> array.

The files are committed under notebooks/results, so that the lessons run without training; each is made by a command.
"""

from pathlib import Path

import numpy as np

from minimoe import files

FOLDER = Path(__file__).parents[2] / "notebooks/results"
"""The folder from which results are read, wherever a lesson runs."""

MODEL = "moe"
"""Its folder with the trained model that the lessons and the explorer use."""

WRITTEN = Path("notebooks/results")
"""The folder to which commands write them, relative to the current folder, like figures."""

COMMANDS = {"balance": "studies", "capacity": "studies", "granularity": "studies", "compare": "compare",
            "routers": "routers", "sparsity": "sparsity"}
"""Name of a result -> the command that makes it."""


def write(path, results):
    """Write label -> name -> array; floating point numbers as float32, which is more precise than the seeds agree."""
    arrays = {f"{label}/{name}": np.asarray(array, np.float32 if np.asarray(array).dtype == float else None)
              for label, of_label in results.items() for name, array in of_label.items()}
    with files.written(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def read(name, folder=FOLDER):
    """Label -> name -> array of a result.  Raises ValueError if there is no such result, or its file is not there."""
    if name not in COMMANDS:
        raise ValueError(f"result = {name!r}: must be one of {', '.join(COMMANDS)}")
    path, found = Path(folder) / f"{name}.npz", {}
    if not path.exists():
        raise ValueError(f"there is no {path}: `python -m minimoe {COMMANDS[name]}` makes it, if it is run in "
                         "the top folder of the repository")
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays:
            label, field = key.rsplit("/", 1)
            found.setdefault(label, {})[field] = arrays[key]
    return found
