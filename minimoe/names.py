"""The names that a configuration can use, and what they stand for: routers, losses, drop orders, presets."""

from typing import NamedTuple


class Router(NamedTuple):
    """What a configuration must know of a router.

    losses: name -> weight of the auxiliary losses that it is trained with if the configuration says nothing.
    options: the fields that it reads and others do not.   top_k: the only K that it knows; None is any.
    soft: whether it mixes tokens instead of assigning them, so that there is no Routing.
    """

    words: str
    losses: dict
    options: tuple = ()
    top_k: int | None = None
    soft: bool = False


ROUTERS = {
    "softmax_topk": Router("softmax over all experts, the top_k best take the token (Mixtral, OLMoE)",
                           dict(balance=0.01, z=0.001), ("renormalize",)),
    "switch": Router("the one best expert, its gate the raw probability; jitter on the router's input (Switch)",
                     dict(balance=0.01), ("jitter",), top_k=1),
    "noisy_topk": Router("the top_k best after trained noise has been added to the scores (Shazeer 2017)",
                         dict(importance=0.1, load=0.1), ("renormalize",)),
    "gshard": Router("the two best, the second at random in proportion to its gate (GShard)",
                     dict(balance=0.01), ("renormalize",), top_k=2),
    "st_moe": Router("the two best, the second if its gate is large enough (ST-MoE)",
                     dict(balance=0.01, z=0.001), ("renormalize",), top_k=2),
    "sigmoid_bias": Router("sigmoid scores; a bias that no gradient moves balances the choice (DeepSeek-V3)",
                           dict(sequence=0.0001), ("renormalize", "bias_rate", "n_groups", "top_groups", "gate_scale")),
    "expert_choice": Router("each expert takes the tokens that it scores highest: looks into the future", {}),
    "sinkhorn": Router("the best of a balanced plan in training, of the scores in evaluation (S-BASE)", {},
                       ("renormalize",)),
    "base": Router("the best assignment of equally many tokens to each expert (BASE)", {}, top_k=1),
    "hash": Router("a fixed map from the token's number to experts: nothing to learn (Hash layers)", {}),
    "random": Router("control: experts by lot", {}),
    "uniform": Router("control: experts in turn, by the token's position", {}),
    "soft": Router("Soft MoE: experts work on weighted means of all tokens: looks into the future", {}, soft=True),
}
"""Name -> what it is.  A name is also a file in moe/routers/ (but for soft); a new router adds it and one line here."""

LOSSES = {
    "balance": "load-balancing loss, load times mean probability (Switch)",
    "z": "router z-loss, the square of the logits' logsumexp (ST-MoE)",
    "importance": "squared variation of the experts' summed gates (Shazeer 2017)",
    "load": "squared variation of the experts' expected loads; needs router noisy_topk (Shazeer 2017)",
    "sequence": "balance loss of each sequence by itself (DeepSeek-V3)",
    "device": "balance loss of groups of experts, one a device (DeepSeekMoE)",
    "entropy": "what the router's entropy lacks of the largest possible, so that it stays unsure",
}
"""Name -> what it is.  Its weight in the objective is the field <name>_coef."""

DROP_ORDERS = {
    "position": "earlier tokens first: causal (Switch, Mixtral ports)",
    "rank": "all first choices, then all second choices (GShard)",
    "priority": "first choices first, and among them the surest tokens (V-MoE)",
    "random": "a random order in training, by position in evaluation",
}
"""Who queues first for an expert whose capacity is too small.  All but "position" let later tokens push out earlier."""

PRESETS = {
    "tiny": (
        dict(d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_hidden=32, n_experts=4, top_k=2, max_sequence=32),
        dict(n_steps=200, batch=8, sequence=32, groups=2, warmup_steps=20, eval_every=50, eval_batches=10,
             checkpoint_every=50)),
    "shakespeare-cpu": (
        dict(d_model=128, n_layers=4, n_heads=4, d_hidden=256, n_experts=8, top_k=2, max_sequence=64),
        dict(n_steps=1000, batch=12, sequence=64, groups=2, learning_rate=2e-3, warmup_steps=50)),
    "tour": (
        dict(d_model=128, n_layers=4, n_heads=4, d_hidden=128, n_experts=8, top_k=2),
        dict(n_steps=600, groups=2, eval_every=60, eval_batches=16, record_every=5)),
    "tour-quick": (
        dict(d_model=32, n_layers=2, n_heads=4, d_hidden=32, n_experts=8, top_k=2),
        dict(n_steps=100, batch=8, groups=2, warmup_steps=10, eval_every=25, eval_batches=4, record_every=2)),
    "lessons": (
        dict(d_model=64, n_layers=3, n_heads=4, d_hidden=32, n_experts=8, top_k=2),
        dict(n_steps=300, groups=2, warmup_steps=40, eval_every=100, eval_batches=16, record_every=5)),
    "routers": (
        dict(d_model=64, n_layers=2, n_heads=4, d_hidden=128, n_experts=4, top_k=1, capacity_factor=1.25),
        dict(n_steps=400, groups=2, warmup_steps=40, eval_every=100, eval_batches=32, record_every=5)),
    "routers-quick": (
        dict(d_model=32, n_layers=2, n_heads=4, d_hidden=64, n_experts=4, top_k=1, capacity_factor=1.25),
        dict(n_steps=20, batch=4, groups=2, warmup_steps=5, eval_every=10, eval_batches=2, record_every=2)),
}
"""Name -> (model fields, training fields) that differ from the defaults."""
