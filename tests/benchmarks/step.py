"""One training step against its matrix products alone, in turns.

    python -m tests.benchmarks.step [--turns N] [--threads N] [--batch N] [--sequence N]

The floor replays the very shapes that the step multiplies, on arrays that are there already: each group's on a thread
of its own, and the whole batch's with the threads in each product.
"""

import argparse

import numpy as np

from tests.benchmarks import ours, turns


def main():
    """Print medians and ratios, turn by turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=turns.count, default=20, help="turns of each (default: 20)")
    parser.add_argument("--threads", type=turns.count, default=2, help="threads of each (default: 2)")
    parser.add_argument("--batch", type=turns.count, default=12, help="sequences (default: 12)")
    parser.add_argument("--sequence", type=turns.count, default=64, help="tokens of each (default: 64)")
    options = parser.parse_args()
    shape = dict(batch=options.batch, sequence=options.sequence)
    specifications = {name: ("tests.benchmarks.ours", build, shape | dict(threads=options.threads)) for name, build in {
        "training step": "step", "products, a group a thread": "group_products",
        "products, the whole batch": "batch_products"}.items()}
    with turns.together(specifications) as contestants:
        seconds, _ = turns.take(contestants, options.turns)
    title = f"{options.batch} x {options.sequence} tokens, {options.threads} threads"
    print(turns.table(title, "training step", seconds))
    flops = sum(product.flops for product in ours.step_products(**shape))
    for name in list(specifications)[1:]:
        print(f"{name}: {flops / 1e9:.2f} GFLOP, {flops / np.median(seconds[name]) / 1e9:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
