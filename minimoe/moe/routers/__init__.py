"""One page per router.  Each has

    FACTS: Facts                            what others may ask about it: see `moe/facts.py`
    weights(config, std)                    the parameters that it owns
    forward(x_TD, weights, config, tokens, training, rng, replay)  -> Routing, cache
    backward(grad, cache)                   -> dx_TD, dweights
    after_step(weights, count_E, config)    -> the weights that change after an optimizer step; most have none

`grad` is a RoutingGrad: the pull of the experts on the gates, and of the auxiliary losses on all that they read.

Which router is causal (a token's experts depend on itself and earlier tokens alone), and what evaluation does:

    softmax_topk     the K best of a softmax over all experts: Mixtral, and OLMoE with raw gates.  Causal; the same
    switch           the one best expert, with jitter on the router's input.  Causal; no jitter
    noisy_topk       the K best of scores with trained noise.  Causal; no noise
    gshard           the two best, the second at random in proportion to its gate.  Causal; the second always
    st_moe           the two best, the second only if its gate is large enough.  Causal; the second above a fifth
    sigmoid_bias     sigmoid scores, balanced by a bias that no gradient moves: DeepSeek-V3.  Causal; the same
    expert_choice    the experts choose the tokens.  Not causal; the same, so it cannot generate
    sinkhorn         the K best entries of a plan with even loads.  Not causal; the K best scores, which is
    base             the best assignment of equally many tokens to each expert.  Not causal; the best score, which is
    hash_layers      a fixed map from the token's number in the vocabulary.  Causal; the same
    random_routing   control: experts at random.  Causal; one fixed draw
    uniform          control: experts round-robin.  Causal; the same

Soft MoE (`moe/soft.py`) mixes all tokens: not causal, the same in evaluation, so it cannot generate.  A capacity adds
a future of its own: only the drop order by position is causal with one.  `python -m minimoe causality` measures all.

Options that several have: `n_shared_experts` experts that every token uses, `finer` M (M times as many experts, M times
as narrow), `first_dense_layers`, `moe_every`.  `sigmoid_bias` can keep a token's experts in `top_groups` of `n_groups`
groups; a group's score is the sum of its two best experts' scores, as in the code of DeepSeek-V3's checkpoints, or with
`group_score` "paper" of its K / top_groups best.  Each router has the auxiliary losses of its paper, in our units.  The
balance loss of `gshard` and `st_moe` counts first choices alone, as their sources do; `balance_first` chooses.
`global_balance` counts over all groups and micro-batches of a step: the loss is that of one big batch.
Cost of forward and backward, 4,096 tokens: at most 3 times softmax_topk, but base about 4, and Soft MoE about 20 with
its experts (`python -m tests.benchmarks.routers`).
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
