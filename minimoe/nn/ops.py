"""The arithmetic of every transformer: each forward pass with its backward pass right below it.

A forward returns its output and a cache.  The backward takes the gradient of the output and the cache, and returns
the gradients in the order of the forward's arguments.  The letters are explained in `minimoe/__init__.py`.  Here T is
any number of rows, and E or F any width; cache fields have no letters where operations on different shapes share them.
"""

from typing import NamedTuple

import numpy as np

from minimoe import require


def floats(name, x):
    """Return a floating point array unchanged, and whole numbers as float64, since their gradient needs fractions.

    Raises ValueError with the name and the dtype for anything else.
    """
    if isinstance(x, np.ndarray) and x.dtype.kind in "fc":
        return x
    x = require.array(name, x)
    return x if x.dtype.kind in "fc" else x.astype(np.float64)


class ProductCache(NamedTuple):
    """The two factors of a matrix product."""

    x: np.ndarray
    w: np.ndarray


def linear_forward(x_TD, w_DF):
    """Matrix product y = x W.  Returns y_TF, cache."""
    x_TD, w_DF = floats("x_TD", x_TD), floats("w_DF", w_DF)
    return x_TD @ w_DF, ProductCache(x_TD, w_DF)


def linear_backward(dy_TF, cache):
    """Gradients of x_TD and w_DF."""
    return dy_TF @ cache.w.T, cache.x.T @ dy_TF  # y = x @ w


def softmax_forward(x_TE, axis=-1):
    """Softmax over one axis, by default the last: p_e = exp(x_e) / sum_i exp(x_i).  Any number of axes.

    The maximum is subtracted first, so that exp cannot overflow; it cancels in the ratio.  An entry of -inf becomes
    exactly 0.
    Returns p_TE, cache.
    """
    x_TE = floats("x_TE", x_TE)
    require.whole("axis", axis, -x_TE.ndim, x_TE.ndim - 1)
    p_TE = x_TE - x_TE.real.max(axis=axis, keepdims=True)
    np.exp(p_TE, out=p_TE)
    p_TE /= p_TE.sum(axis=axis, keepdims=True)
    return p_TE, p_TE


def softmax_backward(dp_TE, cache):
    """Gradient of x_TE.  Adding a constant to a row changes nothing, so each row of the gradient sums to zero."""
    p_TE = cache
    expected_T1 = (dp_TE * p_TE).sum(axis=-1, keepdims=True)
    return p_TE * (dp_TE - expected_T1)  # dp_i/dx_j = p_i (1[i=j] - p_j)


def sigmoid_forward(x_TE):
    """Sigmoid 1 / (1 + exp(-x)).  Both branches are accurate, and exp cannot overflow.  Returns s_TE, cache."""
    x_TE = floats("x_TE", x_TE)
    up_TE = x_TE.real > 0
    e_TE = np.exp(np.where(up_TE, -x_TE, x_TE))
    s_TE = np.where(up_TE, 1, e_TE) / (1 + e_TE)
    return s_TE, x_TE


def sigmoid_backward(ds_TE, cache):
    """Gradient of x_TE.  It does not use s (1 - s), which loses all its digits where s is close to 1."""
    x_TE = cache
    e_TE = np.exp(np.where(x_TE.real > 0, -x_TE, x_TE))
    return ds_TE * e_TE / ((1 + e_TE) * (1 + e_TE))  # ds/dx = sigmoid(x) sigmoid(-x)


def log_sigmoid_forward(x_TE):
    """Logarithm of the sigmoid, -log(1 + exp(-x)): about x where the sigmoid is close to 0.  Returns y_TE, cache."""
    x_TE = floats("x_TE", x_TE)
    up_TE = x_TE.real > 0
    return np.where(up_TE, 0, x_TE) - np.log1p(np.exp(np.where(up_TE, -x_TE, x_TE))), x_TE


def log_sigmoid_backward(dy_TE, cache):
    """Gradient of x_TE: the slope is sigmoid(-x)."""
    x_TE = cache
    return dy_TE * sigmoid_forward(-x_TE)[0]


def softplus_forward(x_TE):
    """Softplus log(1 + exp(x)), a smooth positive ramp; a large x does not overflow.  Returns y_TE, cache."""
    x_TE = floats("x_TE", x_TE)
    up_TE = x_TE.real > 0
    return np.where(up_TE, x_TE, 0) + np.log1p(np.exp(np.where(up_TE, -x_TE, x_TE))), x_TE


def softplus_backward(dy_TE, cache):
    """Gradient of x_TE: the slope is the sigmoid."""
    x_TE = cache
    return dy_TE * sigmoid_forward(x_TE)[0]


class RMSNormCache(NamedTuple):
    """The scaled tokens, what they were scaled by, and the gain."""

    unit_TD: np.ndarray
    scale_T1: np.ndarray
    gain_D: np.ndarray


def rmsnorm_forward(x_TD, gain_D, eps):
    """Scale every token to unit root mean square, then multiply by a learned gain.

        y = gain * x / sqrt(mean_D(x^2) + eps)          [Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4]

    Args:
        x_TD: the tokens.
        gain_D: factor on each number of a scaled token.
        eps: added to the mean square, in the square of x's unit.
    Returns y_TD, cache.
    """
    x_TD, gain_D = floats("x_TD", x_TD), floats("gain_D", gain_D)
    square_T = np.einsum("td,td->t", x_TD, x_TD)  # sums of products, without storing the products
    scale_T1 = 1 / np.sqrt(square_T / x_TD.shape[1] + eps)[:, None]
    unit_TD = x_TD * scale_T1
    return gain_D * unit_TD, RMSNormCache(unit_TD, scale_T1, gain_D)


def rmsnorm_backward(dy_TD, cache):
    """Gradients of x_TD and gain_D.  The scale depends on the whole token, so the part along unit_TD is subtracted."""
    dx_TD = dy_TD * cache.gain_D  # y = gain * unit
    along_T = np.einsum("td,td->t", dx_TD, cache.unit_TD) / cache.gain_D.size
    dx_TD -= cache.unit_TD * along_T[:, None]  # unit = x * scale(x)
    dx_TD *= cache.scale_T1
    return dx_TD, np.einsum("td,td->d", dy_TD, cache.unit_TD)


class SiLUGateCache(NamedTuple):
    """The factors of the gated activation, [rows, hidden] each."""

    gate: np.ndarray
    up: np.ndarray
    sigmoid: np.ndarray


def silu_gate_forward(gate_TF, up_TF):
    """The gated activation h = silu(gate) * up, silu(z) = z * sigmoid(z).          [Shazeer 2020, arXiv:2002.05202]

    The sigmoid is computed as (1 + tanh(z/2)) / 2, which is fast.  It loses digits where it is close to 0, but the
    product with z is then negligible.  Returns h_TF, cache.
    """
    gate_TF, up_TF = floats("gate_TF", gate_TF), floats("up_TF", up_TF)
    sigmoid_TF = 0.5 * gate_TF
    np.tanh(sigmoid_TF, out=sigmoid_TF)
    sigmoid_TF += 1
    sigmoid_TF *= 0.5
    return gate_TF * sigmoid_TF * up_TF, SiLUGateCache(gate_TF, up_TF, sigmoid_TF)


def silu_gate_backward(dh_TF, cache):
    """Gradients of gate_TF and up_TF."""
    silu_TF = cache.gate * cache.sigmoid
    dgate_TF = 1 - cache.sigmoid
    dgate_TF *= silu_TF
    dgate_TF += cache.sigmoid  # d silu/dz = s + z s (1 - s)
    dgate_TF *= cache.up
    dgate_TF *= dh_TF
    silu_TF *= dh_TF  # h = silu(gate) * up
    return dgate_TF, silu_TF


class SwiGLUCache(NamedTuple):
    """The input [rows, width], the cache of the activation, and the three matrices."""

    x: np.ndarray
    activation: SiLUGateCache
    w_gate: np.ndarray
    w_up: np.ndarray
    w_down: np.ndarray


def swiglu_forward(x_TD, w_gate_DF, w_up_DF, w_down_FD):
    """The feed-forward network of today's models: y = (silu(x W_gate) * (x W_up)) W_down.

                                                        [Shazeer 2020, arXiv:2002.05202, eq. 6]
    A dense model has one of these per layer; a Mixture of Experts has E of them.  Returns y_TD, cache.
    """
    x_TD, w_down_FD = floats("x_TD", x_TD), floats("w_down_FD", w_down_FD)
    w_gate_DF, w_up_DF = floats("w_gate_DF", w_gate_DF), floats("w_up_DF", w_up_DF)
    h_TF, activation = silu_gate_forward(x_TD @ w_gate_DF, x_TD @ w_up_DF)
    return h_TF @ w_down_FD, SwiGLUCache(x_TD, activation, w_gate_DF, w_up_DF, w_down_FD)


def swiglu_backward(dy_TD, cache, out=(None, None, None)):
    """Gradients of x_TD, w_gate_DF, w_up_DF and w_down_FD.

    Args:
        dy_TD: gradient of the output.
        cache: SwiGLUCache.
        out: three arrays to write the gradients of the weights to; None makes a new one.
    """
    kept = cache.activation
    h_TF = kept.gate * kept.sigmoid * kept.up  # computed again, which is cheaper than storing it
    dw_down_FD = np.matmul(h_TF.T, dy_TD, out=out[2])
    dgate_TF, dup_TF = silu_gate_backward(dy_TD @ cache.w_down.T, kept)  # y = h @ w_down
    dw_gate_DF = np.matmul(cache.x.T, dgate_TF, out=out[0])
    dw_up_DF = np.matmul(cache.x.T, dup_TF, out=out[1])
    dx_TD = dgate_TF @ cache.w_gate.T  # gate = x @ w_gate
    dx_TD += dup_TF @ cache.w_up.T  # up = x @ w_up
    return dx_TD, dw_gate_DF, dw_up_DF, dw_down_FD


class EmbeddingCache(NamedTuple):
    """The tokens, and the table in which they were looked up."""

    tokens_T: np.ndarray
    w_VD: np.ndarray


def embedding_forward(tokens_T, w_VD):
    """Look up one row per token.  tokens_T: whole numbers in [0, V).  Returns x_TD, cache."""
    tokens_T, w_VD = require.array("tokens_T", tokens_T, "iu"), require.array("w_VD", floats("w_VD", w_VD), ndim=2)
    _check_range("tokens_T", tokens_T, len(w_VD))
    return w_VD[tokens_T], EmbeddingCache(tokens_T, w_VD)


def embedding_backward(dx_TD, cache):
    """Gradient of w_VD (tokens have none).  A repeated token counts each time; `dw[tokens] += dx` counts it once."""
    order_T = np.argsort(cache.tokens_T, kind="stable")
    used, starts = np.unique(cache.tokens_T[order_T], return_index=True)
    dw_VD = np.zeros_like(cache.w_VD)
    dw_VD[used] = np.add.reduceat(dx_TD[order_T], starts, axis=0)  # x = w[tokens]
    return dw_VD


def _check_range(name, tokens_T, n_tokens):
    """Raise ValueError unless all tokens are in [0, n_tokens): NumPy would count a negative one from the end."""
    if tokens_T.size and (tokens_T.min() < 0 or tokens_T.max() >= n_tokens):
        raise ValueError(f"{name} has values from {tokens_T.min()} to {tokens_T.max()}: must be in [0, {n_tokens})")


class CrossEntropyCache(NamedTuple):
    """The model's probabilities, the target tokens, and the weight of each."""

    p_TV: np.ndarray
    target_T: np.ndarray
    weight_T: np.ndarray


def cross_entropy_forward(logit_TV, target_T, weight_T):
    """Weighted mean of -log softmax(logit)[target], in nats per token.

    Args:
        logit_TV: the model's scores for each token.
        target_T: the tokens that actually follow, whole numbers in [0, V).
        weight_T: the weight of each token, sums to 1; 0 for padding.
    Returns the loss, cache.
    """
    logit_TV = require.array("logit_TV", floats("logit_TV", logit_TV), ndim=2)
    target_T = require.array("target_T", target_T, "iu", ndim=1)
    weight_T = require.array("weight_T", weight_T, ndim=1)
    if not len(target_T) == len(weight_T) == len(logit_TV):
        raise ValueError(f"logit_TV, target_T and weight_T have {len(logit_TV)}, {len(target_T)} and {len(weight_T)} "
                         "rows: must have the same number of rows")
    _check_range("target_T", target_T, logit_TV.shape[1])
    rows_T = np.arange(len(target_T))
    shifted_TV = logit_TV - logit_TV.real.max(axis=-1, keepdims=True)
    p_TV = np.exp(shifted_TV)
    sum_T = p_TV.sum(axis=-1)
    loss = weight_T @ (np.log(sum_T) - shifted_TV[rows_T, target_T])
    p_TV /= sum_T[:, None]
    return loss, CrossEntropyCache(p_TV, target_T, weight_T)


def cross_entropy_backward(dloss, cache):
    """Gradient of logit_TV: the predicted probabilities minus the target."""
    dlogit_TV = cache.p_TV.copy()
    dlogit_TV[np.arange(len(dlogit_TV)), cache.target_T] -= 1  # -log p_target = logsumexp(logit) - logit_target
    dlogit_TV *= (dloss * cache.weight_T)[:, None]
    return dlogit_TV
