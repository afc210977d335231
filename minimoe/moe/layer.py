"""The Mixture-of-Experts layer: five steps, and the five of the way back.

    x_TD -> route -> keep -> dispatch -> experts -> combine -> y_TD
"""

from minimoe.moe import capacity, dispatch, experts, routers


def weights(config, std, out_std):
    """The parameters of one layer: the router's and the experts'."""
    return routers.POLICIES[config.router].weights(config, std) | experts.weights(config, std, out_std)


def moe_forward(x_TD, weights, config, mask_T, training=False, rng=None, replay=None):
    """Send each token to K of E experts and add up their outputs, weighted by their gates.

        y_t = sum over the kept experts e of t of gate_te * SwiGLU_e(x_t)       [Shazeer 2017, arXiv:1701.06538, eq. 1]

    mask_T: False for padding, which is not routed.  training: whether the training capacity and drop order apply.
    rng: for drop_order "random" in training.  replay: for checks alone, a Routing whose decisions (choices and
    slots) are taken over, so that they cannot flip.  Returns (y_TD, Routing), cache.
    """
    factor = config.capacity_factor if training else config.eval_capacity_factor
    order = config.drop_order if training or config.drop_order != "random" else "position"
    policy = routers.POLICIES[config.router]
    routing, route_cache = policy.forward(x_TD, weights, config, mask_T, replay)
    routing, keep_cache = capacity.keep_forward(routing, factor, order, rng, replay)
    rows_ND, dispatch_cache = dispatch.dispatch_forward(x_TD, routing)
    out_ND, experts_cache = experts.experts_forward(rows_ND, weights, routing.kept_count_E)
    y_TD, combine_cache = dispatch.combine_forward(out_ND, routing)
    return (y_TD, routing), (policy, route_cache, keep_cache, dispatch_cache, experts_cache, combine_cache)


def moe_backward(dy_TD, dprob_TE, dlogit_TE, cache):
    """Gradients of x_TD and, as a dict, of the weights.

    dprob_TE, dlogit_TE: what the auxiliary losses want of the router.  A token's gradient has two parts: through the
    experts that worked on it, and through the router that chose them.
    """
    policy, route_cache, keep_cache, dispatch_cache, experts_cache, combine_cache = cache
    dout_ND, dgate_N = dispatch.combine_backward(dy_TD, combine_cache)
    drows_ND, dexperts = experts.experts_backward(dout_ND, experts_cache)
    dx_TD = dispatch.dispatch_backward(drows_ND, dispatch_cache)
    dgate_A = capacity.keep_backward(dgate_N, keep_cache)
    dx_router_TD, drouter = policy.backward(dgate_A, dprob_TE, dlogit_TE, route_cache)
    return dx_TD + dx_router_TD, drouter | dexperts
