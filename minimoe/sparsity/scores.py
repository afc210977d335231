"""The importance of single weights.  Weights with higher scores are kept; no gradient flows through scores."""

import numpy as np

from minimoe import require
from minimoe.nn import ops


def magnitude(w_DF):
    """|w|.  Any shape.  Returns the scores."""
    return np.abs(w_DF)


def wanda(w_DF, x_TD):
    """Magnitude of a weight times the norm of the input that it multiplies, to be compared within each output.

        score_df = |w_df| * ||x_d||_2                       [Sun 2023, arXiv:2306.11695, eq. 1]

    x_TD: calibration, the vectors that w_DF multiplies.  Returns score_DF.
    Raises ValueError if there are no vectors, or they do not have D finite numbers.
    """
    w_DF, x_TD = ops.floats("w_DF", w_DF), ops.floats("x_TD", x_TD)
    check_inputs(w_DF, x_TD)
    return np.abs(w_DF) * np.sqrt(np.square(x_TD).sum(axis=0))[:, None].astype(w_DF.dtype)


def movement(w_DF, dw_DF):
    """The contribution of one step to the score of a weight: high for weights that training moves away from 0.

        score = -sum over steps of dL/dw * w                [Sanh 2020, arXiv:2005.07683, eq. 4, without its rate]

    dw_DF: gradient of the loss, nats per unit of the weight, with the shape of w_DF, which can be any.  Returns the
    step's contribution.  Raises ValueError if the shapes differ.
    """
    return -_product(w_DF, dw_DF)


def taylor(w_DF, dw_DF):
    """The squared change of the loss, to first order, if the weight were 0: (dL/dw * w)^2, nats^2.

                                                            [Molchanov 2019, arXiv:1906.10771, eq. 8]
    The sum over the weights of a neuron or a head is its score.  For the arguments see `movement`.  Returns the scores.
    """
    return np.square(_product(w_DF, dw_DF))


def _product(w_DF, dw_DF):
    w_DF, dw_DF = require.array("w_DF", w_DF), require.array("dw_DF", dw_DF)
    if dw_DF.shape != w_DF.shape:
        raise ValueError(f"dw_DF has shape {dw_DF.shape}: must be {w_DF.shape}, that of w_DF")
    return dw_DF * w_DF


def check_inputs(w_DF, x_TD):
    """Raise ValueError unless there are finite calibration vectors whose width is the number of the matrix's inputs."""
    require.array("w_DF", w_DF, ndim=2)
    if x_TD.ndim != 2 or x_TD.shape[1] != w_DF.shape[0]:
        raise ValueError(f"x_TD has shape {x_TD.shape}: must be [tokens, {w_DF.shape[0]}], the inputs of w_DF "
                         f"{w_DF.shape}")
    if len(x_TD) == 0:
        raise ValueError("x_TD has 0 tokens: calibration needs at least one")
    if not np.isfinite(x_TD).all():
        raise ValueError("x_TD has numbers that are not finite")
