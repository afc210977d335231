"""The time to nanoGPT's loss on tiny Shakespeare, beside that of nanoGPT's own recipe in PyTorch, in turns.

    python -m tests.benchmarks.shakespeare PATH_TO_TEXT [--seeds N] [--steps N] [--learning-rate X] [--alone]

The text is the 1,115,394 characters that nanoGPT's prepare script fetches; its first 90 % train.  nanoGPT's CPU recipe
(context 64, batch 12, 4 layers, 4 heads, width 128) reaches 1.8857 nats per token in 2,000 steps.  A loss is the mean
over all of the held-out text, in pieces of 64 tokens.  Only steps are timed, no evaluation.
"""

import argparse

import numpy as np
from tqdm import tqdm

from minimoe import config
from tests.benchmarks import turns

GOAL = 1.8857
"""What nanoGPT's recipe reaches in 2,000 steps, run on two cores."""

GPT_STEPS = 2000
RATIO_GOAL = 0.5


def read_options():
    """The options, those of the recipe with the preset's own as defaults."""
    _, train = config.preset("shakespeare-cpu")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="path of the text")
    parser.add_argument("--seeds", type=int, default=3, help="runs, with seeds 0, 1, ... (default: 3)")
    parser.add_argument("--steps", type=int, default=train.n_steps, help=f"our steps (default: {train.n_steps})")
    parser.add_argument("--learning-rate", type=float, default=train.learning_rate,
                        help=f"our peak (default: {train.learning_rate:g})")
    parser.add_argument("--warmup-steps", type=int, default=train.warmup_steps,
                        help=f"ours (default: {train.warmup_steps})")
    parser.add_argument("--every", type=int, default=20, help="our steps in a turn, then evaluated (default: 20)")
    parser.add_argument("--gpt-steps", type=int, default=GPT_STEPS, help=f"of the GPT (default: {GPT_STEPS})")
    parser.add_argument("--alone", action="store_true", help="without the GPT, so without PyTorch")
    return parser.parse_args()


def race(seeds, gpt, options):
    """Run all in turns, spread over the same time; gpt: None or a Contestant.

    Returns each seed's [(step, seconds, loss)], and the GPT's seconds.
    """
    curves, gpt_seconds, gpt_done = {seed: [] for seed in seeds}, 0.0, 0
    n_turns = options.steps // options.every
    for turn in tqdm(range(1, n_turns + 1), desc="turns"):
        for seed, contestant in seeds.items():
            before = curves[seed][-1][1] if curves[seed] else 0.0
            seconds = before + sum(contestant.turn(options.every).seconds)
            curves[seed].append((turn * options.every, seconds, contestant.turn(1, "loss").result))
        if gpt is not None:
            due = options.gpt_steps * turn // n_turns
            gpt_seconds += sum(gpt.turn(due - gpt_done).seconds)
            gpt_done = due
    return curves, gpt_seconds


def main():
    """Print the curve of each seed, when it met the goal, and the ratio of the slowest to the GPT's time."""
    options = read_options()
    recipe = dict(path=options.text, steps=options.steps, learning_rate=options.learning_rate,
                  warmup_steps=options.warmup_steps)
    ours = {seed: ("tests.benchmarks.ours", "race", recipe | dict(seed=seed)) for seed in range(options.seeds)}
    theirs = {} if options.alone else {"gpt": ("tests.benchmarks.references", "gpt_race", dict(path=options.text))}
    with turns.together(ours) as seeds, turns.together(theirs) as others:
        gpt = others.get("gpt")
        curves, gpt_seconds = race(seeds, gpt, options)
        gpt_loss = gpt and gpt.turn(1, "loss").result
    report(curves, gpt_seconds, gpt_loss, options)


def report(curves, gpt_seconds, gpt_loss, options):
    """Print a line a seed, and those of the GPT and the goal."""
    print(f"{'':<12}{'steps to ' + str(GOAL):>18}{'seconds':>10}{'ms a step':>11}{'last loss':>11}")
    worst = 0.0
    for seed, curve in curves.items():
        met, seconds = next(((step, seconds) for step, seconds, loss in curve if loss <= GOAL), (None, np.inf))
        worst = max(worst, seconds)
        last_step, last_seconds, last_loss = curve[-1]
        print(f"{f'seed {seed}':<12}{met or 'not reached':>18}{seconds:>10.1f}{last_seconds / last_step * 1e3:>11.1f}"
              f"{last_loss:>11.4f}   " + "  ".join(f"{step}: {loss:.4f}" for step, _, loss in curve[::5]))
    if gpt_loss is not None:
        print(f"{'GPT, PyTorch':<12}{options.gpt_steps:>18}{gpt_seconds:>10.1f}"
              f"{gpt_seconds / options.gpt_steps * 1e3:>11.1f}{gpt_loss:>11.4f}")
        ratio = worst / gpt_seconds
        print(f"slowest seed to {GOAL} / {options.gpt_steps} steps of the GPT: {ratio:.2f}   "
              f"{turns.verdict(ratio, RATIO_GOAL)}")


if __name__ == "__main__":
    main()
