"""The lessons: what each must have and must not have, and that running them again writes the same or nothing."""

import ast
import base64
import json
import re
import signal
from pathlib import Path

import pytest

import minimoe
from minimoe import cli
from minimoe.course import lessons
from tests.unit.test_house import TREES

NOTEBOOKS = {path.stem: json.loads(path.read_text("utf-8")) for path in lessons.find()}
ROOT = Path(minimoe.__file__).parent
PUBLIC = {node.name for tree in TREES.values() for node in ast.walk(tree)
          if isinstance(node, ast.FunctionDef | ast.ClassDef)}

each = pytest.mark.parametrize("name", NOTEBOOKS)


def cells(name, kind):
    """(source, cell) of each cell of a kind."""
    return [("".join(cell["source"]), cell) for cell in NOTEBOOKS[name]["cells"] if cell["cell_type"] == kind]


def outputs(name):
    return [output for _, cell in cells(name, "code") for output in cell["outputs"]]


@each
def test_a_lesson_begins_with_its_question_and_time_asks_before_it_shows_and_folds_its_answers(name):
    text = [source for source, _ in cells(name, "markdown")]
    assert text[0].startswith(f"# {name[:2]} · ") and [*NOTEBOOKS].index(name) + 1 == int(name[:2])
    assert re.search(r"^\*\*.+\?\*\*", text[0], re.MULTILINE), "a question in bold"
    assert int(re.search(r"^\*.*Runs in about (\d+) seconds", text[0], re.MULTILINE)[1]) <= 60
    pictures = sum("image/png" in output.get("data", {}) for output in outputs(name))
    n_words, minutes = len(" ".join(text).split()), int(re.search(r"\*About (\d+) minutes to read", text[0])[1])
    assert n_words <= 2100 and abs(minutes - n_words / 200 - pictures) <= 1  # 200 words a minute, and one per picture
    assert sum("**Before you go on:**" in words for words in text) >= 2
    assert "## Check yourself" in text[-1] and "<details><summary>Answers</summary>" in text[-1]
    last = re.search(r"</details>\n\n\*\*Next:\*\* \[.+\]\((.+)\)$", text[-1].rstrip())
    assert (lessons.FOLDER / last[1]).exists()


@each
def test_a_lesson_is_committed_as_one_run_from_top_to_bottom_that_any_machine_would_write(name):
    code = cells(name, "code")
    assert [cell["execution_count"] for _, cell in code] == list(range(1, len(code) + 1))
    assert "error" not in [output["output_type"] for output in outputs(name)]
    printed = "\n".join("".join(text) for output in outputs(name)
                        for text in (output.get("text", []), output.get("data", {}).get("text/plain", [])))
    assert not re.search(r"0x[0-9a-f]{6,}|Warning|\d(it|step)/s|/(home|tmp|root|Users)/|site-packages", printed)
    import nbformat  # here, since it takes seconds to import

    from minimoe.course import kernel
    text = (lessons.FOLDER / f"{name}.ipynb").read_text("utf-8")
    assert nbformat.writes(kernel.plain(nbformat.reads(text, as_version=4))) + "\n" == text and "widget" not in text
    nbformat.validate(nbformat.reads(text, as_version=4))


@each
def test_every_picture_has_words_for_readers_who_cannot_see_it(name):
    texts = [output["metadata"].get("image/png", {}).get("alt", "") for output in outputs(name)
             if "image/png" in output.get("data", {})]
    assert texts and min(map(len, texts)) >= 20


@each
def test_the_best_picture_of_a_lesson_is_the_one_in_figures(name):
    cover, = (cell for _, cell in cells(name, "code") if "cover" in cell["metadata"].get("tags", []))
    picture, = (output["data"]["image/png"] for output in cover["outputs"] if "image/png" in output.get("data", {}))
    assert (ROOT.parent / f"figures/lesson-{name[:2]}.png").read_bytes() == base64.b64decode(picture)


@each
def test_cells_are_short_and_use_the_library_under_its_own_names(name):
    """Cells tagged `derive` build a formula up, and end by comparing it with the library's."""
    for source, cell in cells(name, "code"):
        assert len(source.split("\n")) <= 32 and max(map(len, source.split("\n"))) <= 110, source
        nodes = list(ast.walk(ast.parse(re.sub(r"^%.*$", "", source, flags=re.MULTILINE))))
        if "derive" in cell["metadata"].get("tags", []):
            assert any(isinstance(node, ast.Assert) for node in nodes), source
        else:
            assert not PUBLIC & {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        renamed = {alias.asname for node in nodes for alias in getattr(node, "names", [])
                   if isinstance(node, ast.Import | ast.ImportFrom)}
        assert renamed <= {None, "np"}


MADE_UP = {"cells": [
    {"cell_type": "markdown", "id": "whatever", "metadata": {}, "source": ["# 01"]},
    {"cell_type": "code", "id": "x", "metadata": {"tags": ["derive"], "collapsed": True}, "execution_count": None,
     "outputs": [], "source": ["import sys\n", "for i in range(3):\n", "    print(i)\n", "    sys.stdout.flush()"]},
    {"cell_type": "code", "id": "y", "metadata": {}, "execution_count": 7, "outputs": [],
     "source": ["import os\n", "set_ = os.environ\n",
                "6 * 7, set_['OPENBLAS_NUM_THREADS'], os.path.isfile(set_['MATPLOTLIBRC'] + '/matplotlibrc')"]},
    {"cell_type": "code", "id": "z", "metadata": {}, "execution_count": None, "outputs": [],
     "source": ["%matplotlib inline\n", f"sys.path.insert(0, {str(ROOT.parent)!r})\n",
                "from minimoe.plots import figures\n", "figures.new_figure(1, 1, 'A title in words')"]}],
    "metadata": {"widgets": {}, "kernelspec": {"name": "mine", "display_name": "mine"}}, "nbformat": 4,
    "nbformat_minor": 5}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with one good lesson and one that fails."""
    monkeypatch.setattr(lessons, "find", lambda names=(), find=lessons.find: find(names, tmp_path))
    (tmp_path / "01_good.ipynb").write_text(json.dumps(MADE_UP), "utf-8")
    (tmp_path / "02_bad.ipynb").write_text(json.dumps(MADE_UP).replace("6 * 7", "1 / 0"), "utf-8")
    return tmp_path


def test_lessons_run_in_place_on_one_thread_again_without_another_byte_and_one_that_fails_is_left(folder):
    path, printed = folder / "01_good.ipynb", []
    before = path.read_bytes()
    assert not lessons.main(["01"], check=True, say=printed.append) and path.read_bytes() == before
    assert lessons.main(["01"], say=printed.append)
    first = path.read_bytes()
    notebook = json.loads(first)
    assert [output["text"] for output in notebook["cells"][1]["outputs"]] == [["0\n", "1\n", "2\n"]]
    assert notebook["cells"][2]["outputs"][0]["data"] == {"text/plain": ["(42, '1', True)"]}
    assert notebook["cells"][3]["outputs"][0]["metadata"] == {"image/png": {"alt": "A title in words."}}
    assert [cell["id"] for cell in notebook["cells"]] == [f"cell-{place}" for place in range(4)]
    assert notebook["cells"][1]["metadata"] == {"tags": ["derive"]}
    assert notebook["metadata"] == NOTEBOOKS["01_what_is_sparse"]["metadata"]
    assert lessons.main(["01"], check=True, say=printed.append) and path.read_bytes() == first
    assert [line.rsplit(", ", 1)[1] for line in printed] == ["different bytes", "written", "the same bytes"]
    before, printed = (folder / "02_bad.ipynb").read_bytes(), []
    assert not lessons.main(["02"], say=printed.append) and (folder / "02_bad.ipynb").read_bytes() == before
    assert "02_bad" in printed[0] and "ZeroDivisionError" in printed[0]


def test_ctrl_c_ends_the_lesson_and_leaves_it_as_it_was(folder, monkeypatch):
    """Ctrl-C is pressed when the first cell begins, whose time is taken then."""
    from minimoe.course import kernel  # here, since it takes seconds to import
    before, handler = (folder / "01_good.ipynb").read_bytes(), signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(kernel.time, "perf_counter", lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        lessons.main(["01"], say=pytest.fail)
    assert (folder / "01_good.ipynb").read_bytes() == before and signal.getsignal(signal.SIGINT) == handler


def test_names_that_no_lesson_has_lessons_without_a_cover_and_folders_without_lessons_are_refused(folder, capsys):
    with pytest.raises(ValueError, match=r"lesson = '07'.*01_good, 02_bad"):
        lessons.main(["01", "07"])
    assert cli.main(["lessons", "07"]) == 2 and "01_good" in capsys.readouterr().err
    with pytest.raises(ValueError, match="01_good.ipynb has 0 pictures.*must be 1"):
        lessons.figure(pytest.fail)
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="no lessons in"):
        lessons.find()


def test_covers_are_written_by_the_program(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lessons.figure(print)
    assert [path.name for path in sorted(Path("figures").iterdir())] == [f"lesson-{n:02}.png" for n in range(1, 12)]


@pytest.mark.parametrize(("good", "status"), [(True, 0), (False, 1)])
def test_the_command_has_the_status_of_the_lessons(monkeypatch, good, status):
    monkeypatch.setattr(lessons, "main", lambda *_: good)
    assert cli.main(["lessons", "03"]) == status
