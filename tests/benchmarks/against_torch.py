"""One training step of minimoe beside PyTorch's: Mixtral of the transformers library, a dense GPT; and its floor.

    python -m tests.benchmarks.against_torch [--turns N]

All Mixtrals have the shape of the preset "shakespeare-cpu", and take a step with the balance loss, clipping and AdamW.
The floor is the matrix products of our step alone.  Two threads each.
"""

import argparse

import numpy as np

from tests.benchmarks import turns

SHAPES = ((12, 64), (32, 128))
GOALS = {"Mixtral, grouped_mm": 0.75, "Mixtral, eager": 0.55}
FLOOR_GOAL = 2.6
MEMORY_GOAL = 1.0


def specifications(batch, sequence):
    """The contestants of one shape."""
    shape = dict(batch=batch, sequence=sequence)
    ours, references = "tests.benchmarks.ours", "tests.benchmarks.references"
    return {
        "minimoe": (ours, "step", shape),
        "Mixtral, grouped_mm": (references, "mixtral_step", shape | dict(experts="grouped_mm")),
        "Mixtral, eager": (references, "mixtral_step", shape | dict(experts="eager")),
        "dense GPT of nanoGPT's shape": (references, "gpt_step", shape),
        "floor, a group a thread": (ours, "group_products", shape),
        "floor, the whole batch": (ours, "batch_products", shape),
    }


def main():
    """Print time and memory for each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=turns.count, default=20, help="turns of each (default: 20)")
    options = parser.parse_args()
    for batch, sequence in SHAPES:
        with turns.together(specifications(batch, sequence)) as contestants:
            seconds, memory = turns.take(contestants, options.turns)
        floor = min((name for name in seconds if name.startswith("floor")), key=lambda name: np.median(seconds[name]))
        goals = GOALS | {floor: FLOOR_GOAL}
        print(turns.table(f"training step, {batch} x {sequence} tokens", "minimoe", seconds, goals))
        print(f"(the faster floor, and so the one that counts: {floor.removeprefix('floor, ')})\n")
        print(f"{'peak memory above that of a tiny model':<44}{'MB':>9}{'ratio to it':>13}  goal")
        for name in ("minimoe", *GOALS):
            ratio = memory["minimoe"] / memory[name]
            words = "" if name == "minimoe" else f"{ratio:>13.2f}  {turns.verdict(ratio, MEMORY_GOAL)}"
            print(f"{name:<44}{memory[name] / 1e6:>9.1f}{words}")
        print(flush=True)


if __name__ == "__main__":
    main()
