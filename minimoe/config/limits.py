"""Which models are impossible, and why: the checks that every ModelConfig must pass."""

import dataclasses

from minimoe.config import fields
from minimoe.moe import capacity, losses, routers
from minimoe.moe.routers import sigmoid_bias


def check_model(config):
    """Raise ValueError with the field, its value and the reason for any value that cannot work."""
    fields.require_counts(config, ("vocab_size", "d_model", "n_layers", "n_heads", "d_hidden", "n_experts", "top_k",
                                   "max_sequence", "moe_every", "n_groups", "top_groups", "n_devices"))
    fields.require_counts(config, ("n_shared_experts", "first_dense_layers"), least=0)
    fields.require_numbers(config, ("rope_theta", "norm_eps", "gate_scale"), positive=True)
    fields.require_numbers(config, ("jitter", "bias_rate"), positive=False)
    fields.check(config, "norm_eps", config.norm_eps <= 1, "must be at most 1: more would swamp the activations")
    check_attention(config)
    check_routing(config)
    check_options(config)
    check_groups(config)
    check_soft(config)
    check_losses(config)


def check_attention(config):
    """The number of heads divides the model width unless d_head is given, and key heads divide the heads."""
    if config.d_head is None:
        fields.check(config, "d_model", config.d_model % config.n_heads == 0,
                     f"must be a multiple of n_heads = {config.n_heads}, unless d_head is given")
        fields.check(config, "d_model", config.head_width % 2 == 0,
                     f"d_model / n_heads = {config.head_width} must be even: rotary embeddings rotate pairs of numbers")
    else:
        fields.require_counts(config, ("d_head",))
        fields.check(config, "d_head", config.d_head % 2 == 0, "must be even: rotary embeddings rotate pairs")
    if config.n_kv_heads is not None:
        fields.require_counts(config, ("n_kv_heads",))
        fields.check(config, "n_kv_heads", config.n_heads % config.n_kv_heads == 0,
                     f"must divide n_heads = {config.n_heads}")
    fields.require_truth(config, "tie_embeddings")


def check_routing(config):
    """Experts exist for every choice, the router can learn from the gates, and capacities and layers make sense."""
    fields.check(config, "top_k", config.top_k <= config.n_experts,
                 f"a token cannot have more experts than there are: n_experts = {config.n_experts}")
    fields.require_name(config, "router", routers.ROUTERS)
    fields.require_name(config, "drop_order", capacity.ORDERS)
    fields.check(config, "renormalize", config.renormalize is None or isinstance(config.renormalize, bool),
                 "must be True, False or None")
    fields.check(config, "renormalize", not (config.renormalize and config.top_k == 1),
                 "with top_k = 1 the only gate would be p / p = 1 whatever the router computes, so the router would "
                 "get no gradient from the task; use renormalize=False (the raw probability) or top_k >= 2")
    for name in ("capacity_factor", "eval_capacity_factor"):
        if getattr(config, name) is not None:
            fields.require_numbers(config, (name,), positive=True)
    fields.check(config, "first_dense_layers", config.first_dense_layers <= config.n_layers,
                 f"there are only n_layers = {config.n_layers}")
    if config.d_dense is not None:
        fields.require_counts(config, ("d_dense",))


def check_options(config):
    """The router supports this K, and uses every option that is set."""
    facts = {name: page.FACTS for name, page in routers.ROUTERS.items()}
    own = facts[config.router]
    fields.check(config, "top_k", own.top_k is None or config.top_k == min(own.top_k, config.n_experts),
                 f"router {config.router!r} always uses {own.top_k}")
    given = [option.name for option in dataclasses.fields(config) if getattr(config, option.name) != option.default]
    for option in given:
        users = [name for name, other in facts.items() if option in other.options]
        fields.check(config, option, not users or config.router in users,
                     f"router {config.router!r} does not use it; it is for {', '.join(users)}")
    fields.check(config, "jitter", config.jitter < 1, "must be below 1, since the factors start at 1 - jitter")


def check_groups(config):
    """The groups in which a token may have experts contain at least K of them."""
    fields.check(config, "n_groups", config.n_experts % config.n_groups == 0,
                 f"must divide n_experts = {config.n_experts}")
    fields.check(config, "top_groups", config.top_groups <= config.n_groups,
                 f"there are only n_groups = {config.n_groups}")
    room = config.top_groups * config.n_experts // config.n_groups
    fields.require_name(config, "group_score", sigmoid_bias.GROUP_SCORES)
    fields.check(config, "top_groups", config.top_k <= room,
                 f"so few groups hold {room} experts, fewer than top_k = {config.top_k}")


def check_soft(config):
    """A router without assignments has no capacity, no empty slots and no shared experts."""
    soft = routers.ROUTERS[config.router].FACTS.soft
    for name in ("capacity_factor", "eval_capacity_factor"):
        fields.check(config, name, not soft or getattr(config, name) is None,
                     f"router {config.router!r} has no assignments to limit")
    fields.require_truth(config, "pad_experts")
    fields.check(config, "pad_experts", not (soft and config.pad_experts),
                 f"router {config.router!r} has no empty slots")
    fields.check(config, "n_shared_experts", not soft or config.n_shared_experts == 0,
                 f"router {config.router!r} uses every expert for every token: all are shared")


def check_losses(config):
    """The coefficients are numbers, and the losses that they belong to can be computed."""
    for name in losses.LOSSES:
        if getattr(config, f"{name}_coef") is not None:
            fields.require_numbers(config, (f"{name}_coef",), positive=False)
    noisy = [name for name, page in routers.ROUTERS.items() if page.FACTS.has_chances]
    fields.check(config, "load_coef", config.router in noisy or not config.load_coef,
                 f"the expected load needs a router with noise, such as {', '.join(noisy)}; router {config.router!r} "
                 "has none")
    fields.check(config, "n_devices", config.n_experts % config.n_devices == 0,
                 f"must divide n_experts = {config.n_experts}")
    fields.check(config, "n_devices", config.n_devices > 1 or not config.device_coef or config.n_experts == 1,
                 "the device loss of a single device is always 1; use 2 or more devices, or device_coef 0")
    fields.require_truth(config, "global_balance")
    fields.check(config, "balance_first", config.balance_first is None or isinstance(config.balance_first, bool),
                 "must be True, False or None")
