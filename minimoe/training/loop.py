"""The training loop: sample, forward, backward, clip, step; look now and then; save now and then."""

import contextlib
import signal
import threading
import time

import numpy as np

from minimoe import batches, model, parameters
from minimoe.moe import losses as auxiliary
from minimoe.training import checkpoint, data, optimizer, record
from minimoe.training.checkpoint import TrainState
from minimoe.training.threads import workers


class Diverged(ValueError):
    """The loss or a gradient is no longer finite: at which step, and where it began."""


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop, and has saved what it had."""


def new_state(model_config, train_config, corpus):
    """A run before its first step.

    Raises ValueError if the model's vocabulary or context does not fit the corpus or the training sequences, or its
    balance is to be global with one micro-batch a step.
    """
    if model_config.vocab_size != len(corpus.tokenizer):
        raise ValueError(f"vocab_size = {model_config.vocab_size}: the text has {len(corpus.tokenizer)} characters")
    if train_config.sequence > model_config.max_sequence:
        raise ValueError(f"sequence = {train_config.sequence}: must be at most max_sequence = "
                         f"{model_config.max_sequence}")
    if model_config.global_balance and train_config.accumulate * train_config.groups == 1:
        raise ValueError("global_balance = True: with accumulate = 1 and groups = 1 one balance is all there is; "
                         "accumulate more, or have more groups")
    params = model.init_params(model_config, train_config.seed)
    return TrainState(model_config, train_config, corpus.tokenizer, corpus.domains, corpus.digest, params,
                      optimizer.start_moments(params), np.random.default_rng(train_config.seed), {})


def train(state, corpus, path=None, on_step=None, threads=1):
    """Train until all steps are done.  Changes and returns the state.

    path: where to save checkpoints; None saves none.  on_step: called with the state after every step.
    threads: groups, and batches of an evaluation, that run at the same time; no number depends on it.
    Ctrl-C finishes the step, saves, and raises Interrupted; a second Ctrl-C stops at once.
    Raises ValueError if the corpus is not the one that the state was trained on, Diverged at the first number that is
    not finite (the checkpoint before it stays), CheckpointError if a checkpoint cannot be written.
    """
    check_text(state, corpus)
    config, alone = state.train_config, checkpoint.only_trainer(path) if path is not None else contextlib.nullcontext()
    # what is not finite is found and reported, without NumPy's warnings
    with (alone, _interruptible() as asked_to_stop, np.errstate(over="ignore", invalid="ignore"),
          workers(threads) as each):
        while not state.finished:
            step_once(state, corpus, each)
            due = state.step % config.eval_every == 0 or state.finished
            if due:
                _record_evaluation(state, corpus, each)
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


def step_once(state, corpus, each=map):
    """One optimiser step on freshly drawn data; adds one entry to the history.  each: see `workers`."""
    started = time.perf_counter()
    config = state.train_config
    recorded = state.step % config.record_every == 0

    def look(losses, cache):
        if not np.isfinite(losses.total):
            raise Diverged(f"step {state.step + 1}: the loss is {losses.total}; the first number that is not finite is "
                           f"in {first_not_finite(state.params, cache)}")
        return record.own_pulls(cache) if recorded else None

    drawn = [data.sample(corpus.train, state.rng, config.batch, config.sequence) for _ in range(config.accumulate)]
    parts = [group for batch in drawn for group in batches.cut(batch.tokens_BS, batch.targets_BS, config.groups)]
    losses, routings, pulls, grads = batches.gradients(state.params, parts, state.model_config, state.rng, look,
                                                      each=each)
    norm = _finite_norm(grads, state.step)
    optimizer.adamw_update(state.params, grads, state.moments, state.step, config,
                           optimizer.clip_scale(norm, config.clip_norm))
    count_LE = sum(np.array([r.count_E for r in of_group]) for of_group in routings)
    state.params.update(model.after_step(state.params, count_LE, state.model_config))
    state.step += 1
    seconds = time.perf_counter() - started
    last = routings[-config.groups:]  # the last micro-batch
    record.write(state.history, record.losses(losses, last) | {"grad_norm": norm, "seconds": seconds})
    if recorded:
        record.write(state.history, {"step": state.step} | record.routed(last, config)
                     | record.gradients(grads, pulls, state.model_config), "router_")


def _finite_norm(grads, step):
    norm = optimizer.global_norm(grads)
    if not np.isfinite(norm):
        name = _first_name(grads)
        where = (f"the first number that is not finite is in the gradient of {name}" if name else
                 "its numbers are finite, but too large to square")
        raise Diverged(f"step {step + 1}: the gradient is {norm}; {where}")
    return norm


def evaluate(params, corpus, model_config, train_config, each=map):
    """Loss and routing on held-out text, the same pieces at every call and for every model.  each: see `workers`.

    Returns a dict: ce, nats per token, the domains weighted by their length; ce_domain, one a domain; drop, share
    dropped.  Of the L layers with a router: load, the share of each domain's assignments that go to each expert,
    [domains, L, E]; drop_position, share dropped by place in the sequence, [L, S]; information_token, _position,
    _domain, what the expert of an assignment tells of it, [L], nats; experts, see `record.probe`.
    """
    sizes = {"token": model_config.vocab_size, "position": train_config.sequence, "domain": len(corpus.held_out),
             "expert": model_config.n_experts}
    ces, drops, by_place, total, probes = [[] for _ in corpus.held_out], [], [], {}, []

    def forward(held_out):
        domain, batch = held_out
        result, _ = model.objective_forward(params, batch.tokens_BS, batch.targets_BS, model_config, training=False)
        return domain, result

    for domain, (losses, routings) in each(forward, _held_out_batches(corpus.held_out, train_config)):
        if not ces[domain]:
            probes.append(record.probe(routings, model_config.n_experts))
        ces[domain].append(losses.ce)
        drops.append(record.drop(routings))
        by_place.append(record.drop_position(routings, train_config.sequence))
        total = {label: total.get(label, 0) + count for label, count in
                 record.counts(routings, domain, sizes).items()}
    ce_domain, count_domain = [np.mean(of_domain) for of_domain in ces], total["domain"].swapaxes(0, 1)
    return {"ce": float(np.average(ce_domain, weights=[len(stream) for stream in corpus.held_out])),
            "ce_domain": np.array(ce_domain), "load": count_domain / count_domain.sum(axis=2, keepdims=True),
            "drop": float(np.mean(drops)), "drop_position": np.mean(by_place, axis=0),
            "experts": np.concatenate(probes, axis=1)} | record.information(total)


def _held_out_batches(streams, config):
    """(domain, Batch) of an evaluation: the same at every call."""
    for domain, stream in enumerate(streams):
        rng = np.random.default_rng(0)
        for _ in range(-(-config.eval_batches // len(streams))):
            yield domain, data.sample([stream], rng, config.batch, config.sequence)


def first_not_finite(params, cache):
    """Where the first number that is not finite stands, in the order of the forward pass.

    params: flat dict.  cache: of `model.objective_forward`.  Returns words for a message.
    """
    name = _first_name(params)
    if name is not None:
        return f"the parameter {name}"
    model_cache, (config, ce_cache, layer_caches, _) = cache
    for i, block in enumerate(model_cache.blocks):
        for part in block._fields:
            if not _all_finite(getattr(block, part)):
                return f"layer {i}, {part.replace('feed_forward', config.layer_kinds[i]).replace('_', ' ')}"
    if not _all_finite(model_cache.norm):
        return "the final norm"
    if not _all_finite(ce_cache):
        return "the head"
    named = zip(config.moe_layers, layer_caches, strict=True)
    sums = ((i, name, loss) for i, (routing, _) in named
            for name, loss in auxiliary.auxiliary_forward(routing, config)[0].items())
    return next((f"layer {i}, router {name}-loss" for i, name, loss in sums if not np.isfinite(loss)),
                "the sum of the losses")


def _check_parameters(state):
    """A checkpoint must be one that training can go on from."""
    name = _first_name(state.params)
    if name is not None:
        raise Diverged(f"step {state.step}: the parameter {name} is no longer finite")


def _first_name(arrays):
    return next((name for name, array in arrays.items() if not np.isfinite(array).all()), None)


def _all_finite(tree):
    return all(np.isfinite(array).all() for array in parameters.arrays_in(tree))


def _record_evaluation(state, corpus, each):
    result = evaluate(state.params, corpus, state.model_config, state.train_config, each)
    if not np.isfinite(result["ce"]):
        _check_parameters(state)
        raise Diverged(f"step {state.step}: the loss on the held-out text is {result['ce']}")
    record.write(state.history, {"step": state.step} | result, "eval_")


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
