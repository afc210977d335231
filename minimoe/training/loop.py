"""The training loop: sample, forward, backward, clip, step; look now and then; save now and then."""

import contextlib
import signal
import threading
import time

import numpy as np

from minimoe import model
from minimoe import params as parameters
from minimoe.moe import telemetry
from minimoe.training import checkpoint, data, optimizer
from minimoe.training.checkpoint import TrainState


class Diverged(ValueError):
    """The loss or a gradient is no longer finite: at which step, and where it began."""


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop, and has saved what it had."""


def new_state(model_config, train_config, corpus):
    """A run before its first step.

    Raises ValueError if the model's vocabulary or context does not fit the corpus or the training sequences.
    """
    if model_config.vocab_size != len(corpus.tokenizer):
        raise ValueError(f"vocab_size = {model_config.vocab_size}: the text has {len(corpus.tokenizer)} characters")
    if train_config.sequence > model_config.max_sequence:
        raise ValueError(f"sequence = {train_config.sequence}: must be at most max_sequence = "
                         f"{model_config.max_sequence}")
    params = model.init_params(model_config, train_config.seed)
    return TrainState(model_config, train_config, corpus.tokenizer, corpus.domains, corpus.digest, params,
                      optimizer.start_moments(params), np.random.default_rng(train_config.seed), {})


def train(state, corpus, path=None, on_step=None):
    """Train until all steps are done.  Changes and returns the state.

    path: where to save checkpoints; None saves none.  on_step: called with the state after every step.
    Ctrl-C finishes the step, saves, and raises Interrupted; a second Ctrl-C stops at once.
    Raises ValueError if the corpus is not the one that the state was trained on, Diverged at the first number that is
    not finite (the checkpoint before it stays), CheckpointError if a checkpoint cannot be written.
    """
    check_text(state, corpus)
    config, alone = state.train_config, checkpoint.only_trainer(path) if path is not None else contextlib.nullcontext()
    # what is not finite is found and reported, without NumPy's warnings
    with alone, _interruptible() as asked_to_stop, np.errstate(over="ignore", invalid="ignore"):
        while not state.finished:
            step_once(state, corpus)
            due = state.step % config.eval_every == 0 or state.finished
            if due:
                _record_evaluation(state, corpus)
            if on_step is not None:
                on_step(state)
            stop = asked_to_stop.is_set()
            if path is not None and (stop or state.finished or state.step % config.checkpoint_every == 0):
                _check_parameters(state)
                checkpoint.save(path, state)
            if stop and not state.finished:
                raise Interrupted(f"stopped after step {state.step}")
    return state


def check_text(state, corpus):
    """Raise ValueError unless the corpus is the one that the state was trained on."""
    if state.data_digest != corpus.digest:
        raise ValueError("the text is not the one that this run was trained on: other files, another order, or changed")


def step_once(state, corpus):
    """One optimiser step on freshly drawn data; adds one entry to the history."""
    started = time.perf_counter()
    config, parts, grads = state.train_config, [], None
    for _ in range(config.accumulate):
        batch = data.sample(corpus.train, state.rng, config.batch, config.sequence)
        (losses, routings), cache = model.objective_forward(
            state.params, batch.tokens_BS, batch.targets_BS, state.model_config, training=True, rng=state.rng)
        if not np.isfinite(losses.total):
            raise Diverged(f"step {state.step + 1}: the loss is {losses.total}; the first number that is not finite is "
                           f"in {first_not_finite(state.params, cache)}")
        parts.append(losses)
        grads = _add(grads, model.objective_backward(1 / config.accumulate, cache))
    norm = optimizer.global_norm(grads)
    if not np.isfinite(norm):
        name = _first_name(grads)
        where = (f"the first number that is not finite is in the gradient of {name}" if name else
                 "its numbers are finite, but too large to square")
        raise Diverged(f"step {state.step + 1}: the gradient is {norm}; {where}")
    optimizer.adamw_update(state.params, grads, state.moments, state.step, config,
                           optimizer.clip_scale(norm, config.clip_norm))
    state.step += 1
    mean = model.Losses(*np.mean(parts, axis=0))
    _record_step(state, mean, norm, routings, time.perf_counter() - started)


def evaluate(params, corpus, model_config, train_config):
    """Loss and routing on held-out text, the same pieces at every call and for every model.

    Returns a dict: ce, nats per token, the domains weighted by their length; ce_domain, one a domain; load, the share
    of each domain's assignments that go to each expert, [domains, L, E]; drop, share dropped.
    """
    sizes = np.array([len(stream) for stream in corpus.held_out])
    ce_domain, load, drops = [], [], []
    for stream in corpus.held_out:
        rng, ces = np.random.default_rng(0), []
        count_LE = np.zeros((model_config.n_layers, model_config.n_experts))
        for _ in range(-(-train_config.eval_batches // len(sizes))):
            batch = data.sample([stream], rng, train_config.batch, train_config.sequence)
            (losses, routings), _ = model.objective_forward(params, batch.tokens_BS, batch.targets_BS, model_config,
                                                            training=False)
            ces.append(losses.ce)
            count_LE += [r.count_E for r in routings]
            drops.append(np.mean([telemetry.drop_rate(r) for r in routings]))
        ce_domain.append(np.mean(ces))
        load.append(count_LE / count_LE.sum(axis=1, keepdims=True))
    ce = float(np.average(ce_domain, weights=sizes))
    return {"ce": ce, "ce_domain": np.array(ce_domain), "load": np.array(load), "drop": float(np.mean(drops))}


def first_not_finite(params, cache):
    """Where the first number that is not finite stands, in the order of the forward pass.

    params: flat dict.  cache: of `model.objective_forward`.  Returns words for a message.
    """
    name = _first_name(params)
    if name is not None:
        return f"the parameter {name}"
    model_cache, *loss_caches = cache[1:]
    for i, block in enumerate(model_cache.blocks):
        for part in block._fields:
            if not _all_finite(getattr(block, part)):
                return f"layer {i}, {part.replace('_', ' ')}"
    if not _all_finite(model_cache.norm):
        return "the final norm"
    ce_cache, _, z_caches = loss_caches
    if not _all_finite(ce_cache):
        return "the head"
    z_layers = [i for i, (lse_T, _) in enumerate(z_caches) if not np.isfinite(lse_T * lse_T).all()]
    return f"layer {z_layers[0]}, router z-loss" if z_layers else "the sum of the losses"


def _check_parameters(state):
    """A checkpoint must be one that training can go on from."""
    name = _first_name(state.params)
    if name is not None:
        raise Diverged(f"step {state.step}: the parameter {name} is no longer finite")


def _first_name(arrays):
    return next((name for name, array in arrays.items() if not np.isfinite(array).all()), None)


def _all_finite(tree):
    return all(np.isfinite(array).all() for array in parameters.arrays_in(tree))


def _add(total, grads):
    if total is None:
        return grads
    for name, grad in grads.items():
        total[name] += grad
    return total


def _record_step(state, losses, norm, routings, seconds):
    """Every step its losses; every `record_every` steps what the router did with the last micro-batch."""
    values = {"ce": losses.ce, "balance": losses.balance, "z": losses.z, "grad_norm": norm, "seconds": seconds,
              "drop": np.mean([telemetry.drop_rate(routing) for routing in routings])}
    if (state.step - 1) % state.train_config.record_every == 0:
        values["router_step"] = state.step
        for name, value in telemetry.summarize(routings)._asdict().items():
            values[f"router_{name.split('_')[0]}"] = value
    for name, value in values.items():
        state.history.setdefault(name, []).append(value)


def _record_evaluation(state, corpus):
    result = evaluate(state.params, corpus, state.model_config, state.train_config)
    if not np.isfinite(result["ce"]):
        _check_parameters(state)
        raise Diverged(f"step {state.step}: the loss on the held-out text is {result['ce']}")
    for name, value in ({"step": state.step} | result).items():
        state.history.setdefault(f"eval_{name}", []).append(value)


@contextlib.contextmanager
def _interruptible():
    """An event that the first Ctrl-C sets; the second one interrupts as usual."""
    asked = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield asked  # only the main thread may handle signals, and who ignores them, as nohup does, means it
        return

    def ask(signum, frame):
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
