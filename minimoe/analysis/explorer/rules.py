"""How each router decides in evaluation, in the few terms that the page can compute: see `facts.Rule`."""

from minimoe.moe import routers


def as_data(config):
    """The rule of a configuration as a dict for the page: its router's rule, and the fields that this needs."""
    facts = routers.ROUTERS[config.router].FACTS
    rule = facts.explorer
    return {"choice": rule.choice, "equal_gates": rule.equal_gates, "least_share": rule.least_share,
            "shares": rule.shares, "chosen_by": rule.chosen_by, "gate": rule.gate,
            "renormalize": "renormalize" in facts.options and config.renormalize is not False,
            "scale": config.gate_scale, "n_groups": config.n_groups, "top_groups": config.top_groups,
            "group_score": config.group_score}


def choices_of_k(config):
    """The values of K that the page offers: least, most, and why not others, in words; "" where E is the reason."""
    facts = routers.ROUTERS[config.router].FACTS
    if facts.top_k is not None or facts.explorer.choice == "recorded":
        reason = (f"fixed: router {config.router} always uses {config.top_k}" if facts.top_k is not None
                  else f"fixed: this page does not know how router {config.router} chooses")
        return {"least": config.top_k, "most": config.top_k, "why": reason}
    room = config.top_groups * config.n_experts // config.n_groups
    reasons = [f"at most {room}: a token's experts are in {config.top_groups} of {config.n_groups} groups"
               ] * (room < config.n_experts)
    reasons += ["at least 2: one gate, scaled to sum to 1, would always be 1"] * bool(config.renormalize)
    return {"least": 2 if config.renormalize else 1, "most": room, "why": "; ".join(reasons)}
