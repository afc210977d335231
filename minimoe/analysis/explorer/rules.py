"""How each router decides in evaluation, in the few terms that the page's arithmetic knows."""

from collections.abc import Callable
from typing import NamedTuple

from minimoe import names
from minimoe.moe.routers import gshard, hash_layers, sigmoid_bias, st_moe
from minimoe.nn import ops


class Rule(NamedTuple):
    """What a router does with its numbers.

    choice: "best", a token takes the K experts with the highest numbers; "turn", experts in turn; "experts", the
    experts take tokens; "recorded", what the run did stands, since the page cannot do it again.
    numbers: function of (Routing, the layer's weights) for the arrays that the page needs beside logits and
    probabilities: choice_TE, by which experts are chosen, and gate_TE, from which gates come.
    equal_gates: whether all gates are 1/K.   least_share: what a token's second expert must exceed; None is nothing.
    chosen_by, gate: in words, what choice_TE is (None: the page has no column for it) and what a gate comes from.
    """

    choice: str = "best"
    numbers: Callable = lambda routing, weights: {}
    equal_gates: bool = False
    least_share: float | None = None
    chosen_by: str | None = None
    gate: str = "the probability"


def _scores(routing):
    return ops.sigmoid_forward(routing.logit_TE.real)[0]


def _biased(routing, weights):
    score_TE = _scores(routing) + sigmoid_bias.LEAST_SCORE
    return {"choice_TE": score_TE + weights["bias_E"].real, "gate_TE": score_TE}


SIGMOID = "the sigmoid of the score"

RULES = {
    "softmax_topk": Rule(),
    "switch": Rule(),
    "noisy_topk": Rule(),
    "gshard": Rule(least_share=gshard.LEAST),
    "st_moe": Rule(least_share=st_moe.THRESHOLD),
    "sinkhorn": Rule(),
    "sigmoid_bias": Rule(numbers=_biased, chosen_by="sigmoid + bias", gate=SIGMOID),
    "base": Rule(numbers=lambda routing, weights: {"gate_TE": _scores(routing)}, gate=SIGMOID),
    "hash": Rule(numbers=lambda routing, weights: {
        "choice_TE": hash_layers.mixed(routing.tokens.id_T, routing.n_experts)},
        equal_gates=True, chosen_by="lot of the character"),
    "random": Rule(numbers=lambda routing, weights: {
        "choice_TE": hash_layers.mixed(routing.tokens.position_T, routing.n_experts)},
        equal_gates=True, chosen_by="lot of the place"),
    "uniform": Rule("turn", equal_gates=True),
    "expert_choice": Rule("experts"),
}
"""Name of a router -> its Rule."""

RECORDED = Rule("recorded", gate="what was recorded")


def of(router):
    """The Rule of a router; one that the page does not know keeps what it did."""
    return RULES.get(router, RECORDED)


def as_data(config):
    """The rule of a configuration as a dict for the page: that of its router, and the fields that it reads."""
    rule, router = of(config.router), names.ROUTERS[config.router]
    return {"choice": rule.choice, "equal_gates": rule.equal_gates, "least_share": rule.least_share,
            "chosen_by": rule.chosen_by, "gate": rule.gate,
            "renormalise": "renormalize" in router.options and config.renormalize is not False,
            "scale": config.gate_scale, "n_groups": config.n_groups, "top_groups": config.top_groups}


def choices_of_k(config):
    """The values of K that the page offers: least, most, and in words why not others, or "" where E is the reason."""
    router, rule = names.ROUTERS[config.router], of(config.router)
    if router.top_k is not None or rule.choice == "recorded":
        reason = (f"fixed: router {config.router} always takes {config.top_k}" if router.top_k is not None
                  else f"fixed: this page does not know how router {config.router} chooses")
        return {"least": config.top_k, "most": config.top_k, "why": reason}
    room = config.top_groups * config.n_experts // config.n_groups
    reasons = [f"at most {room}: a token's experts are in {config.top_groups} of {config.n_groups} groups"
               ] * (room < config.n_experts)
    reasons += ["at least 2: one gate, scaled to sum to 1, would always be 1"] * bool(config.renormalize)
    return {"least": 2 if config.renormalize else 1, "most": room, "why": "; ".join(reasons)}
