"""A run in one file: everything that the next step depends on, so that a resumed run is the run itself.

The file is an .npz (no pickle): the arrays, and a JSON header with everything else.  It is written under a temporary
name, forced to disk and renamed, so that at any moment the name holds a whole checkpoint: the old or the new.
"""

import contextlib
import io
import json
import os
import tempfile
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from minimoe import files, model
from minimoe.config import ModelConfig, TrainConfig, earlier
from minimoe.training.tokenizer import Tokenizer

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FORMAT, VERSION = "minimoe checkpoint", 1
GROUPS = ("params", "mean", "square", "history")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written, and why."""


@dataclass
class TrainState:
    """A training run between two steps.

    step: steps done.  moments: AdamW's (mean, square).  rng: draws the data and random drops.  history: name -> list,
    one entry a step ("ce", ...), an evaluation ("eval_*") or a record of the router ("router_*").
    """

    model_config: ModelConfig
    train_config: TrainConfig
    tokenizer: Tokenizer
    domains: tuple[str, ...]
    data_digest: str
    params: dict
    moments: tuple[dict, dict]
    rng: np.random.Generator
    history: dict[str, list]
    step: int = 0

    @property
    def finished(self):
        """Whether all steps are done."""
        return self.step >= self.train_config.n_steps


def save(path, state, compressed=False):
    """Write the state to `path`, or leave what is there as it was.

    compressed: smaller and slower.
    Raises CheckpointError if the folder or the disk does not allow it.
    """
    path = Path(path)
    try:
        with files.written(path, "the checkpoint") as temporary, open(temporary, "wb") as file:
            arrays = _arrays(state)
            (np.savez_compressed if compressed else np.savez)(file, header=_header(state, arrays), **arrays)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(path.parent)
    except files.NotWritten as error:
        kept = "; the checkpoint before it is whole" if path.exists() else ""
        raise CheckpointError(f"{error}{kept}") from error


def check_folder(path):
    """Raise CheckpointError, before any work is done, if no checkpoint could be written to `path`."""
    folder = Path(path).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CheckpointError(f"cannot write the checkpoint {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def only_trainer(path):
    """Hold the folder of a run while training in it, so that two processes do not write over each other.

    The system lets go of it when the process ends, however it ends; Windows has no such lock on a folder.
    Raises CheckpointError if another process holds it.
    """
    check_folder(path)
    if fcntl is None:
        yield
        return
    folder = os.open(Path(path).parent, os.O_RDONLY)
    try:
        _hold(folder, path)
        yield
    finally:
        os.close(folder)


def _hold(folder, path):
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CheckpointError(f"another process is training in {Path(path).parent}") from error


def load(path):
    """The TrainState in `path`.

    Raises CheckpointError for a file that is missing, truncated, damaged, of another program or version, or whose
    arrays do not fit its configuration.
    """
    path = Path(path)
    header, groups = _read(path)
    try:
        config = ModelConfig(**earlier.completed(header["model_config"]))
        state = TrainState(
            config, TrainConfig(**header["train_config"]), Tokenizer(header["characters"]), tuple(header["domains"]),
            header["data_digest"], groups["params"], (groups["mean"], groups["square"]), np.random.default_rng(),
            {name: list(values) for name, values in groups["history"].items()}, header["step"])
        state.rng.bit_generator.state = header["rng"]
        if not isinstance(state.step, int) or not 0 <= state.step <= state.train_config.n_steps:
            raise ValueError(f"step = {state.step!r} of n_steps = {state.train_config.n_steps}")
        if config.vocab_size != len(state.tokenizer):
            raise ValueError(f"vocab_size = {config.vocab_size}, but it knows {len(state.tokenizer)} characters")
        for arrays in (state.params, *state.moments):
            model.check_params(arrays, config)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint {path} does not fit its own configuration: {error}") from error
    return state


def _header(state, arrays):
    header = {
        "format": FORMAT, "version": VERSION, "step": state.step, "domains": state.domains,
        "model_config": asdict(state.model_config), "train_config": asdict(state.train_config),
        "characters": state.tokenizer.characters, "data_digest": state.data_digest,
        "rng": state.rng.bit_generator.state, "arrays": sorted(arrays),
    }
    return np.frombuffer(json.dumps(header).encode(), np.uint8)


def _arrays(state):
    history = {name: np.array(values) for name, values in state.history.items()}
    groups = zip(GROUPS, (state.params, *state.moments, history), strict=True)
    return {f"{group}/{name}": array for group, arrays in groups for name, array in arrays.items()}


def _read(path):
    """The header, and the arrays by group."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}") from error
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path} cannot be read: {error.strerror or error}") from error
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"the checkpoint {path} is damaged: {damaged} does not match its checksum")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            header = json.loads(arrays["header"].tobytes())
            _check_version(path, header)
            differ = set(header["arrays"]) ^ (set(arrays) - {"header"})
            if differ:
                raise ValueError(f"missing or unknown arrays: {', '.join(sorted(differ))}")
            groups = {group: {name.removeprefix(f"{group}/"): arrays[name] for name in arrays
                              if name.startswith(f"{group}/")} for group in GROUPS}
    except CheckpointError:
        raise
    except Exception as error:  # a damaged archive can fail in any part of what reads it
        raise CheckpointError(f"{path} is not a whole checkpoint, but truncated, damaged or another file ({error})"
                              ) from error
    return header, groups


def _check_version(path, header):
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a {FORMAT}")
    if header.get("version") != VERSION:
        raise CheckpointError(f"the checkpoint {path} has version {header.get('version')!r}; this program reads "
                              f"version {VERSION}")


def _sync_folder(folder):
    """Make the rename itself last through a power cut, where the system allows a folder to be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
