"""The cost of sparsity: an MoE layer as experts are added, and compared with the dense layer of equal parameters.

    python -m tests.benchmarks.sparse [--turns N]

Forward passes of 4096 tokens, model width 128, experts 256 wide; on one thread, and as two groups on two threads.  The
experts are added to a layer by itself, and to the layers of a whole model (preset "shakespeare-cpu", 64 sequences).
"""

import contextlib

import numpy as np

from minimoe import model
from minimoe.config import ModelConfig, preset
from minimoe.moe import dense, layer
from minimoe.moe.routing import Tokens
from minimoe.training.threads import workers
from tests.benchmarks import turns

T, D, F = 4096, 128, 256
MORE_EXPERTS, AT_MOST = (8, 16, 32, 64), 1.15
EQUAL_PARAMETERS, AT_LEAST = ((8, 1), (16, 2), (64, 8)), 0.80


@contextlib.contextmanager
def moe(n_experts, top_k, threads):
    """An MoE layer, forward."""
    config = ModelConfig(d_model=D, n_experts=n_experts, top_k=top_k, d_hidden=F, max_sequence=T)
    rng = np.random.default_rng(0)
    weights = drawn(layer.weights(config, 1.0, 1.0), rng)
    tokens = Tokens.anonymous(np.ones(T // threads, bool))
    with in_groups(lambda x_TD: layer.moe_forward(x_TD, weights, config, tokens), threads, vectors(rng)) as functions:
        yield functions


@contextlib.contextmanager
def one_dense(width, threads):
    """A dense SwiGLU layer, forward."""
    rng = np.random.default_rng(0)
    weights = drawn(dense.weights(ModelConfig(d_model=D), 1.0, 1.0, width), rng)
    with in_groups(lambda x_TD: dense.dense_forward(x_TD, weights), threads, vectors(rng)) as functions:
        yield functions


@contextlib.contextmanager
def whole_model(n_experts, threads):
    """A model's forward pass, in evaluation."""
    config, train_config = preset("shakespeare-cpu", {"n_experts": n_experts})
    params, rng = model.init_params(config), np.random.default_rng(0)
    tokens_BS = rng.integers(0, config.vocab_size, (T // train_config.sequence, train_config.sequence))
    with in_groups(lambda part_BS: model.forward(params, part_BS, config), threads, tokens_BS) as functions:
        yield functions


def drawn(weights, rng):
    """Random weights that keep a product about as large as its input."""
    return {name: (rng.standard_normal(w.shape) * D ** -0.5).astype(np.float32) for name, w in weights.items()}


def vectors(rng):
    """T random tokens."""
    return rng.standard_normal((T, D), np.float32)


@contextlib.contextmanager
def in_groups(forward, threads, batch):
    """The forward pass of the T tokens in one group per thread, in parallel."""
    groups = np.split(batch, threads)

    def run():
        for _ in each(forward, groups):
            pass  # a group's result is let go when it is there

    with workers(threads) as each:
        yield {"run": run}


def flops(n_experts, top_k):
    """FLOPs of one token in an MoE layer; the dense layer of equal parameters is one expert E times as wide."""
    return 6 * D * F * top_k + 2 * D * n_experts


def growth(title, seconds):
    """Print the time per token with each number of experts."""
    print(f"{title}\n{'E':>6}{'K':>4}{'us per token':>13}{'ratio to E=8':>15}{'10-90 %':>16}  goal")
    for E in MORE_EXPERTS:
        low, ratio, high = turns.spread(seconds[E], seconds[MORE_EXPERTS[0]])
        goal = turns.verdict(ratio, AT_MOST if MORE_EXPERTS[-1] == E else None)
        print(f"{E:>6}{2:>4}{np.median(seconds[E]) / T * 1e6:>13.3f}{ratio:>15.2f}"
              f"{f'{low:.2f} to {high:.2f}':>16}  {goal}".rstrip())


def main():
    """Print both comparisons, on one thread and on two."""
    options = turns.parser(__doc__, turns=20).parse_args()
    here = "tests.benchmarks.sparse"
    for threads in (1, 2):
        shapes = dict.fromkeys([(E, 2) for E in MORE_EXPERTS] + list(EQUAL_PARAMETERS))
        specifications = {(E, K): (here, "moe", dict(n_experts=E, top_k=K, threads=threads)) for E, K in shapes}
        specifications |= {f"model {E}": (here, "whole_model", dict(n_experts=E, threads=threads))
                           for E in MORE_EXPERTS}
        specifications |= {E * F: (here, "one_dense", dict(width=E * F, threads=threads)) for E, _ in EQUAL_PARAMETERS}
        with turns.together(specifications) as contestants:
            seconds, _ = turns.take(contestants, options.turns)
        print(f"T={T} D={D} F={F}, " + ("one thread" if threads == 1 else f"{threads} groups on {threads} threads"))
        growth("whole model", {E: seconds[f"model {E}"] for E in MORE_EXPERTS})
        growth("one layer", {E: seconds[E, 2] for E in MORE_EXPERTS})
        print(f"{'E':>6}{'K':>4}{'us per token':>13}{'dense':>9}{'time ratio':>13}{'FLOP ratio':>12}{'share':>8}"
              f"{'10-90 %':>16}  goal")
        for E, K in EQUAL_PARAMETERS:
            fewer = 6 * D * E * F / flops(E, K)
            low, ratio, high = turns.spread(seconds[E * F], seconds[E, K])
            print(f"{E:>6}{K:>4}{np.median(seconds[E, K]) / T * 1e6:>13.3f}{np.median(seconds[E * F]) / T * 1e6:>9.2f}"
                  f"{ratio:>13.2f}{fewer:>12.2f}{ratio / fewer:>8.2f}{f'{low / fewer:.2f} to {high / fewer:.2f}':>16}  "
                  f"{turns.verdict(ratio / fewer, AT_LEAST, at_most=False)}")
        print()


if __name__ == "__main__":
    main()
