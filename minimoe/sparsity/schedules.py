"""How sparsity rises during training, and how a lottery ticket is rewound to its start."""

from minimoe import require
from minimoe.sparsity import masks


def cubic(step, first_step, last_step, final, initial=0.0):
    """Share of zeros at a step: it rises fast at first, while there is much to spare, then more and more slowly.

        s_t = s_f + (s_i - s_f) * (1 - (t - t0) / (n dt))^3             [Zhu & Gupta 2017, arXiv:1710.01878, eq. 1]

    initial until first_step, final from last_step on.  Raises ValueError unless last_step > first_step.
    """
    for name, number in (("step", step), ("first_step", first_step), ("final", final), ("initial", initial)):
        require.number(name, number)
    if not require.number("last_step", last_step) > first_step:
        require.fail("last_step", last_step, f"above first_step = {first_step}")
    progress = min(max((step - first_step) / (last_step - first_step), 0.0), 1.0)
    return final + (initial - final) * (1 - progress) ** 3


def rewind(start, mask_by_name):
    """A lottery ticket: the kept weights with their initial values; the others are 0.

                                                            [Frankle & Carbin 2019, arXiv:1803.03635, sec. 1]
    start: parameters of step 0, or of an early step.  Returns new parameters.
    """
    return masks.apply(start, mask_by_name)
