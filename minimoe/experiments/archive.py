"""What is kept of runs that are too long to repeat: one small file, read as label -> name -> array.

The files are committed under notebooks/results, so that the lessons run at once; each has a command that makes it.
"""

from pathlib import Path

import numpy as np

from minimoe import files

FOLDER = Path(__file__).parents[2] / "notebooks/results"
"""Where results are read from, wherever a lesson runs."""

MODEL = "moe"
"""The folder in it of the trained model that lessons and the explorer look into."""

WRITTEN = Path("notebooks/results")
"""Where commands write them: in the folder that they are typed in, as figures are."""

COMMANDS = {"balance": "studies", "capacity": "studies", "granularity": "studies", "compare": "compare",
            "routers": "routers", "sparsity": "sparsity"}
"""Name of a result -> the command that makes it."""


def write(path, results):
    """Write label -> name -> array; numbers with a point as float32, which is more than their seeds agree on."""
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
        raise ValueError(f"there is no {path}: `python -m minimoe {COMMANDS[name]}` makes it, if it is typed in "
                         "the top folder of the repository")
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays:
            label, field = key.rsplit("/", 1)
            found.setdefault(label, {})[field] = arrays[key]
    return found
