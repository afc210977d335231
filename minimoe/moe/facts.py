"""What others may ask about a router.  Each page of `moe/routers`, and `moe/soft.py`, answers once, in its FACTS.

So no other file knows a router by name: help, configuration, gradient checks, costs and the explorer all read here.
"""

from collections.abc import Callable
from typing import NamedTuple


class Rule(NamedTuple):
    """How the explorer's page decides again, in evaluation, what the router decided; in the few terms it can compute.

    choice: "best", a token takes the K experts with the highest numbers; "turn", experts round-robin; "experts", the
    experts take tokens; "recorded", what the run did stands, since the page cannot do it again.
    numbers: function of (Routing, the layer's weights) for the arrays that the page needs besides logits and
    probabilities: choice_TE, by which experts are chosen, tie_TE, which decides where they are equal, gate_TE, from
    which gates come, and any that `shares` names.
    shares: the array of logarithms of which renormalized gates are a softmax; None: they are shares of gate_TE.
    equal_gates: whether all gates are 1/K.   least_share: what a token's second expert must exceed; None is nothing.
    chosen_by, gate: in words, what choice_TE is (None: the page has no column for it) and what a gate comes from.
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
    options: fields of the configuration that it reads and some other router does not.
    first_choices: whether its balance loss counts first choices alone, unless the configuration says otherwise.
    settings: name -> fields with which the gradient checks set it up once more.
    top_k: the only K that it knows; None is any.   k_is_mean: whether a token may have 0 to E experts, K on average.
    soft: whether it mixes tokens instead of assigning them, so that there is no Routing.

    causal: whether, in training, a token's experts depend on itself and earlier tokens alone.
    causal_in_evaluation: the same of evaluation, and so whether text can be generated with it.
    needs_token_ids: whether it reads the token's number in the vocabulary.
    evaluation: in words, how evaluation differs from training; it is never left to chance.
    has_chances: whether its Routing has chance_TE, which the load loss needs.

    matrices: how many matrices of D x E it learns.   has_bias: whether it keeps a bias for each expert.
    kept_scores: numbers per token and expert that its forward keeps for its backward.
    kept_more: function of (config, T): the other numbers that it keeps.
    forward_scores: numbers per token and expert that its forward makes and drops again.
    backward_scores: those that its backward holds at its fullest moment.

    explorer: the Rule by which the explorer's page repeats it.
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
