"""Which models the comparison of kinds of sparsity trains, and for how long: all spend the same training FLOPs.

FLOPs are those of the papers' formulas, for a machine that skips zeros; so a run with 90 % zero weights has more steps.
A model that is pruned or upcycled spends three quarters of the FLOPs on a dense model.  Then it is converted, and the
rest is spent on training the result.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from minimoe.config import ModelConfig
from minimoe.cost import sparse
from minimoe.experiments import engine
from minimoe.experiments.engine import Start, Variant
from minimoe.sparsity import upcycling
from minimoe.training import loop, pruned

SPARSITIES = 0.5, 0.75, 0.9
DENSE, SMALLER, SOURCE = "dense", "smaller dense", "dense, to be changed"
SOURCE_SHARE = 0.75
"""The dense model's share of the training FLOPs of a pruned or upcycled model."""
DYNAMIC = {"static": "static", "SET": "set", "RigL": "rigl", "gradual": "gradual"}
"""Family -> `TrainConfig.dynamic`."""
PRUNED = {"Wanda": "wanda", "SparseGPT": "sparsegpt"}
"""Family -> method of `cuts`, for masks."""
UPCYCLED = dict(n_experts=4, top_k=2)
CHANGES = 30
"""How often the masks of a run would change if they changed until its end."""


class Row(NamedTuple):
    """A model of the table.

    options: fields of its TrainConfig.   sparsity: final share of zeros.   make: converts the dense model into it, see
    `engine.Start`; None: it is trained from the start.   method: of pruning, for its FLOPs.
    """

    label: str
    config: ModelConfig
    options: dict = {}
    sparsity: float = 0.0
    make: Callable | None = None
    method: str | None = None


class Plan(NamedTuple):
    """The table of variants, and the FLOPs that each spends.

    variants: label -> Variant.   spent: label -> FLOPs of its whole training, including the dense model that it starts
    from.   budget: the FLOPs that each may spend.
    """

    variants: dict
    spent: dict
    budget: float


def plan(model, training):
    """The Plan around a dense model.

    model: ModelConfig, dense.   training: TrainConfig of the dense run, whose FLOPs are the budget.
    """
    tokens = training.batch * training.sequence * training.accumulate
    budget = 3 * sparse.sparse_flops(model, 0)[0] * tokens * training.n_steps
    found, spent = {}, {}
    for row in rows(model):
        start, before, share = None, 0.0, SOURCE_SHARE if row.label == SOURCE else 1
        if row.make is not None:
            start = Start(SOURCE, row.make)
            before = spent[SOURCE] + sparse.pruning_flops(model, row.method, pruned.CALIBRATION * training.sequence)
        run, flops = _fitted(row, training, (share * budget - before) / tokens)
        found[row.label] = Variant(row.config, run, folder(row.label), start)
        spent[row.label] = before + flops * tokens
    return Plan(found, spent, budget)


def rows(model):
    """The table of Rows: dense models, models trained from the start, and models made from the dense one."""
    found = [Row(DENSE, model), *(Row(f"{SMALLER}, {s:.0%}", smaller(model, s)) for s in SPARSITIES),
             Row("MoE, 2 of 8", replace(model, n_experts=8, top_k=2, d_hidden=max(model.d_hidden // 2, 1)))]
    found += [Row(f"{family}, {s:.0%}", model, {"sparsity": s, "dynamic": dynamic}, s)
              for family, dynamic in DYNAMIC.items() for s in SPARSITIES]
    found.append(Row(SOURCE, model))
    found += [Row(f"{family}, {s:.0%}", model, {}, s, functools.partial(prune, method=method, sparsity=s), method)
              for family, method in PRUNED.items() for s in SPARSITIES]
    found.append(Row("2:4, SparseGPT", model, {}, 0.5, functools.partial(prune, method="sparsegpt", pattern=(2, 4)),
                     "sparsegpt"))
    found += [Row(f"neurons, {s:.0%}", replace(model, d_hidden=model.d_hidden - int(model.d_hidden * s)), {}, 0.0,
                  functools.partial(prune, method="neurons", sparsity=s), "neurons") for s in SPARSITIES]
    return [*found, Row("upcycled, 2 of 4", replace(model, **UPCYCLED), make=upcycle)]


def folder(label):
    """The folder of a label's runs."""
    return engine.slug(label.replace("%", "").replace(":", " of "))


def _fitted(row, training, flops):
    """The TrainConfig that spends about this many FLOPs per token of a batch; and what it really spends."""
    dense, left = sparse.sparse_flops(row.config, row.sparsity)
    n_steps = training.n_steps
    for _ in range(4):  # the mean sparsity of a gradual run depends slightly on its length
        run = of_length(training, n_steps, row.options)
        step = 3 * left if row.make else sparse.training_flops(dense, left, run)
        n_steps = max(round(flops / step), 1)
    return of_length(training, n_steps, row.options), n_steps * step


def of_length(training, n_steps, options):
    """The TrainConfig of a run of this many steps: a tenth is the warm-up, and the only evaluation is at the end."""
    return replace(training, n_steps=n_steps, warmup_steps=n_steps // 10, eval_every=n_steps,
                   sparsity_every=max(n_steps // CHANGES, 2), **options)


def smaller(model, sparsity):
    """A narrower dense model whose matrices have about as many weights as remain in the sparse model."""
    step = 2 * model.n_heads  # a head has an even width
    width = max(round(model.d_model * (1 - sparsity) ** 0.5 / step), 1) * step
    return replace(model, d_model=width, d_hidden=max(round(model.d_hidden * width / model.d_model), 1))


def prune(state, training, corpus, **options):
    """The run that starts from a pruned model."""
    return pruned.prune(state, corpus, training=training, **options)[0]


def upcycle(state, training, corpus):
    """The run that starts from an upcycled model."""
    params, config = upcycling.upcycle(state.params, state.model_config, seed=training.seed, **UPCYCLED)
    new = loop.new_state(config, training, corpus, params)
    new.rng = copy.deepcopy(state.rng)  # the order of the data continues
    return new
