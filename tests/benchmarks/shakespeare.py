"""Held-out loss on tiny Shakespeare with the CPU recipe of nanoGPT: context 64, batch 12, 4 layers, 4 heads, width 128.

    python -m tests.benchmarks.shakespeare PATH_TO_TEXT [--seeds N] [--steps N]

The text is the 1,115,394 characters that nanoGPT's prepare script fetches; its first 90 % train.  nanoGPT reaches
1.8857 nats per token at step 2,000.  The loss is the mean over all of the held-out text, in pieces of 64 tokens.
"""

import argparse
import time

import numpy as np
from tqdm import tqdm

from minimoe import config, model
from minimoe.training import corpus, data, loop

GOAL = 1.8857
"""What nanoGPT's recipe reaches in 2,000 steps, run on two cores."""


def held_out_loss(state, stream):
    """Mean cross-entropy over a whole stream, nats per token."""
    sequence, batch = state.train_config.sequence, state.train_config.batch
    n_pieces = (len(stream) - 1) // sequence
    tokens_BS = stream[:n_pieces * sequence].reshape(n_pieces, sequence)
    targets_BS = stream[1:n_pieces * sequence + 1].reshape(n_pieces, sequence)
    total = 0.0
    for start in range(0, n_pieces, batch):
        rows = slice(start, start + batch)
        (losses, _), _ = model.objective_forward(state.params, tokens_BS[rows], targets_BS[rows], state.model_config)
        total += losses.ce * len(tokens_BS[rows])
    return total / n_pieces


def main():
    """Train each seed, print the curve of its held-out loss and the first step at which it meets the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="path of the text")
    parser.add_argument("--seeds", type=int, default=1, help="runs, with seeds 0, 1, ... (default: 1)")
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps (default: 1000)")
    parser.add_argument("--every", type=int, default=100, help="steps between evaluations (default: 100)")
    options = parser.parse_args()
    text = data.build(corpus.from_files([options.text]), 64)
    for seed in range(options.seeds):
        model_config, train_config = config.preset(
            "shakespeare-cpu", {"vocab_size": len(text.tokenizer)}, {"n_steps": options.steps, "seed": seed})
        state, curve, started = loop.new_state(model_config, train_config, text), [], time.perf_counter()
        for step in tqdm(range(1, options.steps + 1), desc=f"seed {seed}"):
            loop.step_once(state, text)
            if step % options.every == 0:
                curve.append((step, held_out_loss(state, text.held_out[0])))
        print(f"seed {seed}: " + "  ".join(f"{step}: {loss:.4f}" for step, loss in curve))
        met = next((step for step, loss in curve if loss <= GOAL), None)
        print(f"seed {seed}: {GOAL} or lower {f'first seen at step {met}' if met else 'not reached'}; last "
              f"{curve[-1][1]:.4f}; {np.sum(state.history['seconds']):.0f} s of training, "
              f"{time.perf_counter() - started:.0f} s in all", flush=True)


if __name__ == "__main__":
    main()
