"""How much a weight counts.  Higher is kept longer; nothing here is a gradient of anything."""

import numpy as np

from minimoe import require
from minimoe.nn import ops


def magnitude(w_DF):
    """|w|.  Any shape.  Returns the scores."""
    return np.abs(w_DF)


def wanda(w_DF, x_TD):
    """Size of a weight times the length of the input that it multiplies, to be compared within each output.

        score_df = |w_df| * ||x_d||_2                       [Sun 2023, arXiv:2306.11695, eq. 1]

    x_TD: calibration, the vectors that w_DF multiplies.  Returns score_DF.
    Raises ValueError if there are no vectors, or not of D numbers that are finite.
    """
    w_DF, x_TD = ops.floats("w_DF", w_DF), ops.floats("x_TD", x_TD)
    check_inputs(w_DF, x_TD)
    return np.abs(w_DF) * np.sqrt(np.square(x_TD).sum(axis=0))[:, None].astype(w_DF.dtype)


def movement(w_DF, dw_DF):
    """What one step adds to the score of a weight: it is high for weights that training drives away from 0.

        score = -sum over steps of dL/dw * w                [Sanh 2020, arXiv:2005.07683, eq. 4, without its rate]

    dw_DF: gradient of the loss, nats per unit of the weight, of the shape of w_DF, which is any.  Returns the step's
    summand.  Raises ValueError if the shapes differ.
    """
    return -_product(w_DF, dw_DF)


def taylor(w_DF, dw_DF):
    """Square of the change of the loss, to first order, if the weight were 0: (dL/dw * w)^2, nats^2.

                                                            [Molchanov 2019, arXiv:1906.10771, eq. 8]
    The sum over a neuron or a head is the neuron's or the head's.  Arguments as of `movement`.  Returns the scores.
    """
    return np.square(_product(w_DF, dw_DF))


def _product(w_DF, dw_DF):
    w_DF, dw_DF = require.array("w_DF", w_DF), require.array("dw_DF", dw_DF)
    if dw_DF.shape != w_DF.shape:
        raise ValueError(f"dw_DF has shape {dw_DF.shape}: must be {w_DF.shape}, that of w_DF")
    return dw_DF * w_DF


def check_inputs(w_DF, x_TD):
    """Raise ValueError unless there are calibration vectors, finite, as wide as the matrix has inputs."""
    require.array("w_DF", w_DF, ndim=2)
    if x_TD.ndim != 2 or x_TD.shape[1] != w_DF.shape[0]:
        raise ValueError(f"x_TD has shape {x_TD.shape}: must be [tokens, {w_DF.shape[0]}], the inputs of w_DF "
                         f"{w_DF.shape}")
    if len(x_TD) == 0:
        raise ValueError("x_TD has 0 tokens: calibration needs at least one")
    if not np.isfinite(x_TD).all():
        raise ValueError("x_TD has numbers that are not finite")
