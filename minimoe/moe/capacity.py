"""Each expert has room for C tokens: in which order tokens queue for it, and which are dropped.

A dropped assignment adds exactly nothing to its token, and the token's other gates are not rescaled.  A token that
all its experts drop passes the layer through the residual connection alone.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from minimoe import require
from minimoe.moe.routing import require_rng


def capacity(n_assignments, n_tokens, n_experts, factor):
    """Slots of an expert: C = clip(ceil(factor * K * T / E), 1, T), with K * T the number of assignments.

    The factor is read as the decimal number that was typed, so 1.1 * 200 / 4 gives 55 slots; rounding error would
    make it 56.  Switch and some ports leave K out; others round down.  A factor of None is dropless: returns None.
    Raises ValueError for a count that is not a whole number of 1 or more, or a factor that is not above 0.
    """
    for name, value, least in (("n_assignments", n_assignments, 0), ("n_tokens", n_tokens, 0),
                               ("n_experts", n_experts, 1)):
        require.whole(name, value, least)
    if factor is None:
        return None
    require.number("factor", factor, "a finite number above 0, or None", least=math.ulp(0))
    exact = math.ceil(Fraction(str(factor)) * n_assignments / n_experts)
    return min(max(exact, 1), max(n_tokens, 1))


def rules(config, training):
    """The capacity factor and the drop order that apply.  Evaluation is deterministic."""
    if training:
        return config.capacity_factor, config.drop_order
    return config.eval_capacity_factor, "position" if config.drop_order == "random" else config.drop_order


def keep_forward(routing, top_k, factor, order, rng=None, replay=None):
    """Give every assignment a slot in its expert's queue, and keep those within the capacity.

    Args:
        routing: a router's output, in which no queue has been formed yet.
        top_k: K, which sets the capacity, even if the router sent some tokens to fewer experts.
        factor: capacity factor; None keeps all.
        order: a name of ORDERS.
        rng: numpy.random.Generator, for order "random".
        replay: a Routing whose slots are used instead.
    Returns a Routing, cache.  Raises ValueError for order "random" without rng.
    """
    # without a limit every order keeps all assignments, and only permutes the rows of an expert
    n_tokens = int(routing.mask_T.sum())
    limit = capacity(top_k * n_tokens, n_tokens, routing.n_experts, factor)
    slot_A = queue(routing, order if limit is not None else "position", rng) if replay is None else replay.slot_A
    kept_A = np.ones(len(slot_A), bool) if limit is None else slot_A < limit
    result = replace(routing, slot_A=slot_A, kept_A=kept_A, capacity=limit)
    return result, result


def keep_backward(dgate_N, cache):
    """Gradient of gate_A from that of the N kept gates, which come in row order; 0 for a dropped assignment."""
    routing = cache
    dgate_A = np.zeros(len(routing.kept_A), dgate_N.dtype)
    dgate_A[routing.kept_N] = dgate_N
    return dgate_A


def queue(routing, order, rng=None):
    """How many assignments to the same expert queue before each one.  order: a name of ORDERS.  Returns slot_A."""
    first_A = ORDERS[order].line_up(routing, rng)
    smallest = np.min_scalar_type(routing.n_experts)  # NumPy sorts small integers by radix, three times faster
    by_expert_A = first_A[np.argsort(routing.expert_A[first_A].astype(smallest), kind="stable")]
    count_E = routing.count_E
    start_E = np.cumsum(count_E) - count_E
    slot_A = np.empty_like(by_expert_A)
    slot_A[by_expert_A] = np.arange(len(by_expert_A)) - np.repeat(start_E, count_E)
    return slot_A


def _by_position(routing, rng):
    return np.argsort(routing.token_A, kind="stable")


def _by_rank(routing, rng):
    return np.lexsort((routing.token_A, routing.rank_A))


def _by_priority(routing, rng):
    surest_T = routing.prob_TE.real.max(axis=1)  # [V-MoE, arXiv:2106.05974, sec. 4: the largest routing weight]
    return np.lexsort((routing.token_A, -surest_T[routing.token_A], routing.rank_A))


def _by_chance(routing, rng):
    return require_rng(rng, "drop_order = 'random'").permutation(len(routing.token_A))


class Order(NamedTuple):
    """The order in which assignments queue for an expert.

    summary: in one line.   line_up: function of (Routing, rng) that returns the assignments in the order of the queue.
    causal: whether no assignment waits behind one of a later token.
    """

    summary: str
    line_up: Callable
    causal: bool = False


ORDERS = {
    "position": Order("earlier tokens first, which is causal (Switch, Mixtral ports)", _by_position, causal=True),
    "rank": Order("all first choices, then all second choices (GShard)", _by_rank),
    "priority": Order("first choices first, and among them the most confident tokens (V-MoE)", _by_priority),
    "random": Order("a random order in training, by position in evaluation", _by_chance),
}
"""Name -> Order."""
