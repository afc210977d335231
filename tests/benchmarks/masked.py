"""What zeros save in time: a product with a masked matrix, one that skips the zeros, and one with a smaller matrix.

    python -m tests.benchmarks.masked [--turns N]

One thread, float32.  A product of 2,048 rows with a matrix of 512 x 1,024, and the forward pass of a whole model
(preset "shakespeare-cpu", 32 sequences).  Every contestant keeps the same share of the weights.  Times are medians over
turns; ratios are to the dense one, from adjacent turns.
"""

import argparse
import contextlib

import numpy as np

from minimoe import cost, model
from minimoe.config import preset
from minimoe.sparsity import masks, scores, structured
from minimoe.training.threads import workers
from tests.benchmarks import turns

T, D, F, SEQUENCES = 2048, 512, 1024, 32
KEPT = (0.5, 0.1)
PRODUCTS = "dense", "masked", "masked again", "zeros skipped", "columns cut"
MODELS = "dense", "masked", "neurons cut"
GOALS = {"masked": 0.9, "columns cut": 0.9, "neurons cut": 0.9}
"""Of the ratio to the dense one: at least for what is masked, which is no faster, at most for what is cut."""


@contextlib.contextmanager
def product(kind, kept):
    """One matrix product; "zeros skipped" reads only the kept inputs of each output, as a sparse format does."""
    rng = np.random.default_rng(0)
    x_TD, w_DF = rng.standard_normal((T, D), np.float32), rng.standard_normal((D, F), np.float32)
    mask_DF = masks.per_output(scores.magnitude(w_DF), 1 - kept)
    cut_DF, zeroed_DF = np.ascontiguousarray(w_DF[:, :round(F * kept)]), w_DF * mask_DF
    rows = [np.flatnonzero(mask_D) for mask_D in mask_DF.T]
    values = [w_D[own] for w_D, own in zip(w_DF.T, rows, strict=True)]
    x_DT, y_FT = np.ascontiguousarray(x_TD.T), np.empty((F, T), np.float32)

    def skip():
        for f in range(F):
            np.matmul(values[f], x_DT[rows[f]], out=y_FT[f])

    runs = {"dense": lambda: x_TD @ w_DF, "masked": lambda: x_TD @ zeroed_DF, "masked again": lambda: x_TD @ (
        w_DF * mask_DF), "zeros skipped": skip, "columns cut": lambda: x_TD @ cut_DF}
    with workers(1):
        yield {"run": lambda: runs[kind]() is None}


@contextlib.contextmanager
def whole_model(kind, kept):
    """A model's forward pass, in evaluation."""
    config, train_config = preset("shakespeare-cpu")
    params = model.init_params(config)
    tokens_BS = np.random.default_rng(0).integers(0, config.vocab_size, (SEQUENCES, train_config.sequence))
    if kind == "masked":
        mask_of = {name: masks.per_output(scores.magnitude(w), 1 - kept) for name, w in params.items() if w.ndim == 3}
        params = masks.apply(params, mask_of)
    if kind == "neurons cut":
        params, config = smaller(params, config, kept)
    with workers(1):
        yield {"run": lambda: model.forward(params, tokens_BS, config) is None}


def smaller(params, config, kept):
    """The model with a share of the neurons of each expert."""
    mask_EF = np.zeros((config.n_experts, config.d_hidden), bool)
    mask_EF[:, :round(config.d_hidden * kept)] = True
    return structured.shrink(params, config, {"neurons": dict.fromkeys(config.moe_layers, mask_EF)})


def compare(title, build, kinds, kept, n_turns):
    """Print the times of some contestants next to the dense one."""
    specifications = {kind: ("tests.benchmarks.masked", build, dict(kind=kind, kept=kept)) for kind in kinds}
    with turns.together(specifications) as contestants:
        seconds, _ = turns.take(contestants, n_turns)
    print(f"{title:<60}{'ms':>9}{'ratio to dense':>16}{'10-90 %':>16}  goal")
    for kind in kinds:
        low, middle, high = turns.spread(seconds[kind], seconds["dense"])
        goal = turns.verdict(middle, GOALS.get(kind), at_most=kind.endswith("cut"))
        print(f"{kind:<60}{np.median(seconds[kind]) * 1e3:>9.2f}{middle:>16.2f}{f'{low:.2f} to {high:.2f}':>16}"
              f"  {goal}".rstrip())
    print(flush=True)


def main():
    """Print both comparisons for each share of kept weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=turns.count, default=20, help="turns of each (default: 20)")
    options, config = parser.parse_args(), preset("shakespeare-cpu")[0]
    for kept in KEPT:
        _, narrow = smaller(model.init_params(config), config, kept)
        flops = cost.count(narrow).forward_flops / cost.count(config).forward_flops
        compare(f"a product with {kept:.0%} of the weights", "product", PRODUCTS, kept, options.turns)
        compare(f"a model with {kept:.0%} of the experts' neurons, {flops:.0%} of the FLOPs", "whole_model", MODELS,
                kept, options.turns)


if __name__ == "__main__":
    main()
