"""The Mixture-of-Experts layer: five steps forward, and the same five backward.

    x_TD -> route -> keep -> dispatch -> experts -> combine -> y_TD
"""

from types import ModuleType
from typing import NamedTuple

from minimoe import parameters
from minimoe.moe import capacity, dense, dispatch, experts, routers
from minimoe.moe.routing import Routing


def weights(config, std, out_std):
    """The parameters of one layer: of the router, of the experts, and of the shared experts if there are any."""
    own = routers.POLICIES[config.router].weights(config, std) | experts.weights(config, std, out_std)
    if config.n_shared_experts == 0:
        return own
    shared = dense.weights(config, std, out_std, config.n_shared_experts * config.d_hidden)
    return own | parameters.unscope(shared, "shared.")


class MoECache(NamedTuple):
    """The router's module, and the cache of each step.  shared: None without shared experts."""

    policy: ModuleType
    route: tuple
    keep: Routing
    dispatch: Routing
    experts: experts.ExpertsCache
    combine: dispatch.CombineCache
    shared: tuple | None


def moe_forward(x_TD, weights, config, tokens, training=False, rng=None, replay=None):
    """Send each token to K of E experts and add up their outputs, weighted by their gates.

        y_t = sum over the kept experts e of t of gate_te * SwiGLU_e(x_t)       [Shazeer 2017, arXiv:1701.06538, eq. 1]

    Args:
        x_TD: the normalized tokens.
        weights: name -> array, those of `weights`.
        config: ModelConfig.
        tokens: Tokens, which describes the tokens.
        training: whether the noise, capacity and drop order of training apply.
        rng: numpy.random.Generator, for routers with noise and drop_order "random", in training.
        replay: for checks only: a Routing whose decisions (choices and slots) are reused, so that they cannot flip.
    Returns (y_TD, Routing), cache.
    """
    factor, order = capacity.rules(config, training)
    policy = routers.POLICIES[config.router]
    routing, routed = policy.forward(x_TD, weights, config, tokens, training, rng, replay)
    routing, kept = capacity.keep_forward(routing, config.top_k, factor, order, rng, replay)
    rows_ND, dispatched = dispatch.dispatch_forward(x_TD, routing)
    n_slots = routing.n_slots if config.pad_experts else None
    out_ND, worked = experts.experts_forward(rows_ND, weights, routing.kept_count_E, n_slots)
    y_TD, combined = dispatch.combine_forward(out_ND, routing)
    shared = None
    if config.n_shared_experts > 0:  # every token uses them, without a gate     [DeepSeekMoE, arXiv:2401.06066, sec. 3]
        always_TD, shared = dense.dense_forward(x_TD, parameters.scope(weights, "shared."))
        y_TD = y_TD + always_TD
    return (y_TD, routing), MoECache(policy, routed, kept, dispatched, worked, combined, shared)


def moe_backward(dy_TD, grad, cache):
    """Gradients of x_TD and, as a dict, of the weights.

    Args:
        dy_TD: gradient of the output.
        grad: RoutingGrad, the gradients of the auxiliary losses with respect to the Routing.
        cache: MoECache.
    A token's gradient has two parts: through the experts that processed it, and through the router that chose them.
    """
    dout_ND, dgate_N = dispatch.combine_backward(dy_TD, cache.combine)
    drows_ND, dexperts = experts.experts_backward(dout_ND, cache.experts)
    dx_TD = dispatch.dispatch_backward(drows_ND, cache.dispatch)
    dgate_A = capacity.keep_backward(dgate_N, cache.keep)
    dx_router_TD, drouter = cache.policy.backward(grad._replace(dgate_A=grad.dgate_A + dgate_A), cache.route)
    dx_TD = dx_TD + dx_router_TD
    if cache.shared is not None:
        dx_shared_TD, dshared = dense.dense_backward(dy_TD, cache.shared)
        return dx_TD + dx_shared_TD, drouter | dexperts | parameters.unscope(dshared, "shared.")
    return dx_TD, drouter | dexperts
