"""One file per router.  Each has

    FACTS: Facts                            what the rest of the program may ask about it: see `moe/facts.py`
    weights(config, std)                    the parameters that it owns
    forward(x_TD, weights, config, tokens, training, rng, replay)  -> Routing, cache
    backward(grad, cache)                   -> dx_TD, dweights
    after_step(weights, count_E, config)    -> the weights that change after an optimizer step; most have none

`grad` is a RoutingGrad: the gradient of the gates from the experts, and of all that the auxiliary losses read.

In token choice each token selects its experts; in expert choice each expert selects its tokens.  For each router: is it
causal (do a token's experts depend only on the token and earlier ones), and what does evaluation do?

    softmax_topk     the K best of a softmax over all experts: Mixtral; OLMoE with raw gates.  Causal; the same
    switch           the single best expert, with jitter on the router's input.  Causal; no jitter
    noisy_topk       the K best of scores with trained noise.  Causal; no noise
    gshard           the two best, the second at random in proportion to its gate.  Causal; the second always
    st_moe           the two best, the second only if its gate is large enough.  Causal; the second if above a fifth
    sigmoid_bias     sigmoid scores, balanced by a bias without a gradient: DeepSeek-V3.  Causal; the same
    expert_choice    the experts choose the tokens.  Not causal; the same, so it cannot generate text
    sinkhorn         the K largest entries of a plan with even loads.  Not causal; the K best scores, which are causal
    base             the best assignment of equally many tokens to each expert.  Not causal; the best score: causal
    hash_layers      a fixed map from the token's number in the vocabulary.  Causal; the same
    random_routing   control: experts at random.  Causal; one fixed draw
    uniform          control: experts round-robin.  Causal; the same

Soft MoE (`moe/soft.py`) mixes all tokens: it is not causal, and the same in evaluation, so it cannot generate text.  A
capacity can break causality too: only the drop order by position is causal.  `python -m minimoe causality` measures it.

Options that several routers share: `n_shared_experts` experts that every token uses, `finer` M (M times as many
experts, M times narrower), `first_dense_layers`, `moe_every`.  `sigmoid_bias` can restrict a token's experts to
`top_groups` of `n_groups` groups.  A group's score is the sum of its two best experts' scores, as in the code of
DeepSeek-V3's checkpoints, or with `group_score` "paper" of its K / top_groups best.  Each router has the auxiliary
losses of its paper, in our units.  The balance loss of `gshard` and `st_moe` counts only first choices, as their
sources do; `balance_first` changes that.  `global_balance` counts over all groups and micro-batches of a step, so that
the loss is that of one large batch.
Cost of forward and backward, 4,096 tokens: at most 3 times softmax_topk, except about 4 for base, and about 20 for Soft
MoE including its experts (`python -m tests.benchmarks.routers`).
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
"""Name in a configuration -> its file in `minimoe.moe`.  A new router needs its file and its line here."""

ROUTERS = {name: import_module(f"minimoe.moe.{page}") for name, page in PAGES.items()}
"""Name -> module."""

POLICIES = {name: page for name, page in ROUTERS.items() if not page.FACTS.soft}
"""The routers that assign tokens to experts, and so return a Routing."""
