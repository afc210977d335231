"""The time to nanoGPT's loss on tiny Shakespeare, compared with nanoGPT's own recipe in PyTorch, round-robin.

    python -m tests.benchmarks.shakespeare PATH_TO_TEXT

The text is the 1,115,394 characters that nanoGPT's prepare script fetches; its first 90 % train.  nanoGPT's CPU recipe
(context 64, batch 12, 4 layers, 4 heads, width 128) reaches 1.8857 nats per token in 2,000 steps.  A loss is the mean
over all of the held-out text, in pieces of 64 tokens.  Only steps are timed, no evaluation.  The GPT's options give it
another recipe, as a control: a part of our lead is our learning rate.
"""

from pathlib import Path

import numpy as np

from minimoe import config
from minimoe.training import progress
from tests.benchmarks import turns

GPT, GOAL = "GPT, PyTorch", 1.8857
"""What nanoGPT's recipe reaches in 2,000 steps, run on two cores."""

GPT_STEPS, GPT_RATE = 2000, 1e-3
"""nanoGPT's own."""

RATIO_GOAL = 0.5


def read_options():
    """The options, those of the recipe with the preset's own as defaults."""
    _, train = config.preset("shakespeare-cpu")
    parser = turns.parser(__doc__)
    parser.add_argument("text", help="path of the text")
    parser.add_argument("--seeds", type=turns.count, default=3, help="runs, with seeds 0, 1, ... (default: 3)")
    parser.add_argument("--steps", type=turns.count, default=train.n_steps, help=f"ours (default: {train.n_steps})")
    parser.add_argument("--learning-rate", type=float, default=train.learning_rate,
                        help=f"our peak (default: {train.learning_rate:g})")
    parser.add_argument("--warmup-steps", type=turns.count, default=train.warmup_steps,
                        help=f"ours (default: {train.warmup_steps})")
    parser.add_argument("--every", type=turns.count, default=20, help="our steps in a turn (default: 20)")
    parser.add_argument("--gpt-steps", type=turns.count, default=GPT_STEPS, help=f"of the GPT (default: {GPT_STEPS})")
    parser.add_argument("--gpt-learning-rate", type=float, default=GPT_RATE,
                        help=f"peak of the GPT, a tenth at the end (default: {GPT_RATE:g})")
    parser.add_argument("--alone", action="store_true", help="without the GPT, so without PyTorch")
    options = parser.parse_args()
    if options.steps % options.every:
        parser.error(f"--steps {options.steps}: must be a multiple of --every {options.every}")
    if not Path(options.text).is_file():
        parser.error(f"text {options.text}: there is no such file")
    return options


def race(contestants, n_turns):
    """Run all round-robin, spread over the same time.  contestants: name -> (Contestant, its steps).

    Returns name -> [(step, seconds, loss)], one entry per turn.
    """
    curves = {name: [(0, 0.0, np.inf)] for name in contestants}
    for turn in progress.rounds(n_turns, "turns"):
        for name, (contestant, steps) in contestants.items():
            done, seconds, _ = curves[name][-1]
            due = steps * (turn + 1) // n_turns
            seconds += sum(contestant.turn(due - done).seconds)
            curves[name].append((due, seconds, contestant.turn(1, "loss").result))
    return {name: curve[1:] for name, curve in curves.items()}


def main():
    """Print the curve of each seed and of the GPT, when each met the goal, and the ratio of the slowest seed."""
    options = read_options()
    recipe = dict(path=options.text, steps=options.steps, learning_rate=options.learning_rate,
                  warmup_steps=options.warmup_steps)
    specifications = {f"seed {seed}": ("tests.benchmarks.ours", "race", recipe | dict(seed=seed))
                      for seed in range(options.seeds)}
    if not options.alone:
        gpt_recipe = dict(path=options.text, steps=options.gpt_steps, rate=options.gpt_learning_rate)
        specifications[GPT] = ("tests.benchmarks.references", "gpt_race", gpt_recipe)
    with turns.together(specifications) as contestants:
        curves = race({name: (contestant, options.gpt_steps if name == GPT else options.steps)
                       for name, contestant in contestants.items()}, options.steps // options.every)
    report(curves)


def met(curve):
    """(step, seconds) at which the goal was met; (None, inf) if it was not."""
    return next(((step, seconds) for step, seconds, loss in curve if loss <= GOAL), (None, np.inf))


def report(curves):
    """Print a line for each, and the goal's."""
    print(f"{'':<14}{'steps to ' + str(GOAL):>18}{'seconds':>10}{'all steps':>11}{'seconds':>10}{'ms per step':>12}"
          f"{'last loss':>11}")
    for name, curve in curves.items():
        (step, seconds), (last_step, last_seconds, last_loss) = met(curve), curve[-1]
        print(f"{name:<14}{step or 'not reached':>18}{seconds:>10.1f}{last_step:>11}{last_seconds:>10.1f}"
              f"{last_seconds / last_step * 1e3:>12.1f}{last_loss:>11.4f}   "
              + "  ".join(f"{step}: {loss:.3f}" for step, _, loss in curve[::5]))
    if GPT in curves:
        gpt_steps, gpt_seconds, _ = curves[GPT][-1]
        ratio = max(met(curve)[1] for name, curve in curves.items() if name != GPT) / gpt_seconds
        print(f"slowest seed to {GOAL} / {gpt_steps} steps of the GPT: {ratio:.2f}   "
              f"{turns.verdict(ratio, RATIO_GOAL)}")


if __name__ == "__main__":
    main()
