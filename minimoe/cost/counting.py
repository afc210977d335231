"""Cost of a batch that really runs: every matrix product records its shapes and its place in the model.

A FLOP is a multiplication or an addition; a multiply-add is two.  Only products of two matrices are counted, as in
papers; a product of vectors, such as a weighted mean of numbers, is not.
"""

import math
from collections import Counter
from typing import NamedTuple

import numpy as np

from minimoe import batches, model, require, terminal
from minimoe.config import ModelConfig
from minimoe.cost import formula, ours, parts, places
from minimoe.moe import dense, experts, soft
from minimoe.nn import attention

FUNCTIONS = {
    "head": ((model, "model"),),
    "attention": ((attention, "attention"),),
    formula.SCORES: ((attention, "attend"),),
    "router": ((soft, "soft"),),
    "experts": ((experts, "experts"),),
    "dense": ((dense, "dense"),),
    "block": (places.BLOCK,),
}
"""Part of a model -> the functions whose products belong to it.  A dense block next to experts is a shared expert."""


class Product(NamedTuple):
    """One matrix product that ran.

    left: shape of the first factor.
    right: shape of the second.
    """

    left: tuple[int, ...]
    right: tuple[int, ...]

    @property
    def flops(self):
        """Two for each multiply-add: 2 * rows * inner * columns, times the batch."""
        return 2 * math.prod(np.broadcast_shapes(self.left[:-2], self.right[:-2])) * math.prod(
            (*self.left[-2:], self.right[-1]))


class CountedArray(np.ndarray):
    """An array that records every matrix product that it, or an array made from it, takes part in."""

    note = None

    def __array_finalize__(self, source):
        """An array made from a counted one records in the same place."""
        self.note = getattr(source, "note", None)

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        """Run the operation on plain arrays; record it if it is a matrix product; pass `note` on to the result."""
        note = next(a.note for a in (*inputs, *(out or ())) if isinstance(a, CountedArray))
        plain = [a.view(np.ndarray) if isinstance(a, CountedArray) else a for a in inputs]
        if out is not None:
            options["out"] = tuple(a.view(np.ndarray) if isinstance(a, CountedArray) else a for a in out)
        result = getattr(ufunc, method)(*plain, **options)
        if ufunc is np.matmul and min(plain[0].ndim, plain[1].ndim) >= 2:
            note(Product(plain[0].shape, plain[1].shape))
        return out[0] if out is not None else counted(result, note)

    def __array_function__(self, function, types, arguments, options):
        """Functions that return plain arrays, such as concatenate, pass `note` on too."""
        result = super().__array_function__(function, types, arguments, options)
        if isinstance(result, (list, tuple)):
            each = [counted(a, self.note) for a in result]
            return type(result)(*each) if hasattr(result, "_fields") else type(result)(each)
        return counted(result, self.note)


def counted(array, note):
    """The array as a CountedArray.  note: a function that is called with each Product."""
    if not isinstance(array, np.ndarray):
        return array
    view = array.view(CountedArray)
    view.note = note
    return view


class Rows(NamedTuple):
    """Numbers of rows of a layer's experts.

    chosen: assignments, before capacity.
    kept: assignments within capacity.
    run: rows computed.
    """

    chosen: int
    kept: int
    run: int


class Cost(NamedTuple):
    """Cost of the forward and the backward pass of one batch.

    parameters: number of parameters of the model.
    work: Place -> FLOPs.
    rows: layer -> Rows, for the layers that have a router.
    tokens: number of tokens in the batch.
    """

    parameters: parts.Parameters
    work: dict
    rows: dict
    tokens: int

    def __str__(self):
        """The FLOPs of each part, as a table, and per token."""
        names = list(dict.fromkeys(place.part for place in self.work))
        rows = [("FLOPs", "forward", "backward"),
                *((part, f"{self.flops('forward', part):,}", f"{self.flops('backward', part):,}") for part in names),
                ("together", f"{self.flops('forward'):,}", f"{self.flops('backward'):,}")]
        return (f"{terminal.table(rows)}\n{self.tokens:,} tokens, {self.training_flops_per_token:,.0f} FLOPs per token")

    def flops(self, way=None, part=None, layer=any):
        """FLOPs of the places with this way, part and layer; None means all."""
        return sum(flops for place, flops in self.work.items() if way in (None, place.way)
                   and part in (None, place.part) and layer in (any, place.layer))

    @property
    def forward_flops(self):
        """FLOPs of the forward pass."""
        return self.flops("forward")

    @property
    def training_flops(self):
        """FLOPs of the forward and the backward pass."""
        return self.flops()

    @property
    def forward_flops_per_token(self):
        """FLOPs of a forward pass, per token."""
        return self.forward_flops / self.tokens

    @property
    def training_flops_per_token(self):
        """FLOPs of a forward and a backward pass, per token."""
        return self.training_flops / self.tokens

    @property
    def padding_flops(self):
        """FLOPs spent on empty slots of experts."""
        return sum(self.flops(part="experts", layer=layer) // max(rows.run, 1) * (rows.run - rows.kept)
                   for layer, rows in self.rows.items())


def count(config, batch=1, sequence=None, groups=1, seed=0):
    """Cost of a training step's forward and backward pass, counted on random tokens and a freshly initialized model.

    Args:
        config: ModelConfig.
        batch: sequences.
        sequence: tokens of each; None is config.max_sequence.
        groups: groups of the batch, see `batches.cut`.
        seed: seed of the parameters, the tokens, and the random choices of training.
    """
    require.record("config", config, ModelConfig)
    sequence = config.max_sequence if sequence is None else require.whole("sequence", sequence, 1)
    require.whole("batch", batch, 1)
    tokens_BS = np.random.default_rng(require.whole("seed", seed)).integers(0, config.vocab_size, (batch, sequence))
    return count_run(model.init_params(config, seed), tokens_BS, config, groups, seed)


def count_run(params, tokens_BS, config, groups=1, seed=0):
    """The Cost of given parameters and tokens.

    Args:
        params: dict of arrays.
        tokens_BS: the batch.
        config: ModelConfig.
        groups: groups of the batch.
        seed: seed of the random choices of training.
    """
    noted, routings = noted_products(params, tokens_BS, config, groups, seed)
    work = Counter()
    for place, product in noted:
        shared = place.part == "dense" and config.layer_kinds[place.layer] == "moe"
        work[place._replace(part="shared experts") if shared else place] += product.flops
    rows = {layer: Rows(*np.sum([_rows(r, config) for r in of_groups], axis=0).tolist())
            for layer, of_groups in zip(config.moe_layers, zip(*routings, strict=True), strict=True)}
    return Cost(parts.parameters(ours.architecture(config)), dict(work), rows, tokens_BS.size)


def _rows(routing, config):
    """Rows chosen, kept, and computed: only the kept ones, or all slots."""
    kept = int(routing.kept_A.sum())
    return len(routing.expert_A), kept, routing.n_experts * routing.n_slots if config.pad_experts else kept


def noted_products(params, tokens_BS, config, groups=1, seed=0):
    """The matrix products of a training step's forward and backward pass, in order.

    For the arguments see `count_run`.  Returns a list of (Place, Product), and the routings of each group.
    """
    noted = []
    with places.watched(config, FUNCTIONS) as here:
        noting = {name: counted(array, lambda product: noted.append((here(), product)))
                  for name, array in params.items()}
        result = batches.gradients(noting, batches.cut(tokens_BS, np.roll(tokens_BS, -1, 1), groups), config,
                                   np.random.default_rng(seed))
    return noted, result.routings


def products(config, batch, sequence, seed=0):
    """The matrix products of a step on random tokens, in one group: a list of Product.

    Args:
        config: ModelConfig.
        batch: sequences.
        sequence: tokens of each.
        seed: seed of the parameters and the tokens.
    """
    tokens_BS = np.random.default_rng(seed).integers(0, config.vocab_size, (batch, sequence))
    noted, _ = noted_products(model.init_params(config, seed), tokens_BS, config, seed=seed)
    return [product for _, product in noted]
