"""A run in a folder: trained if it is not there, gone on with if it is not finished, taken as it is if it is."""

from dataclasses import replace

from minimoe.training import checkpoint, loop, progress


def finish(path, label, model_config, train_config, text, fresh, say, threads=1):
    """The finished TrainState of a run, trained as far as it is not yet.

    path: of its checkpoint.  label: what to call it while it trains.  fresh: train again what is there.  say: prints.
    threads: see `loop.train`.
    Raises ValueError if the checkpoint is of another configuration or text, KeyboardInterrupt after Ctrl-C.
    """
    if path.exists() and not fresh:
        state = _load(path)
        check_kind(path, state, model_config, train_config, text)
        say(f"{label}: {'finished earlier' if state.finished else f'goes on from step {state.step}'} ({path})")
    else:
        state = loop.new_state(model_config, train_config, text)
    if not state.finished:
        checkpoint.check_folder(path)
        try:
            with progress.bar(state, label) as on_step:
                loop.train(state, text, path, on_step, threads)
        except loop.Interrupted as error:
            again = "the same command without --fresh" if fresh else "the same command"
            raise KeyboardInterrupt(f"{label}: {error}; {again} goes on from there") from error
    return state


def _load(path):
    try:
        return checkpoint.load(path)
    except checkpoint.CheckpointError as error:
        raise checkpoint.CheckpointError(f"{error}; delete {path.parent} and repeat the command, to train it anew"
                                         ) from error


def finished(path, model_config, train_config, text, command):
    """The TrainState of a run that is there and finished.  command: what trains it, for a message.

    Raises ValueError if the checkpoint is of another configuration or text, or not finished.
    """
    state = _load(path)
    check_kind(path, state, model_config, train_config, text)
    if not state.finished:
        raise ValueError(f"{path} is at step {state.step} of {train_config.n_steps}: `{command}` goes on with it")
    return state


def check_kind(path, state, model_config, train_config, text):
    """Raise ValueError unless the state is a run of this configuration on this text."""
    have, want = (_with_weights_said(config) for config in (state.model_config, model_config))
    if (have, state.train_config, state.data_digest) != (want, train_config, text.digest):
        raise ValueError(f"{path} is a run of another kind; train anew with --fresh")


def _with_weights_said(config):
    """The configuration with the weights of its losses filled in: said or not, they are the same."""
    return replace(config, **{f"{name}_coef": coef for name, coef in config.loss_coefs.items()})
