"""How a total number of weights is divided among the matrices.  A density is the share of weights kept."""

import math

import numpy as np

from minimoe import require


def uniform(shapes, density):
    """The same density for all matrices.  shapes: name -> shape.  Returns name -> density."""
    _check(shapes, density)
    return dict.fromkeys(shapes, density)


def erdos_renyi(shapes, density, stack=False):
    """Small matrices are denser than large ones: the number of weights per input and output is constant.

        density_l = min(1, eps * (n_in + n_out) / (n_in * n_out))          [SET, arXiv:1707.04780, eq. 1]

    eps is chosen so that the total number of weights is that of the uniform density.  Matrices with a density above 1
    become dense, and eps is computed again for the rest [RigL, arXiv:1911.11134, sec. 3].  The target counts
    floor(size * (1 - density)) zeros in each matrix, as in RigL's code.

    Args:
        shapes: name -> shape, whose last two axes are the inputs and outputs, such as those of an expert's matrix.
        density: of all matrices together, in (0, 1].
        stack: whether leading axes count as inputs and outputs too: (sum of the shape) / (its product), as RigL's ERK
            does for convolutions; a stack of experts is then one large and therefore sparser layer.
    Returns name -> density, each in (0, 1].  Raises ValueError for an impossible density or shape.
    """
    _check(shapes, density)
    size = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(axes) / math.prod(axes) for name, shape in shapes.items()
           for axes in [shape if stack else shape[-2:]]}
    target = sum(n - count_zeros(n, density) for n in size.values())
    dense = set()
    while len(dense) < len(shapes):
        sparse = shapes.keys() - dense
        eps = (target - sum(size[name] for name in dense)) / sum(raw[name] * size[name] for name in sorted(sparse))
        top = max(raw[name] for name in sparse)
        if eps * top <= 1:
            break
        dense |= {name for name in sparse if raw[name] == top}
    return {name: 1.0 if name in dense else eps * raw[name] for name in shapes}


def count_zeros(size, density):
    """Number of zeros of a matrix: floor(size * (1 - density)).  (1 - 0.9 is not quite 0.1, hence the rounding.)"""
    return math.floor(size * round(1 - density, 12))


def random_mask(shape, density, rng):
    """A mask with `count_zeros` zeros at random places.

    rng: numpy.random.Generator.  Raises ValueError as `uniform` does.
    """
    _check({"mask": shape}, density)
    require.generator("rng", rng, optional=False)
    size = math.prod(shape)
    mask = np.ones(size, bool)
    mask[rng.permutation(size)[:count_zeros(size, density)]] = False
    return mask.reshape(shape)


def _check(shapes, density):
    right = "a share of weights, above 0 and at most 1"
    if not require.number("density", density, right, most=1):
        require.fail("density", density, right)
    for name, shape in require.mapping("shapes", shapes).items():
        if np.ndim(shape) != 1 or len(shape) < 2 or not all(isinstance(n, (int, np.integer)) and n > 0 for n in shape):
            raise ValueError(f"shapes[{name!r}] = {shape!r}: must be that of a matrix, or of a stack of matrices")
