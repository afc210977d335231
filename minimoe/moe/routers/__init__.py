"""One file a policy.  Each has

    CAUSAL                 whether, in training, a token's experts depend on itself and earlier tokens alone
    CAUSAL_IN_EVALUATION   the same of evaluation, and so whether text can be generated with it
    NEEDS_TOKEN_IDS        whether it looks at the token's number in the vocabulary
    EVALUATION             in words, what evaluation does otherwise than training; it is never left to chance

    weights(config, std)                    the parameters that it owns
    forward(x_TD, weights, config, tokens, training, rng, replay)  -> Routing, cache
    backward(grad, cache)                   -> dx_TD, dweights
    after_step(weights, count_E, config)    -> the weights that change after an optimiser step; most have none

`grad` is a RoutingGrad: the pull of the experts on the gates, and of the auxiliary losses on all that they read.
"""

from minimoe.moe.routers import (
    base,
    expert_choice,
    gshard,
    hash_layers,
    noisy_topk,
    random_routing,
    sigmoid_bias,
    sinkhorn,
    softmax_topk,
    st_moe,
    switch,
    uniform,
)

POLICIES = {
    "softmax_topk": softmax_topk,
    "switch": switch,
    "noisy_topk": noisy_topk,
    "gshard": gshard,
    "st_moe": st_moe,
    "sigmoid_bias": sigmoid_bias,
    "expert_choice": expert_choice,
    "sinkhorn": sinkhorn,
    "base": base,
    "hash": hash_layers,
    "random": random_routing,
    "uniform": uniform,
}
"""Name -> page."""
