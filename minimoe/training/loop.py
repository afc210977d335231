"""The training loop: sample, forward, backward, mask, clip, step; with regular evaluations and checkpoints."""

import contextlib
import signal
import threading
import time

import numpy as np

from minimoe import batches, model, require
from minimoe.config import ModelConfig, TrainConfig
from minimoe.sparsity import masked
from minimoe.training import checkpoint, data, divergence, evaluation, optimizer, record
from minimoe.training.checkpoint import TrainState
from minimoe.training.divergence import Diverged
from minimoe.training.threads import workers


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop, and has saved its state."""


def new_state(model_config, train_config, corpus, params=None, keep=None):
    """A run before its first step.

    Args:
        model_config, train_config: what it trains, and how.
        corpus: the Corpus that it trains on.
        params: the initial parameters, such as a pruned model; then the loss at step 0 is in the history.  None: drawn
            at random.
        keep: name -> mask, with params: masked weights are 0 and stay 0.  None: what the configuration asks for.
    Raises ValueError if params or masks do not fit the model, its vocabulary or context does not fit the corpus or the
    training sequences, global_balance is set with one micro-batch per step, or the warm-up is longer than the run.
    """
    _check_new(model_config, train_config, corpus)
    begun = params is not None
    if begun:
        model.check_params(params, model_config)
    params = {name: array.copy() for name, array in params.items()} if begun else model.init_params(
        model_config, train_config.seed)
    state = TrainState(model_config, train_config, corpus.tokenizer, corpus.domains, corpus.digest, params,
                       optimizer.start_moments(params), np.random.default_rng(train_config.seed), {})
    if keep is None:
        masked.start(state)
    else:
        masked.put_on(state, keep)
    if begun:
        _record_evaluation(state, corpus, map)
    return state


def _check_new(model_config, train_config, corpus):
    """Raise ValueError unless model, training and corpus fit each other."""
    for name, value, kind in (("model_config", model_config, ModelConfig), ("train_config", train_config, TrainConfig),
                              ("corpus", corpus, data.Corpus)):
        require.record(name, value, kind)
    if train_config.warmup_steps > train_config.n_steps:
        raise ValueError(f"warmup_steps = {train_config.warmup_steps}: longer than n_steps = {train_config.n_steps}; "
                         "the learning rate would never reach its peak; use at most half of n_steps")
    if model_config.vocab_size != len(corpus.tokenizer):
        raise ValueError(f"vocab_size = {model_config.vocab_size}: the text has {len(corpus.tokenizer)} characters")
    if train_config.sequence > model_config.max_sequence:
        raise ValueError(f"sequence = {train_config.sequence}: must be at most max_sequence = "
                         f"{model_config.max_sequence}")
    if model_config.global_balance and train_config.accumulate * train_config.groups == 1:
        raise ValueError("global_balance = True: accumulate = 1 and groups = 1 leave a single balance, which is global "
                         "already; use more micro-batches or groups")


def train(state, corpus, path=None, on_step=None, threads=1, extra=None):
    """Train until all steps are done.  Changes and returns the state.

    path: where to save checkpoints; None saves none.  on_step: called with the state after every step.
    threads: groups, and batches of an evaluation, that run at the same time; the results do not depend on it.
    extra: an additional loss of the logits, such as a teacher's: see `batches.gradients` and `sparsity.distillation`.
    Ctrl-C finishes the step, saves, and raises Interrupted; a second Ctrl-C stops at once.
    Raises ValueError if the corpus is not the one that the state was trained on, Diverged at the first number that is
    not finite (the checkpoint before it stays), CheckpointError if a checkpoint cannot be written.
    """
    require.record("state", state, TrainState)
    check_text(state, corpus)
    config, alone = state.train_config, checkpoint.only_trainer(path) if path is not None else contextlib.nullcontext()
    # numbers that are not finite are found and reported, so NumPy's warnings are not needed
    with (alone as lock, _interruptible() as asked_to_stop, np.errstate(over="ignore", invalid="ignore"),
          workers(threads) as each):
        while not state.finished:
            step_once(state, corpus, each, extra)
            due = state.step % config.eval_every == 0 or state.finished
            if due:
                _record_evaluation(state, corpus, each)
            if on_step is not None:
                on_step(state)
            stop = asked_to_stop.is_set()
            if path is not None and (stop or state.finished or state.step % config.checkpoint_every == 0):
                divergence.check_parameters(state)
                checkpoint.save(path, state, lock=lock)
            if stop and not state.finished:
                raise Interrupted(f"stopped after step {state.step}")
    return state


def check_text(state, corpus):
    """Raise ValueError unless the corpus is the one that the state was trained on."""
    require.record("corpus", corpus, data.Corpus)
    if state.data_digest != corpus.digest:
        raise ValueError("the text is not the one that this run was trained on: different, changed or reordered files")


def step_once(state, corpus, each=map, extra=None):
    """One optimizer step on freshly drawn data; adds one entry to the history.

    each: see `workers`.  extra: see `train`.
    """
    started = time.perf_counter()
    config = state.train_config
    recorded = state.step % config.record_every == 0

    def look(losses, cache):
        if not np.isfinite(losses.total):
            raise Diverged(f"step {state.step + 1}: the loss is {losses.total}; the first number that is not finite is "
                           f"in {divergence.first_not_finite(state.params, cache)}")
        return record.own_pulls(cache) if recorded else None

    drawn = [data.sample(corpus.train, state.rng, config.batch, config.sequence) for _ in range(config.accumulate)]
    parts = [group for batch in drawn for group in batches.cut(batch.tokens_BS, batch.targets_BS, config.groups)]
    losses, routings, pulls, grads = batches.gradients(state.params, parts, state.model_config, state.rng, look,
                                                      each=each, extra=extra)
    dense = masked.mask_gradients(state, grads)
    norm = divergence.finite_norm(grads, state.step)
    if not masked.replaces_update(state):
        optimizer.adamw_update(state.params, grads, state.moments, state.step, config,
                               optimizer.clip_scale(norm, config.clip_norm))
    masked.change_masks(state, dense)
    count_LE = sum(np.array([routing.count_E for routing in group]) for group in routings)
    state.params.update(model.after_step(state.params, count_LE, state.model_config))
    state.step += 1
    seconds = time.perf_counter() - started
    last = routings[-config.groups:]  # the last micro-batch
    record.write(state.history, record.losses(losses, last) | {"grad_norm": norm, "seconds": seconds})
    if recorded:
        record.write(state.history, {"step": state.step} | record.routed(last, config)
                     | record.gradients(grads, pulls, state.model_config), "router_")


def _record_evaluation(state, corpus, each):
    result = evaluation.evaluate(state.params, corpus, state.model_config, state.train_config, each)
    if not np.isfinite(result["ce"]):
        divergence.check_parameters(state)
        raise Diverged(f"step {state.step}: the loss on the held-out text is {result['ce']}")
    record.write(state.history, {"step": state.step} | result, "eval_")


@contextlib.contextmanager
def _interruptible():
    """An event that the first Ctrl-C sets; the second one interrupts as usual."""
    asked = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield asked  # only the main thread can handle signals, and a signal that is ignored, as under nohup, stays so
        return

    def ask(signum, frame):
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
