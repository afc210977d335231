"""A run in one file: everything that the next step depends on, so that a resumed run equals an uninterrupted one.

The file is an .npz (no pickle): the arrays, and a JSON header with everything else.  It is written under a temporary
name, forced to disk and renamed, so that the name always stands for a complete checkpoint: the old one or the new one.
A file may come from anywhere, so every field and array is checked, and sizes before memory is allocated (see `sealed`).
"""

import contextlib
import itertools
import json
import os
import struct
import tempfile
import zipfile
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from minimoe import files, model, parameters, require
from minimoe.config import ModelConfig, TrainConfig, fields
from minimoe.sparsity import masked
from minimoe.training import claims, record, sealed
from minimoe.training.tokenizer import Tokenizer

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FORMAT, VERSION = "minimoe checkpoint", 1
GROUPS, SPARSE = ("params", "mean", "square", "history"), ("mask", "trace")
"""Groups of arrays that every run has, and groups that sparse runs have for some parameters."""


class CheckpointError(files.ShortError):
    """A checkpoint that cannot be read or written, and why."""


@dataclass
class TrainState:
    """A training run between two steps.

    step: steps done.  moments: AdamW's (mean, square).  rng: draws the data and random drops.  history: name -> list,
    one entry per step ("ce", ...), evaluation ("eval_*") or record of the router ("router_*").  masks: name -> bool
    array, of the sparse parameters.  traces: statistics of the gradients that some ways to change the masks need.
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
    masks: dict = field(default_factory=dict)
    traces: dict = field(default_factory=dict)

    @property
    def finished(self):
        """Whether all steps are done."""
        return self.step >= self.train_config.n_steps


def save(path, state, compressed=False, lock=None):
    """Write the state to `path`, or leave what is there as it was.

    compressed: smaller and slower.   lock: from `only_trainer`; it must still belong to the folder.
    Raises CheckpointError if the folder or the disk does not allow it.
    """
    require.record("state", state, TrainState)
    path = files.as_path(path)
    before_rename = {} if lock is None else {"before_rename": lock.check}
    try:
        with files.written(path, "the checkpoint", **before_rename) as temporary, open(temporary, "xb+") as file:
            arrays = _arrays(state)
            sealed.write(file, {"header": _header(state, arrays)} | arrays, compressed)
    except files.NotWritten as error:
        kept = "; the previous checkpoint is intact" if os.path.exists(path) else ""
        raise CheckpointError(f"{error}{kept}") from error


def check_folder(path):
    """Raise CheckpointError, before any work is done, if a checkpoint cannot be written to `path`."""
    folder = files.as_path(path).parent
    try:
        files.check_name(path)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CheckpointError(f"cannot write the checkpoint {path}: {error.strerror or error}") from error


class Lock:
    """Exclusive use of a folder for training, as long as the lock is open.

    The lock is on the folder itself, not on its name: if the folder is removed and made again, or replaced, another
    process can lock the new one.
    """

    def __init__(self, folder):
        self._folder, self._handle = folder, os.open(folder, os.O_RDONLY) if fcntl is not None else None

    def take(self):
        """Raise CheckpointError if another process has the lock."""
        if self._handle is None:  # Windows has no such locks
            return
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(f"another process is training in {self._folder}") from error
        self.check()

    def check(self):
        """Raise CheckpointError unless the folder's name still refers to the locked folder."""
        if self._handle is None:
            return
        try:
            same = os.path.samestat(os.fstat(self._handle), os.stat(self._folder))
        except OSError:
            same = False
        if not same:
            raise CheckpointError(f"the folder {self._folder} was removed or replaced while this process trained in "
                                  "it; nothing more is saved there")

    def close(self):
        """Release the lock; the system also does so when the process ends, however it ends."""
        if self._handle is not None:
            os.close(self._handle)


@contextlib.contextmanager
def only_trainer(path):
    """A Lock on the folder of a run, so that two processes do not overwrite each other's checkpoints.

    Removes temporary files of the checkpoint that killed processes left.
    Raises CheckpointError if another process holds it.
    """
    check_folder(path)
    with contextlib.closing(Lock(Path(path).parent)) as lock:
        lock.take()
        files.remove_temporary(path)
        yield lock


def load(path):
    """The TrainState in `path`.

    Raises CheckpointError if the path is not a file; if the file is missing, truncated, damaged, or from a different
    program or version; and if fields or arrays do not fit the configuration or are not finite.
    """
    path = files.as_path(path)
    try:
        files.check_regular(path)
        with open(path, "rb") as file:
            return _load(path, file)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}") from error
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path} cannot be read: {error.strerror or error}") from error


def _load(path, file):
    """Cheap checks come first, and the largest arrays are read last."""
    with _refusals(f"{path} is not a complete checkpoint: truncated, damaged or a different file ({{}})", Exception):
        archive = sealed.Archive(file)
        header = json.loads(archive.array("header").tobytes(), object_pairs_hook=claims.once)
        _check_version(path, header)
        differ = set(header["arrays"]) ^ {*archive.names} - {"header"}
        if differ:
            raise ValueError(f"missing or unknown arrays: {fields.listed(differ)}")
    misfit = f"the checkpoint {path} does not fit its own configuration: {{}}"
    with _refusals(misfit, (ArithmeticError, KeyError, TypeError, ValueError)):
        state = _state(header)
        shapes = claims.shapes(state.model_config, archive.names, GROUPS, SPARSE)
        for group, name in itertools.product(GROUPS[:3] + SPARSE, shapes):
            if f"{group}/{name}" in archive.names:
                archive.check_size(f"{group}/{name}", shapes[name])
    with _refusals(f"the checkpoint {path} is damaged: {{}}", Exception):
        arrays = {name: archive.array(name) for name in archive.names if name != "header"}
    with _refusals(misfit, (KeyError, TypeError, ValueError)):
        _fill(state, arrays)
    with _refusals(f"the checkpoint {path} is damaged: {{}}", Exception):
        if archive.sealed or header.get("sealed"):  # checkpoints of earlier versions have no seal
            archive.check_seal()
    return state


@contextlib.contextmanager
def _refusals(message, kinds):
    """Turn errors of some kinds into a CheckpointError, with the error in place of {} in the message."""
    try:
        yield
    except (CheckpointError, OSError):
        raise
    except kinds as error:
        raise CheckpointError(message.format(_reason(error))) from error


def _reason(error):
    """What is wrong with a file, in words; those of the standard library are about the insides of archives."""
    if isinstance(error, zipfile.BadZipFile):
        return ("an array does not match its checksum" if "CRC" in str(error)
                else "its end, where its contents are listed, is missing or damaged")
    if isinstance(error, (zlib.error, EOFError, struct.error)):
        return "an array in it cannot be decompressed"
    return str(error)[:500] or type(error).__name__


def _state(header):
    """The TrainState of a header, without its arrays."""
    said = claims.Header(header)
    return TrainState(said.model_config, said.train_config, Tokenizer(said.characters), said.domains, said.data_digest,
                      {}, ({}, {}), said.rng, {}, said.step)


def _fill(state, arrays):
    """Put the arrays, name -> array, in their places in the state, in the order of the configuration."""
    groups = {group: parameters.scope(arrays, f"{group}/") for group in GROUPS + SPARSE}
    for group, place in zip(GROUPS, (state.params, *state.moments), strict=False):
        model.check_params(groups[group], state.model_config)
        for name in model.weights(state.model_config):
            place[name] = claims.real(f"{group}/{name}", groups[group][name], group == "square")
    state.masks, state.traces = groups["mask"], groups["trace"]
    masked.check(state)
    record.check(groups["history"], state.model_config, state.train_config, len(state.domains), state.step)
    state.history.update({name: list(values) for name, values in groups["history"].items()})


def _header(state, arrays):
    header = {
        "format": FORMAT, "version": VERSION, "step": state.step, "domains": state.domains,
        "model_config": asdict(state.model_config), "train_config": asdict(state.train_config),
        "characters": state.tokenizer.characters, "data_digest": state.data_digest,
        "rng": state.rng.bit_generator.state, "arrays": sorted(arrays), "sealed": True,
    }
    return np.frombuffer(json.dumps(header).encode(), np.uint8)


def _arrays(state):
    history = {name: np.array(values) for name, values in state.history.items()}
    groups = zip(GROUPS + SPARSE, (state.params, *state.moments, history, state.masks, state.traces), strict=True)
    return {f"{group}/{name}": array for group, arrays in groups for name, array in arrays.items()}


def _check_version(path, header):
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a {FORMAT}")
    if header.get("version") != VERSION:
        raise CheckpointError(f"the checkpoint {path} has version {fields.shown(header.get('version'))}; this program "
                              f"reads version {VERSION}")
