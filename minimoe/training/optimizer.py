"""AdamW, its learning rate, and gradient clipping.

Parameters and moments are updated in place, since allocating arrays of the model's size at every step would cost more
than the arithmetic.
"""

import math

import numpy as np

CHUNK = 1 << 16
"""Numbers updated at a time: a chunk's parameters, gradients, moments and scratch fit into the processor's cache."""


def learning_rate(step, config):
    """Linear warm-up to the peak, then half a cosine down to the minimum at the last step.

        lr(t) = min + (peak - min) * (1 + cos(pi * progress)) / 2          [SGDR, arXiv:1608.03983, eq. 5]

    step: 0 for the first.  config: TrainConfig.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / (config.warmup_steps + 1)
    progress = (step - config.warmup_steps) / max(config.n_steps - 1 - config.warmup_steps, 1)
    cosine = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    return config.last_learning_rate + (config.learning_rate - config.last_learning_rate) * cosine


def global_norm(grads):
    """Norm of all gradients taken as one vector."""
    return math.sqrt(sum(float(np.vdot(grad, grad)) for grad in grads.values()))


def start_moments(params):
    """AdamW's two moments, both zero: (mean gradient, mean squared gradient), dicts with the keys of params."""
    return tuple({name: np.zeros_like(array) for name, array in params.items()} for _ in range(2))


def adamw_update(params, grads, moments, step, config, scale=1.0):
    """One step of AdamW with bias correction; the decay is decoupled and applies to matrices, not to gains.

        m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
        w = w - lr * (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay * w)      [arXiv:1711.05101, algorithm 2]

    step: 0 for the first, t = step + 1.  scale: factor on all gradients (clipping).  Updates params and moments.
    """
    lr, t = learning_rate(step, config), step + 1
    bias1, bias2 = 1 - config.beta1 ** t, 1 - config.beta2 ** t
    means, squares = moments
    for name, array in params.items():
        decay = config.weight_decay if array.ndim > 1 else 0.0
        for w, g, m, v in _chunks(array, grads[name], means[name], squares[name]):
            new = g * (scale * (1 - config.beta1))
            m *= config.beta1
            m += new
            new *= new
            new *= (1 - config.beta2) / (1 - config.beta1) ** 2
            v *= config.beta2
            v += new
            root = np.sqrt(v, out=new)
            root += config.adam_eps * math.sqrt(bias2)  # sqrt(v / bias2) + eps, up to a factor
            change = np.divide(m, root, out=root)
            change *= lr * math.sqrt(bias2) / bias1
            w *= 1 - lr * decay
            w -= change


def _chunks(*arrays):
    """Views of the same part of each array, small enough for the cache; whole arrays if they have no flat view."""
    if not all(array.flags.c_contiguous for array in arrays):
        return [arrays]
    flat = [array.reshape(-1) for array in arrays]
    return [[a[start:start + CHUNK] for a in flat] for start in range(0, flat[0].size, CHUNK)]


def clip_scale(norm, limit):
    """Factor that scales gradients of norm `norm` to at most `limit`."""
    return min(1.0, limit / norm) if norm > 0 else 1.0
