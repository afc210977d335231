"""What every picture promises: a title, axes with units, its numbers, and nothing outside."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

import minimoe
from tests.unit.plots import pictures

ROOT = Path(minimoe.__file__).parent


def numbers_in(figure):
    """The data of all lines, images, bars, bands and markers, and the ends of the axes."""
    found = []
    for axis in figure.axes:
        found += [line.get_xydata() for line in axis.lines] + [image.get_array() for image in axis.images]
        found += [patch.get_bbox().bounds for patch in axis.patches if isinstance(patch, Rectangle)] + [axis.get_ylim()]
        found += [path.vertices for band in axis.collections for path in band.get_paths()]
        found += [markers.get_offsets() for markers in axis.collections]
    return np.concatenate([np.ravel(np.ma.filled(numbers, np.nan)) for numbers in map(np.ma.asarray, found)])


@pytest.mark.parametrize("name", pictures.TITLED)
def test_a_picture_keeps_what_all_promise(name):
    draw, labels, numbers = pictures.TITLED[name]
    figure = draw("title")
    assert type(figure) is Figure
    titles = [figure.get_suptitle(), *(axis.get_title() for axis in figure.axes)]
    assert titles.count("title") == 1 or name in ("gradient map", "cost shares") and any(titles)
    shown = " | ".join([figure.get_supxlabel(), *(axis.get_xlabel() for axis in figure.axes),
                        *(axis.get_ylabel() for axis in figure.axes)])
    assert [label for label in labels if label not in shown] == []
    found = numbers_in(figure)
    for number in np.concatenate([np.ravel(some) for some in [[], *numbers]]):
        assert np.isclose(found, number, rtol=1e-9, atol=0 if number else 1e-12).any(), number
    if layout := figure.get_layout_engine():
        layout.execute(figure)  # as before it is written, without the ink
    box = figure.get_tightbbox()
    assert min(box.x0, box.y0) > -0.01  # inches
    assert box.x1 < figure.get_figwidth() + 0.01 and box.y1 < figure.get_figheight() + 0.01


@pytest.mark.parametrize("name", pictures.ELEVEN)
def test_more_experts_than_colors_are_told_apart_by_number(name):
    figure = pictures.ELEVEN[name]()
    figure.draw_without_rendering()
    assert set(pictures.words(figure.findobj(Text))) >= set(map(str, range(11)))


def test_every_function_that_draws_is_in_the_table():
    pages = [ast.parse(path.read_text("utf-8")) for path in (ROOT / "plots").rglob("*.py")]
    nodes = [node for page in pages for node in page.body
             if isinstance(node, ast.FunctionDef) and "figures.new_figure(" in ast.unparse(node)]
    functions = [node.name for node in nodes]
    assert [node.name for node in nodes if "@figures.picture" not in ast.unparse(node)] == []
    source = Path(pictures.__file__).read_text("utf-8")
    assert len(functions) == len(pictures.TITLED) and [name for name in functions if f".{name}(" not in source] == []


def test_only_the_palette_spells_colors():
    files = [*ROOT.rglob("*.py"), *(ROOT.parent / "notebooks").glob("*.ipynb")]
    assert [path.name for path in files if re.search(r"#[0-9a-fA-F]{6}\b", path.read_text("utf-8"))] == ["palette.py"]
