"""The diagrams of README are of real routings: one assignment is dropped, and one slot stays empty."""

import numpy as np

from minimoe.experiments import diagrams
from tests import small


def test_four_files_are_written_and_the_small_routing_has_all_that_a_picture_of_dispatch_must_show(here):
    written = [f"figures/{name}.png" for name in ("block", "block-dark", "dispatch", "dispatch-dark")]
    assert small.printed(diagrams.figure) == f"wrote {', '.join(written)}"
    assert all((here / path).stat().st_size > 10_000 for path in written)
    routing = diagrams.small_routing()  # C = 1.0 * 2 * 4 / 4 = 2
    assert routing.capacity == 2 and (~routing.kept_A).sum() == 1 and (routing.kept_count_E == [2, 2, 2, 1]).all()
    np.testing.assert_allclose(routing.gate_A.reshape(4, 2).sum(axis=1), 1)
