"""One training step against its matrix products alone, both timed in turn in one run.

    python -m tests.benchmarks.step [--steps N] [--threads N]

The floor replays the very shapes that the step multiplies, on arrays that are there already.
"""

import argparse
import time

import numpy as np
import threadpoolctl

from minimoe import config, model
from minimoe.analysis import cost
from minimoe.training import loop, optimizer
from minimoe.training.checkpoint import TrainState
from minimoe.training.data import Corpus
from minimoe.training.tokenizer import Tokenizer


def replay(products):
    """A function that runs these matrix products and nothing else."""
    rng = np.random.default_rng(0)
    shapes = {shape for product in products for shape in product}
    arrays = {shape: rng.standard_normal(shape, np.float32) for shape in shapes}
    pairs = [(arrays[left], arrays[right]) for left, right in products]

    def run():
        for left, right in pairs:
            np.matmul(left, right)

    return run


def state_and_corpus(model_config, train_config):
    """A run before its first step, on random tokens."""
    tokenizer = Tokenizer("".join(map(chr, range(32, 32 + model_config.vocab_size))))
    stream = np.random.default_rng(0).integers(0, model_config.vocab_size, 100_000)
    corpus = Corpus(tokenizer, ("random",), (stream,), (stream,))
    params = model.init_params(model_config)
    return TrainState(model_config, train_config, tokenizer, corpus.domains, corpus.digest, params,
                      optimizer.start_moments(params), np.random.default_rng(0), {}), corpus


def seconds(function):
    """Time of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main():
    """Print medians and the ratio, pair by pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="timed pairs (default: 40)")
    parser.add_argument("--threads", type=int, help="threads of matrix products (default: all)")
    options = parser.parse_args()
    model_config, train_config = config.preset("shakespeare-cpu")
    state, corpus = state_and_corpus(model_config, train_config)
    forward, backward = cost.products(model_config, train_config.batch, train_config.sequence)
    floor = replay(forward + backward)
    with threadpoolctl.threadpool_limits(options.threads):
        pairs = np.array([(seconds(lambda: loop.step_once(state, corpus)), seconds(floor))
                          for _ in range(options.steps + 5)][5:])
    flops = sum(product.flops for product in forward + backward)
    step, gemm = np.median(pairs, axis=0)
    low, ratio, high = np.percentile(pairs[:, 0] / pairs[:, 1], (10, 50, 90))
    print(f"training step (forward, backward, clip, AdamW)   {step * 1e3:7.1f} ms   median of {options.steps}")
    print(f"its {len(forward + backward)} matrix products alone, {flops / 1e9:.2f} GFLOP     {gemm * 1e3:7.1f} ms   "
          f"{flops / gemm / 1e9:.0f} GFLOP/s")
    print(f"ratio, pair by pair                              {ratio:7.2f}      10 % to 90 %: {low:.2f} to {high:.2f}")


if __name__ == "__main__":
    main()
