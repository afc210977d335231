"""The picture of where the time of a step goes, against numbers by hand."""

from minimoe.cost.places import Place
from minimoe.plots import step_time

PLACES = {Place(0, "attention", "forward"): 0.010, Place(0, "experts", "backward"): 0.030,
          Place(1, "experts", "forward"): 0.025, Place(1, "experts", "backward"): 0.005,
          Place(None, "rest", "update"): 0.030}
"""0.1 s: 10 % attention, 60 % experts, 30 % the rest; layer 0 40 %, layer 1 30 %."""


def test_the_figure_stacks_the_parts_of_the_step_and_of_each_layer():
    figure = step_time.time_by_part(PLACES, ("attention", "experts", "rest"), "title")
    axes = {axis.get_label(): axis for axis in figure.axes}
    drawn = {panel: [[(round(bar.get_x(), 9), round(bar.get_width(), 9)) for bar in bars] for bars in axis.containers]
             for panel, axis in axes.items()}
    assert drawn == {
        "step": [[(0, 10)], [(10, 60)], [(70, 30)]],
        "forward": [[(0, 10), (0, 0)], [(10, 0), (0, 25)], [(10, 0), (25, 0)]],
        "backward": [[(0, 0), (0, 0)], [(0, 30), (0, 5)], [(30, 0), (5, 0)]]}
    assert [text.get_text() for text in axes["step"].texts] == ["10%", "experts\n60%", "rest\n30%"]
    assert axes["step"].get_xlabel() == "share of a training step (%), of 100.0 ms on one thread"
    assert axes["forward"].get_xlabel() == "forward pass of each layer (milliseconds)"
    assert axes["forward"].get_xlim() == axes["backward"].get_xlim()
    assert axes["forward"].get_ylim() == (1.5, -0.5)  # layer 0 on top
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["attention", "experts", "rest"]
