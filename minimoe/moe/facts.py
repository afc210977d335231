"""What the rest of the program may ask about a router.  Each file in `moe/routers`, and `moe/soft.py`, has its FACTS.

So no other file knows a router by name: help, configuration, gradient checks, costs and the explorer all read these.
"""

from collections.abc import Callable
from typing import NamedTuple


class Rule(NamedTuple):
    """How the explorer's page repeats the router's decisions in evaluation, in the few terms that it can compute.

    choice: "best", a token uses the K experts with the highest numbers; "turn", experts round-robin; "experts", the
    experts choose tokens; "recorded", the page shows the recorded choices, since it cannot repeat them.
    numbers: function of (Routing, the layer's weights) that returns the arrays that the page needs besides logits and
    probabilities: choice_TE, by which experts are chosen, tie_TE, which breaks ties, gate_TE, from which gates are
    computed, and any array that `shares` names.
    shares: name of an array of logarithms; renormalized gates are its softmax.  None: they are shares of gate_TE.
    equal_gates: whether all gates are 1/K.   least_share: share that a token's second expert must exceed; None: any.
    chosen_by, gate: in words, what choice_TE is (None: the page has no column for it) and what a gate is computed from.
    """

    choice: str = "best"
    numbers: Callable = lambda routing, weights: {}
    shares: str | None = None
    equal_gates: bool = False
    least_share: float | None = None
    chosen_by: str | None = None
    gate: str = "the probability"


RECORDED = Rule("recorded", gate="what was recorded")


class Facts(NamedTuple):
    """A router, as the rest of the program knows it.

    summary: what it does, in one line.
    losses: name -> weight of the auxiliary losses that it is trained with, unless the configuration sets them.
    options: fields of the configuration that it reads and at least one other router does not.
    first_choices: whether its balance loss counts only first choices, unless the configuration says otherwise.
    settings: name -> fields of additional settings that the gradient checks cover.
    top_k: the only K that it supports; None is any.   k_is_mean: whether a token may have 0 to E experts, K on average.
    soft: whether it mixes tokens instead of assigning them, so that there is no Routing.

    causal: whether a token's experts depend only on the token and earlier ones, in training.
    causal_in_evaluation: the same in evaluation, and so whether the model can generate text.
    needs_token_ids: whether it reads the token's number in the vocabulary.
    evaluation: in words, how evaluation, which is always deterministic, differs from training.
    has_chances: whether its Routing has chance_TE, which the load loss needs.

    matrices: how many D x E matrices it learns.   has_bias: whether it keeps a bias for each expert.
    kept_scores: numbers per token and expert that its forward stores for its backward.
    kept_more: function of (config, T) that returns how many other numbers it stores.
    forward_scores: numbers per token and expert that its forward needs temporarily.
    backward_scores: the largest number of them that its backward holds at one time.

    explorer: the Rule by which the explorer's page repeats its decisions.
    """

    summary: str
    losses: dict = {}
    options: tuple = ()
    first_choices: bool = False
    settings: dict = {}
    top_k: int | None = None
    k_is_mean: bool = False
    soft: bool = False
    causal: bool = True
    causal_in_evaluation: bool = True
    needs_token_ids: bool = False
    evaluation: str = "the same as in training"
    has_chances: bool = False
    matrices: int = 1
    has_bias: bool = False
    kept_scores: int = 2
    kept_more: Callable = lambda config, n_tokens: 0
    forward_scores: int = 1
    backward_scores: int = 2
    explorer: Rule = RECORDED
