"""One training step of minimoe compared with PyTorch: Mixtral of the transformers library, a dense GPT; and its floor.

    python -m tests.benchmarks.against_torch [--turns N] [--alone]

All Mixtrals have the shape of the preset "shakespeare-cpu", and take a step with the balance loss, clipping and AdamW.
The floor is the matrix products of our step alone.  Two threads each.
"""

import numpy as np

from tests.benchmarks import turns

SHAPES = ((12, 64), (32, 128))
GOALS = {"Mixtral, grouped_mm": 0.75, "Mixtral, eager": 0.55}
FLOOR_GOAL = 2.6
MEMORY_GOAL = 1.0


def specifications(batch, sequence, alone):
    """The contestants of one shape.  alone: those that need no PyTorch."""
    shape = dict(batch=batch, sequence=sequence)
    ours, references = "tests.benchmarks.ours", "tests.benchmarks.references"
    return {
        "minimoe": (ours, "step", shape),
        "floor, a group a thread": (ours, "group_products", shape),
        "floor, the whole batch": (ours, "batch_products", shape),
    } | ({} if alone else {
        "Mixtral, grouped_mm": (references, "mixtral_step", shape | dict(experts="grouped_mm")),
        "Mixtral, eager": (references, "mixtral_step", shape | dict(experts="eager")),
        "dense GPT of nanoGPT's shape": (references, "gpt_step", shape),
    })


def main():
    """Print time and memory for each shape."""
    parser = turns.parser(__doc__, turns=20)
    parser.add_argument("--alone", action="store_true", help="only the step and its floor, without PyTorch")
    options = parser.parse_args()
    for batch, sequence in SHAPES:
        with turns.together(specifications(batch, sequence, options.alone)) as contestants:
            seconds, memory = turns.take(contestants, options.turns)
        floor = min((name for name in seconds if name.startswith("floor")), key=lambda name: np.median(seconds[name]))
        goals = GOALS | {floor: FLOOR_GOAL}
        print(turns.table(f"training step, {batch} x {sequence} tokens", "minimoe", seconds, goals))
        print(f"(the faster floor, and so the one that counts: {floor.removeprefix('floor, ')})\n")
        print(f"{'peak memory above that of a tiny model':<44}{'MB':>9}{'ratio to it':>13}  goal")
        for name in ("minimoe", *(() if options.alone else GOALS)):
            ratio = memory["minimoe"] / memory[name]
            words = "" if name == "minimoe" else f"{ratio:>13.2f}  {turns.verdict(ratio, MEMORY_GOAL)}"
            print(f"{name:<44}{memory[name] / 1e6:>9.1f}{words}")
        print(flush=True)


if __name__ == "__main__":
    main()
