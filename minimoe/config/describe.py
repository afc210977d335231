"""A configuration in words: one line for its layers, one for its losses."""


def describe_layers(config):
    """The layers of a model in one line: router, experts, capacity and auxiliary losses."""
    kinds = {kind: config.layer_kinds.count(kind) for kind in dict.fromkeys(config.layer_kinds)}
    layers = " and ".join(f"{count} {kind}" for kind, count in kinds.items())
    if set(kinds) == {"dense"}:
        return f"layers: {layers}, so no router"
    room = "dropless" if config.capacity_factor is None else f"capacity factor {config.capacity_factor:g}"
    shared = f" and {config.n_shared_experts} shared" if config.n_shared_experts else ""
    return (f"layers: {layers}; router {config.router}, {config.top_k} of {config.n_experts} experts of width "
            f"{config.d_hidden} per token{shared}, {room}; auxiliary losses: {describe_losses(config)}")


def describe_masks(train_config):
    """Which weights of a sparse run are zero, and how often that changes."""
    n, every, last = train_config.n_mask_changes, train_config.sparsity_every, train_config.last_mask_step
    times = "never change" if n == 0 else f"change once, at step {last}" if n == 1 else (
        f"change {n} times, every {every} steps up to step {last}")
    return (f"sparsity {train_config.sparsity:g} of attention and feed-forward networks, {train_config.dynamic}: the "
            f"masks {times}")


def describe_losses(config):
    """The auxiliary losses that have a weight, with their weights."""
    return ", ".join(f"{name} {coef:g}" for name, coef in config.loss_coefs.items() if coef > 0) or "none"
