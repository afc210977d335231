"""Softmax over all experts, then the K best: the router of Mixtral (renormalised gates) and OLMoE (raw gates)."""

from minimoe.moe import gates, routing
from minimoe.moe.facts import Facts, Rule
from minimoe.nn import ops
from minimoe.parameters import Weight

FACTS = Facts(
    summary="softmax over all experts, the top_k best take the token (Mixtral, OLMoE)",
    losses=dict(balance=0.01, z=0.001),
    options=("renormalize",),
    explorer=Rule(),
)


def weights(config, std):
    """One score an expert, linear in the token."""
    return {"w_router_DE": Weight((config.d_model, config.n_experts), std)}


def forward(x_TD, weights, config, tokens, training=False, rng=None, replay=None):
    """Softmax over all experts, keep the K best; the gates are their probabilities, rescaled if the config says so.

        p_TE = softmax(x W);  g_TK = p_TK / sum_K p_TK          [Mixtral, arXiv:2401.04088, sec. 2.1]

    Equal scores go to the expert with the lowest number.  Returns a Routing of K assignments a token, cache.
    """
    logit_TE, linear_cache = ops.linear_forward(x_TD, weights["w_router_DE"])
    prob_TE, softmax_cache = ops.softmax_forward(logit_TE)
    expert_TK = gates.top_k_experts(logit_TE, config.top_k, replay)
    assigned, assign_cache = gates.gates_forward(prob_TE, expert_TK, tokens.mask_T, config.gates_sum_to_one)
    return (routing.dropless_routing(*assigned, logit_TE, prob_TE, tokens),
            (linear_cache, softmax_cache, assign_cache))


def backward(grad, cache):
    """Gradients of x_TD and, as a dict, of the weights.  grad: RoutingGrad."""
    linear_cache, softmax_cache, assign_cache = cache
    dprob_TE = grad.dprob_TE + gates.gates_backward(grad.dgate_A, assign_cache)
    dlogit_TE = grad.dlogit_TE + ops.softmax_backward(dprob_TE, softmax_cache)
    dx_TD, dw_router_DE = ops.linear_backward(dlogit_TE, linear_cache)
    return dx_TD, {"w_router_DE": dw_router_DE}
