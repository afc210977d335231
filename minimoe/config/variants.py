"""The dense models that an MoE is compared with: the same model with one expert, which is then a dense layer."""

from dataclasses import replace

MOE, DENSE_ACTIVE, DENSE_TOTAL = "MoE", "dense, same active", "dense, same total"
"""Same active: as many parameters as the MoE uses per token.  Same total: as many as the MoE has in all."""


def dense(config, d_hidden):
    """The dense model of a ModelConfig whose hidden layers have width `d_hidden`."""
    return replace(config, n_experts=1, top_k=1, d_hidden=d_hidden)


def active_width(config):
    """Width of the dense layer that does as much work per token as the experts of the token."""
    return config.top_k * config.d_hidden


def total_width(config):
    """Width of the dense layer that has as many parameters as all experts together."""
    return config.n_experts * config.d_hidden
