"""The arithmetic that every transformer has: each forward with its backward under it.

A forward returns its output and a cache; the backward takes the gradient of the output and the cache, and returns
gradients in the order of the forward's arguments.  Letters are explained in `minimoe/__init__.py`; T is any number of
rows here, and E or F any width.
"""

import numpy as np


def linear_forward(x_TD, w_DF):
    """Matrix product y = x W.  Returns y_TF, cache."""
    return x_TD @ w_DF, (x_TD, w_DF)


def linear_backward(dy_TF, cache):
    """Gradients of x_TD and w_DF."""
    x_TD, w_DF = cache
    return dy_TF @ w_DF.T, x_TD.T @ dy_TF  # y = x @ w


def softmax_forward(x_TE):
    """Softmax over the last axis, p_e = exp(x_e) / sum_i exp(x_i).  Any number of leading axes.

    The maximum comes off first, since exp overflows; it cancels in the ratio.  An entry of -inf gets exactly 0.
    Returns p_TE, cache.
    """
    p_TE = x_TE - x_TE.real.max(axis=-1, keepdims=True)
    np.exp(p_TE, out=p_TE)
    p_TE /= p_TE.sum(axis=-1, keepdims=True)
    return p_TE, p_TE


def softmax_backward(dp_TE, cache):
    """Gradient of x_TE.  Raising all of a row changes nothing, so each row of the gradient sums to zero."""
    p_TE = cache
    expected_T1 = (dp_TE * p_TE).sum(axis=-1, keepdims=True)
    return p_TE * (dp_TE - expected_T1)  # dp_i/dx_j = p_i (1[i=j] - p_j)


def rmsnorm_forward(x_TD, gain_D, eps):
    """Scale every token to unit root mean square, then by a learned gain.

        y = gain * x / sqrt(mean_D(x^2) + eps)          [Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4]

    eps: added to the mean square, in the square of x's unit.  Returns y_TD, cache.
    """
    scale_T1 = 1 / np.sqrt((x_TD * x_TD).mean(axis=-1, keepdims=True) + eps)
    unit_TD = x_TD * scale_T1
    return gain_D * unit_TD, (unit_TD, scale_T1, gain_D)


def rmsnorm_backward(dy_TD, cache):
    """Gradients of x_TD and gain_D.  The scale depends on all of a token, so its part along unit_TD comes off."""
    unit_TD, scale_T1, gain_D = cache
    dunit_TD = dy_TD * gain_D  # y = gain * unit
    along_T1 = (dunit_TD * unit_TD).mean(axis=-1, keepdims=True)
    dx_TD = scale_T1 * (dunit_TD - unit_TD * along_T1)  # unit = x * scale(x)
    return dx_TD, (dy_TD * unit_TD).sum(axis=0)


def silu_gate_forward(gate_TF, up_TF):
    """The gated activation h = silu(gate) * up, silu(z) = z * sigmoid(z).          [Shazeer 2020, arXiv:2002.05202]

    The sigmoid is written (1 + tanh(z/2)) / 2, which cannot overflow.  Returns h_TF, cache.
    """
    sigmoid_TF = np.tanh(0.5 * gate_TF)
    sigmoid_TF += 1
    sigmoid_TF *= 0.5
    return gate_TF * sigmoid_TF * up_TF, (gate_TF, up_TF, sigmoid_TF)


def silu_gate_backward(dh_TF, cache):
    """Gradients of gate_TF and up_TF."""
    gate_TF, up_TF, sigmoid_TF = cache
    silu_TF = gate_TF * sigmoid_TF
    slope_TF = sigmoid_TF + silu_TF * (1 - sigmoid_TF)  # d silu/dz = s + z s (1 - s)
    return dh_TF * up_TF * slope_TF, dh_TF * silu_TF  # h = silu(gate) * up


def swiglu_forward(x_TD, w_gate_DF, w_up_DF, w_down_FD):
    """The feed-forward block of today's models: y = (silu(x W_gate) * (x W_up)) W_down.

                                                        [Shazeer 2020, arXiv:2002.05202, eq. 6]
    A dense model has one of these a layer; a Mixture of Experts has E of them.  Returns y_TD, cache.
    """
    h_TF, gate_cache = silu_gate_forward(x_TD @ w_gate_DF, x_TD @ w_up_DF)
    return h_TF @ w_down_FD, (x_TD, h_TF, gate_cache, (w_gate_DF, w_up_DF, w_down_FD))


def swiglu_backward(dy_TD, cache):
    """Gradients of x_TD, w_gate_DF, w_up_DF and w_down_FD."""
    x_TD, h_TF, gate_cache, (w_gate_DF, w_up_DF, w_down_FD) = cache
    dh_TF, dw_down_FD = dy_TD @ w_down_FD.T, h_TF.T @ dy_TD  # y = h @ w_down
    dgate_TF, dup_TF = silu_gate_backward(dh_TF, gate_cache)
    dx_TD = dgate_TF @ w_gate_DF.T  # gate = x @ w_gate
    dx_TD += dup_TF @ w_up_DF.T  # up = x @ w_up
    return dx_TD, x_TD.T @ dgate_TF, x_TD.T @ dup_TF, dw_down_FD


def embedding_forward(tokens_T, w_VD):
    """Look up one row a token.  tokens_T: whole numbers in [0, V).  Returns x_TD, cache."""
    return w_VD[tokens_T], (tokens_T, w_VD)


def embedding_backward(dx_TD, cache):
    """Gradient of w_VD (tokens have none).  A token that occurs twice counts twice, which `dw[tokens] += dx` loses."""
    tokens_T, w_VD = cache
    order_T = np.argsort(tokens_T, kind="stable")
    used, starts = np.unique(tokens_T[order_T], return_index=True)
    dw_VD = np.zeros_like(w_VD)
    dw_VD[used] = np.add.reduceat(dx_TD[order_T], starts, axis=0)  # x = w[tokens]
    return dw_VD


def cross_entropy_forward(logit_TV, target_T, weight_T):
    """Weighted mean of -log softmax(logit)[target], in nats per token.

    target_T: whole numbers in [0, V).  weight_T: the weight of each token, sums to 1; 0 for padding.
    Returns the loss, cache.
    """
    rows_T = np.arange(len(target_T))
    shifted_TV = logit_TV - logit_TV.real.max(axis=-1, keepdims=True)
    p_TV = np.exp(shifted_TV)
    sum_T = p_TV.sum(axis=-1)
    loss = weight_T @ (np.log(sum_T) - shifted_TV[rows_T, target_T])
    p_TV /= sum_T[:, None]
    return loss, (p_TV, target_T, weight_T)


def cross_entropy_backward(dloss, cache):
    """Gradient of logit_TV: what the model says minus what came."""
    p_TV, target_T, weight_T = cache
    dlogit_TV = p_TV.copy()
    dlogit_TV[np.arange(len(target_T)), target_T] -= 1  # -log p_target = logsumexp(logit) - logit_target
    dlogit_TV *= (dloss * weight_T)[:, None]
    return dlogit_TV
