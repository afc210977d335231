"""The lessons: what each must have and must not have, and that running them again writes the same or nothing."""

import ast
import base64
import json
import re
from pathlib import Path

import nbformat
import pytest

import minimoe
from minimoe import cli
from minimoe.course import lessons

PATHS = lessons.find()
NOTEBOOKS = {path.stem: json.loads(path.read_text("utf-8")) for path in PATHS}
ROOT = Path(minimoe.__file__).parent

each = pytest.mark.parametrize("name", NOTEBOOKS)


def cells(name, kind):
    return [cell for cell in NOTEBOOKS[name]["cells"] if cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


def printed(name):
    """All text in the outputs."""
    return "\n".join("".join(text) for cell in cells(name, "code") for output in cell["outputs"]
                     for text in [output.get("text", []), output.get("data", {}).get("text/plain", [])])


def test_there_are_nine_lessons_in_order():
    assert [name[:2] for name in NOTEBOOKS] == [f"{n:02}" for n in range(1, 10)]


@each
def test_a_lesson_begins_with_its_number_its_question_and_its_time(name):
    head = source(NOTEBOOKS[name]["cells"][0])
    assert head.startswith(f"# {name[:2]} · ")
    assert re.search(r"^\*\*.+\?\*\*", head, re.MULTILINE), "a question in bold"
    seconds = re.search(r"\*Runs in about (\d+) seconds", head)
    assert seconds and int(seconds[1]) <= 60


@each
def test_a_lesson_asks_before_it_shows_and_ends_with_questions_whose_answers_are_folded(name):
    text = [source(cell) for cell in cells(name, "markdown")]
    assert sum("**Before you go on:**" in words for words in text) >= 2
    assert "## Check yourself" in text[-1]
    assert "<details><summary>Answers</summary>" in text[-1] and text[-1].rstrip().endswith("</details>")


@each
def test_a_lesson_is_committed_with_the_outputs_of_one_run_from_top_to_bottom(name):
    code = cells(name, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"])
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"])


@each
def test_the_outputs_hold_nothing_that_differs_between_runs_or_machines(name):
    assert not re.search(r"0x[0-9a-f]{6,}|Warning|\d+(\.\d+)?(it|step)/s", printed(name))
    assert not re.search(r"(/home/|/tmp/|/root/|/Users/|site-packages)", printed(name))
    assert "widgets" not in NOTEBOOKS[name]["metadata"] and "widget-view" not in json.dumps(NOTEBOOKS[name])


@each
def test_a_lesson_is_in_the_form_that_running_it_again_writes(name):
    text = (lessons.FOLDER / f"{name}.ipynb").read_text("utf-8")
    assert nbformat.writes(lessons.plain(nbformat.reads(text, as_version=4))) + "\n" == text
    nbformat.validate(nbformat.reads(text, as_version=4))


@each
def test_the_best_picture_of_a_lesson_is_the_one_in_figures(name):
    cover, = (cell for cell in cells(name, "code") if "cover" in cell["metadata"].get("tags", []))
    picture, = (output["data"]["image/png"] for output in cover["outputs"] if "image/png" in output.get("data", {}))
    assert (ROOT.parent / f"figures/lesson-{name[:2]}.png").read_bytes() == base64.b64decode(picture)


def test_covers_are_written_again_by_the_program(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = []
    lessons.figure(said.append)
    assert said == ["wrote figures/lesson-*.png"]
    assert [path.name for path in sorted(Path("figures").iterdir())] == [f"lesson-{n:02}.png" for n in range(1, 10)]


def public_names():
    """Every function and class of minimoe."""
    return {node.name for path in ROOT.rglob("*.py") for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


@each
def test_a_lesson_does_not_write_again_what_the_library_has(name):
    """Cells tagged `derive` build a formula up, and end by comparing it with the library's."""
    for cell in cells(name, "code"):
        tree = ast.parse(re.sub(r"^%.*$", "", source(cell), flags=re.MULTILINE))
        if "derive" in cell["metadata"].get("tags", []):
            assert any(isinstance(node, ast.Assert) for node in ast.walk(tree)), source(cell)
            continue
        defined = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        assert not defined & public_names()


@each
def test_cells_can_be_taken_in_at_a_glance(name):
    for cell in cells(name, "code"):
        lines = source(cell).split("\n")
        assert len(lines) <= 32 and max(map(len, lines)) <= 110, lines[0]


MADE_UP = {"cells": [
    {"cell_type": "markdown", "id": "whatever", "metadata": {}, "source": ["# 01"]},
    {"cell_type": "code", "id": "x", "metadata": {"tags": ["derive"], "collapsed": True}, "execution_count": None,
     "outputs": [], "source": ["import sys\n", "for i in range(3):\n", "    print(i)\n", "    sys.stdout.flush()"]},
    {"cell_type": "code", "id": "y", "metadata": {}, "execution_count": 7, "outputs": [], "source": ["6 * 7"]}],
    "metadata": {"widgets": {}, "kernelspec": {"name": "mine", "display_name": "mine"}}, "nbformat": 4,
    "nbformat_minor": 5}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with one good lesson and one that fails."""
    monkeypatch.setattr(lessons, "find", lambda names=(), find=lessons.find: find(names, tmp_path))
    (tmp_path / "01_good.ipynb").write_text(json.dumps(MADE_UP))
    bad = json.loads(json.dumps(MADE_UP))
    bad["cells"][2]["source"] = ["1 / 0"]
    (tmp_path / "02_bad.ipynb").write_text(json.dumps(bad))
    return tmp_path


def test_a_lesson_is_run_in_place_and_running_it_again_changes_no_byte(folder):
    said = []
    assert lessons.main(["01"], say=said.append)
    first = (folder / "01_good.ipynb").read_bytes()
    notebook = json.loads(first)
    assert [output["text"] for output in notebook["cells"][1]["outputs"]] == [["0\n", "1\n", "2\n"]]
    assert notebook["cells"][2]["outputs"][0]["data"] == {"text/plain": ["42"]}
    assert [cell["id"] for cell in notebook["cells"]] == ["cell-0", "cell-1", "cell-2"]
    assert notebook["cells"][1]["metadata"] == {"tags": ["derive"]} and notebook["metadata"] == lessons.METADATA
    assert lessons.main(["01"], say=said.append)
    assert (folder / "01_good.ipynb").read_bytes() == first
    assert said[0].endswith("written") and said[1].endswith("the same bytes")


def test_a_lesson_runs_on_one_thread(folder):
    notebook = json.loads((folder / "01_good.ipynb").read_text())
    notebook["cells"][2]["source"] = ["import os\n", "os.environ['OPENBLAS_NUM_THREADS']"]
    (folder / "01_good.ipynb").write_text(json.dumps(notebook))
    assert lessons.main(["01"], say=lambda words: None)
    assert json.loads((folder / "01_good.ipynb").read_text())["cells"][2]["outputs"][0]["data"]["text/plain"] == ["'1'"]


def test_a_lesson_without_one_best_picture_is_named(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match="01_good.ipynb has 0 pictures.*must be one"):
        lessons.figure(pytest.fail)


def test_a_lesson_that_fails_is_left_as_it_was_and_told(folder):
    before, said = (folder / "02_bad.ipynb").read_bytes(), []
    assert not lessons.main(["02"], say=said.append)
    assert (folder / "02_bad.ipynb").read_bytes() == before
    assert "02_bad" in said[0] and "ZeroDivisionError" in said[0]


def test_check_writes_nothing_and_tells_what_would_change(folder):
    before, said = (folder / "01_good.ipynb").read_bytes(), []
    assert not lessons.main(["01"], check=True, say=said.append)
    assert (folder / "01_good.ipynb").read_bytes() == before and said[0].endswith("other bytes")
    lessons.main(["01"], say=said.append)
    assert lessons.main(["01"], check=True, say=said.append) and said[-1].endswith("the same bytes")


def test_a_name_that_no_lesson_has_is_refused_with_those_that_there_are(folder, capsys):
    with pytest.raises(ValueError, match=r"lesson = '07'.*01_good, 02_bad"):
        lessons.main(["01", "07"])
    assert cli.main(["lessons", "07"]) == 2 and "01_good" in capsys.readouterr().err


def test_a_folder_without_lessons_says_where_they_are(tmp_path):
    with pytest.raises(ValueError, match="no lessons in"):
        lessons.find(folder=tmp_path)


@pytest.mark.parametrize(("good", "status"), [(True, 0), (False, 1)])
def test_the_command_hands_on_its_options_and_its_status(monkeypatch, good, status):
    seen = []
    monkeypatch.setattr(lessons, "main", lambda *given: seen.append(given) or good)
    assert cli.main(["lessons", "03", "04", "--check"]) == status
    assert seen == [(["03", "04"], True)]
