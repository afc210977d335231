"""One page per router.  Each has

    FACTS: Facts                            what others may ask about it: see `moe/facts.py`
    weights(config, std)                    the parameters that it owns
    forward(x_TD, weights, config, tokens, training, rng, replay)  -> Routing, cache
    backward(grad, cache)                   -> dx_TD, dweights
    after_step(weights, count_E, config)    -> the weights that change after an optimiser step; most have none

`grad` is a RoutingGrad: the pull of the experts on the gates, and of the auxiliary losses on all that they read.

    softmax_topk     the K best of a softmax over all experts: Mixtral, OLMoE
    switch           the one best expert, with jitter on the router's input
    noisy_topk       the K best of scores with trained noise
    gshard           the two best, the second at random in proportion to its gate
    st_moe           the two best, the second only if its gate is large enough
    sigmoid_bias     sigmoid scores, balanced by a bias that no gradient moves: DeepSeek-V3
    expert_choice    the experts choose the tokens
    sinkhorn         the K best entries of a plan with even loads
    base             the best assignment of equally many tokens to each expert
    hash_layers      a fixed map from the token's number in the vocabulary
    random_routing   control: experts at random
    uniform          control: experts round-robin
"""

from importlib import import_module

PAGES = {
    "softmax_topk": "routers.softmax_topk",
    "switch": "routers.switch",
    "noisy_topk": "routers.noisy_topk",
    "gshard": "routers.gshard",
    "st_moe": "routers.st_moe",
    "sigmoid_bias": "routers.sigmoid_bias",
    "expert_choice": "routers.expert_choice",
    "sinkhorn": "routers.sinkhorn",
    "base": "routers.base",
    "hash": "routers.hash_layers",
    "random": "routers.random_routing",
    "uniform": "routers.uniform",
    "soft": "soft",
}
"""Name in a configuration -> its page in `minimoe.moe`.  A new router needs its page and its line here."""

ROUTERS = {name: import_module(f"minimoe.moe.{page}") for name, page in PAGES.items()}
"""Name -> page."""

POLICIES = {name: page for name, page in ROUTERS.items() if not page.FACTS.soft}
"""Those that assign tokens to experts, and so return a Routing."""
