"""minimoe as a contestant of `turns`.  No PyTorch is imported here."""

import contextlib

import threadpoolctl

from minimoe import config, cost, model
from minimoe.analysis import bench
from minimoe.training import corpus, data, loop
from minimoe.training.threads import keep_freed_memory, workers

GROUPS = 2


def preset(batch, sequence, **train):
    """The preset of the benchmarks, for such a batch."""
    return config.preset("shakespeare-cpu", {"max_sequence": sequence},
                         {"batch": batch, "sequence": sequence, "groups": GROUPS} | train)


def state_and_text(model_config, train_config):
    """A run before its first step, on random tokens."""
    text = data.random_text(model_config, train_config)
    return loop.new_state(model_config, train_config, text), text


def load():
    """One step of a tiny model, for what is set up at first use: it is no part of a model's memory."""
    state, text = state_and_text(*config.preset("tiny"))
    with workers(GROUPS) as each:
        loop.step_once(state, text, each)


@contextlib.contextmanager
def step(batch, sequence, threads=2):
    """One training step."""
    state, text = state_and_text(*preset(batch, sequence))
    with workers(threads) as each:
        yield {"run": lambda: loop.step_once(state, text, each)}


def step_products(batch, sequence, seed=0):
    """The matrix products of a forward and a backward pass, in order."""
    return cost.products(preset(batch, sequence)[0], batch, sequence, seed)


@contextlib.contextmanager
def group_products(batch, sequence, threads=2):
    """The matrix products of a step alone: each group's on a thread of its own."""
    replays = [bench.replay(step_products(batch // GROUPS, sequence, seed)) for seed in range(GROUPS)]
    with workers(threads) as each:
        yield {"run": lambda: list(each(lambda run: run(), replays))}


@contextlib.contextmanager
def batch_products(batch, sequence, threads=2):
    """The matrix products of a step alone: the whole batch's, with the threads in each product."""
    keep_freed_memory()
    with threadpoolctl.threadpool_limits(threads, user_api="blas"):
        yield {"run": bench.replay(step_products(batch, sequence))}


@contextlib.contextmanager
def race(path, steps, seed, threads=2, **train):
    """Training on a text: a step, and the loss on its held-out tenth."""
    model_config, train_config = config.preset("shakespeare-cpu", {}, {"n_steps": steps, "seed": seed} | train)
    text = data.build(corpus.from_files([path]), train_config.sequence)
    state = loop.new_state(model_config, train_config, text)
    with workers(threads) as each:
        yield {"run": lambda: loop.step_once(state, text, each),
               "loss": lambda: held_out_loss(state, text.held_out[0], each)}


def pieces(stream, sequence):
    """All of a stream as sequences, and their targets: tokens_BS, targets_BS."""
    n_pieces = (len(stream) - 1) // sequence
    return (stream[:n_pieces * sequence].reshape(n_pieces, sequence),
            stream[1:n_pieces * sequence + 1].reshape(n_pieces, sequence))


def held_out_loss(state, stream, each=map):
    """Mean cross-entropy over a whole stream, nats per token."""
    tokens_BS, targets_BS = pieces(stream, state.train_config.sequence)
    rows = [slice(start, start + 32) for start in range(0, len(tokens_BS), 32)]

    def total(part):
        (losses, _), _ = model.objective_forward(state.params, tokens_BS[part], targets_BS[part], state.model_config)
        return losses.ce * len(tokens_BS[part])

    return sum(each(total, rows)) / len(tokens_BS)
