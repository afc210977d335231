"""minimoe as a contestant of `turns`.  No PyTorch is imported here."""

import contextlib

import numpy as np
import threadpoolctl

from minimoe import config, model
from minimoe.analysis import cost
from minimoe.training import corpus, data, loop, optimizer
from minimoe.training.checkpoint import TrainState
from minimoe.training.data import Corpus
from minimoe.training.tokenizer import Tokenizer
from minimoe.workers import keep_freed_memory, workers

GROUPS = 2


def preset(batch, sequence, **train):
    """The preset of the benchmarks, for such a batch."""
    return config.preset("shakespeare-cpu", {"max_sequence": sequence},
                         {"batch": batch, "sequence": sequence, "groups": GROUPS} | train)


def state_and_corpus(model_config, train_config):
    """A run before its first step, on random tokens."""
    tokenizer = Tokenizer("".join(map(chr, range(32, 32 + model_config.vocab_size))))
    stream = np.random.default_rng(0).integers(0, model_config.vocab_size, 100_000)
    text = Corpus(tokenizer, ("random",), (stream,), (stream,))
    params = model.init_params(model_config)
    return TrainState(model_config, train_config, tokenizer, text.domains, text.digest, params,
                      optimizer.start_moments(params), np.random.default_rng(0), {}), text


def load():
    """One step of a tiny model, for what is set up at first use: it is no part of a model's memory."""
    state, text = state_and_corpus(*config.preset("tiny"))
    with workers(GROUPS) as each:
        loop.step_once(state, text, each)


@contextlib.contextmanager
def step(batch, sequence, threads=2):
    """One training step."""
    state, text = state_and_corpus(*preset(batch, sequence))
    with workers(threads) as each:
        yield {"run": lambda: loop.step_once(state, text, each)}


def step_products(batch, sequence, seed=0):
    """The matrix products of a forward and a backward pass, in order."""
    forward, backward = cost.products(preset(batch, sequence)[0], batch, sequence, seed)
    return forward + backward


def replay(products):
    """A function that runs these matrix products and nothing else, on arrays that are there already."""
    rng = np.random.default_rng(0)
    shapes = {shape for product in products for shape in product}
    arrays = {shape: rng.standard_normal(shape, np.float32) for shape in shapes}
    pairs = [(arrays[left], arrays[right]) for left, right in products]

    def run():
        for left, right in pairs:
            np.matmul(left, right)

    return run


@contextlib.contextmanager
def group_products(batch, sequence, threads=2):
    """The matrix products of a step alone: each group's on a thread of its own."""
    replays = [replay(step_products(batch // GROUPS, sequence, seed)) for seed in range(GROUPS)]
    with workers(threads) as each:
        yield {"run": lambda: list(each(lambda run: run(), replays))}


@contextlib.contextmanager
def batch_products(batch, sequence, threads=2):
    """The matrix products of a step alone: the whole batch's, with the threads in each product."""
    keep_freed_memory()
    with threadpoolctl.threadpool_limits(threads, user_api="blas"):
        yield {"run": replay(step_products(batch, sequence))}


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
