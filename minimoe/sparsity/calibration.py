"""The input vectors of each matrix in a block, from a forward pass; Wanda and SparseGPT need them."""

from minimoe import parameters
from minimoe.moe import dense, experts
from minimoe.nn import ops

ATTENTION_INPUTS = "w_q_DHP", "w_k_DGP", "w_v_DGP"


def block_inputs(cache):
    """The inputs of each matrix in a block, in evaluation.

    cache: BlockCache.  The inputs of an expert are the rows that were dispatched to it, and for w_down its hidden rows;
    those of a router are all tokens.  Returns name within the block -> list of [rows, inputs], one for each matrix of
    its stack.
    """
    attended, kind, network = cache.attention, cache.feed_forward.kind, cache.feed_forward.cache
    x_TD = attended.split_q.x.reshape(-1, attended.split_q.x.shape[-1])
    inputs = {f"attention.{name}": [x_TD] for name in ATTENTION_INPUTS}
    inputs["attention.w_o_HPD"] = [attended.merge.x]
    if kind == "dense":
        own = _swiglu_inputs(dense.NAMES, [network])
    else:
        own = _swiglu_inputs(experts.NAMES, _by_expert(network.experts))
    if kind == "moe":
        x_TD = cache.feed_forward_norm.gain_D * cache.feed_forward_norm.unit_TD
        own |= {name: [x_TD] for name in ("w_router_DE", "w_noise_DE")}
        if network.shared is not None:
            own |= parameters.unscope(_swiglu_inputs(dense.NAMES, [network.shared]), "shared.")
    return inputs | parameters.unscope(own, f"{kind}.")


def _by_expert(cache):
    """The SwiGLUCache of each expert; None for experts without rows."""
    return [cache.swiglu.get(e) for e in range(len(cache.count_E))]


def _swiglu_inputs(names, caches):
    gate, up, down = names
    rows = [None if cache is None else cache.x for cache in caches]
    hidden = [None if cache is None else
              ops.silu_gate_forward(cache.x @ cache.w_gate, cache.x @ cache.w_up)[0] for cache in caches]
    return {gate: rows, up: rows, down: hidden}
