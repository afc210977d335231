"""The layout of runs on disk: one folder per run with its checkpoint, and one folder per seed if there are several.

A run is trained if it does not exist, resumed if it is not finished, and loaded if it is.
"""

import os
from dataclasses import replace
from pathlib import Path

from minimoe import files, terminal
from minimoe.training import checkpoint, loop, progress

CHECKPOINT, SEED = "checkpoint.npz", "seed"


def checkpoint_path(folder):
    """The checkpoint of the run in a folder."""
    return files.as_path(folder) / CHECKPOINT


def seed_folder(folder, seed):
    """The folder of one of several runs that differ in their seed."""
    return Path(folder) / f"{SEED}{seed}"


def count_seeds(folder):
    """How many seeds have been started in a folder."""
    return sum(checkpoint_path(path).exists() for path in Path(folder).glob(f"{SEED}*"))


def find(root="runs"):
    """The folders below `root` that hold a run, in alphabetical order."""
    root = files.as_path(root)
    return sorted(path.parent for path in root.rglob(CHECKPOINT)) if os.path.isdir(root) else []


def finish(folder, label, model_config, train_config, corpus, fresh=False, say=None, threads=1, start=None):
    """The finished TrainState of a run, which is trained as far as necessary.

    Args:
        folder: where the run is, or will be.
        label: what to call it while it trains.
        model_config, train_config: the configuration that the run must have.
        corpus: the Corpus that it trains on.
        fresh: whether to train again, even if the run exists.
        say: prints a line, and turns on the progress bar; None is silent.
        threads: see `loop.train`.
        start: function without arguments that makes the TrainState before the first step; None is `loop.new_state`.

    Raises ValueError if the checkpoint, or the state that `start` makes, has a different configuration or corpus, and
    KeyboardInterrupt after Ctrl-C.
    """
    path = checkpoint_path(folder)
    if path.exists() and not fresh:
        state = load(folder)
        check_kind(folder, state, model_config, train_config, corpus)
        if say is not None:
            how = "finished earlier" if state.finished else f"resumes at step {state.step}"
            say(terminal.fill(f"{label}: {how} ({path})", hanging="  "))
    elif start is None:
        state = loop.new_state(model_config, train_config, corpus)
    else:
        state = start()
        check_kind(folder, state, model_config, train_config, corpus)
    if not state.finished:
        _train(state, path, label, corpus, fresh, say is not None, threads)
    return state


def _train(state, path, label, corpus, fresh, with_bar, threads):
    checkpoint.check_folder(path)
    try:
        if with_bar:
            with progress.bar(state, label) as on_step:
                loop.train(state, corpus, path, on_step, threads)
        else:
            loop.train(state, corpus, path, threads=threads)
    except loop.Interrupted as error:
        again = "the same command without --fresh" if fresh else "the same command"
        raise KeyboardInterrupt(f"{label}: {error}; {again} resumes from there") from error


def load(folder):
    """The TrainState of the run in a folder.  Raises CheckpointError, which says how to train it again."""
    try:
        return checkpoint.load(checkpoint_path(folder))
    except checkpoint.CheckpointError as error:
        raise checkpoint.CheckpointError(f"{error}; delete {folder} and repeat the command to train it again"
                                         ) from error


def load_finished(folder, model_config, train_config, corpus, command):
    """The TrainState of a run that exists and is finished.  command: what trains it, for a message.

    Raises ValueError if the checkpoint has a different configuration or corpus, or is not finished.
    """
    state = load(folder)
    check_kind(folder, state, model_config, train_config, corpus)
    if not state.finished:
        raise ValueError(f"{checkpoint_path(folder)} is at step {state.step} of {train_config.n_steps}: `{command}` "
                         "resumes it")
    return state


def check_kind(folder, state, model_config, train_config, corpus):
    """Raise ValueError unless the state is a run of this configuration on this corpus."""
    found, wanted = (_with_loss_weights(config) for config in (state.model_config, model_config))
    if (found, state.train_config, state.data_digest) != (wanted, train_config, corpus.digest):
        raise ValueError(f"{checkpoint_path(folder)} is a different run; train again with --fresh")


def _with_loss_weights(config):
    """The configuration with the weights of its losses filled in, so that given and default ones compare equal."""
    return replace(config, **{f"{name}_coef": coef for name, coef in config.loss_coefs.items()})
