"""The page's data: the numbers of every router on every text, and the settings of the run."""

import numpy as np

from minimoe import model, parameters
from minimoe.analysis.explorer import rules
from minimoe.moe import capacity, routers
from minimoe.plots import palette

DEFAULT_TEXT = "The cat sat on the mat.\nfor i in range(9):\n    print(i + 1)\n"
"""English, then Python; a context shorter than these 60 characters uses the first part."""

ORDERS = {
    "position": "earlier tokens first",
    "rank": "first choices before second ones",
    "priority": "first choices, most confident first",
}
"""The drop orders of evaluation, in words that fit into a menu."""


def default_texts(tokenizer, config):
    """The text to show if none is given: the model knows its characters, and it fits into the context."""
    known = set(DEFAULT_TEXT) <= set(tokenizer.characters)
    return [(DEFAULT_TEXT if known else tokenizer.characters)[:config.max_sequence]]


def record(params, config, tokenizer, texts, run):
    """The page's data, as a dict for JSON.

    texts: each is a separate sequence, and so a group with its own capacity.  run: the name of the run.
    Raises ValueError for a model without routers, and for a text that is empty, too long or has unknown characters.
    """
    _check_config(config, run)
    factor, order = capacity.rules(config, training=False)
    facts = routers.ROUTERS[config.router].FACTS
    return {
        "run": run, "router": config.router, "words": facts.summary,
        "evaluation": facts.evaluation, "dtype": str(params["embed.w_VD"].real.dtype),
        "n_experts": config.n_experts, "shared": config.n_shared_experts, "rule": rules.as_data(config),
        "top_k": rules.choices_of_k(config), "orders": {
            name: {"short": short, "words": capacity.ORDERS[name].summary} for name, short in ORDERS.items()},
        "settings": {"topK": config.top_k, "factor": None if factor is None else str(factor), "order": order},
        "drop_order": config.drop_order,
        "colors": list(palette.EXPERT_COLORS), "inks": [palette.ink_on(color) for color in palette.EXPERT_COLORS],
        "texts": [_text(params, config, tokenizer, text) for text in texts],
    }


def _check_config(config, run):
    if not config.moe_layers:
        raise ValueError(f"{run} has no layer that assigns tokens to experts: there is nothing to explore")
    if config.n_experts == 1:
        raise ValueError(f"{run} is a dense model (n_experts = 1): every token has the same expert, and there is "
                         "nothing to explore")


def _text(params, config, tokenizer, text):
    """One text with the decisions of each layer's router."""
    if not 1 <= len(text) <= config.max_sequence:
        raise ValueError(f"the text {_short(text)!r} has {len(text)} characters: the model reads 1 to "
                         f"{config.max_sequence}")
    _, routings = model.forward(params, tokenizer.encode(text)[None], config)
    layers = [layer_data(routing, number, parameters.scope(params, f"layers.{number}.moe."), config.router)
              for number, routing in zip(config.moe_layers, routings, strict=True)]
    return {"name": _short(text), "characters": list(text), "layers": layers}


def _short(text):
    return text if len(text) <= 30 else text[:29] + "…"


def layer_data(routing, number, weights, router):
    """The numbers of one layer, as a dict: arrays as nested lists, under the names that `facts.Rule` explains.

    number: of the layer.  weights: the router's.  router: its name.  If the rule needs no choice_TE or gate_TE, the
    page uses logit_TE or prob_TE.  Raises ValueError for numbers that are not finite.
    """
    rule = routers.ROUTERS[router].FACTS.explorer
    arrays = {"logit_TE": routing.logit_TE, "prob_TE": routing.prob_TE} | rule.numbers(routing, weights)
    for name, array_TE in arrays.items():
        if not np.isfinite(array_TE).all():
            raise ValueError(f"layer {number}: {name} of the router has numbers that are not finite: train again, at a "
                             "lower learning rate")
    data = {"layer": number} | {name: numbers(array_TE.real) for name, array_TE in arrays.items()}
    return data | ({"recorded": _assignments(routing)} if rule.choice == "recorded" else {})


def _assignments(routing):
    """Every assignment of the run: token, rank, expert and gate."""
    columns = zip(routing.token_A.tolist(), routing.rank_A.tolist(), routing.expert_A.tolist(),
                  numbers(routing.gate_A.real[None])[0], strict=True)
    return [{"token": t, "rank": k, "expert": e, "gate": gate} for t, k, e, gate in columns]


def numbers(array_TE):
    """Nested lists with the shortest decimals that identify each number of its type.

    As text, 0.1 in float32 is 0.1, not 0.10000000149011612; comparisons of two numbers have the same result as before.
    """
    return [[float(str(number)) for number in row] for row in array_TE]
