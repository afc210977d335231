"""Is a hand-written gradient right?  There are three ways to check it, and a report of the result.

complex step        f(x + ih).imag / h: exact to rounding error, since nothing is subtracted; h = 1e-30, routing live
central difference  (f(x + h) - f(x - h)) / 2h: the textbook method; accurate to 1e-7 while no token changes experts
random direction    one number for a whole model: <gradient, u> compared with the slope along a random u

    numeric      numeric derivatives, and the report of how far a hand-written gradient is from them
    arguments    validation of a caller's arrays, gradients and function
    checks       every operation, and the layer in every setting
    models       whole models: every parameter, one direction, flips
    everything   all checks in one go

A router's choice is discontinuous.  If x + h and x - h choose different experts, the difference measures the jump and
not the gradient: a routing flip, not a wrong gradient.  The complex step never flips, since h leaves the real part as
it is.
"""

from minimoe.gradcheck.checks import (
    OBJECTIVES,
    check_layer,
    check_ops,
    check_pair,
    layer_cases,
)
from minimoe.gradcheck.everything import check_everything
from minimoe.gradcheck.models import (
    SMALL,
    check_direction,
    check_flips,
    check_model,
    flips,
    random_batch,
    random_params,
)
from minimoe.gradcheck.numeric import Report, Row, central_difference, compare, complex_step, error

__all__ = [
    "OBJECTIVES", "SMALL", "Report", "Row", "central_difference", "check_direction", "check_everything", "check_flips",
    "check_layer", "check_model", "check_ops", "check_pair", "compare", "complex_step", "error", "flips",
    "layer_cases", "random_batch", "random_params",
]
