"""The feed-forward network that every token uses: a dense layer, or the shared experts next to the routed ones."""

from minimoe.nn import ops
from minimoe.parameters import Weight

NAMES = ("w_gate_DJ", "w_up_DJ", "w_down_JD")


def weights(config, std, out_std, width=None):
    """The parameters of one SwiGLU network.  width: of its hidden layer; None is the configuration's dense width."""
    D, J = config.d_model, width or config.dense_width
    return {"w_gate_DJ": Weight((D, J), std), "w_up_DJ": Weight((D, J), std), "w_down_JD": Weight((J, D), out_std)}


def dense_forward(x_TD, weights):
    """Apply SwiGLU to every token.  Returns y_TD, cache."""
    return ops.swiglu_forward(x_TD, *(weights[name] for name in NAMES))


def dense_backward(dy_TD, cache):
    """Gradients of x_TD and, as a dict, of the weights."""
    dx_TD, *dweights = ops.swiglu_backward(dy_TD, cache)
    return dx_TD, dict(zip(NAMES, dweights, strict=True))
