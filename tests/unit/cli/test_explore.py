"""`python -m minimoe explore`: one file, where it was asked for, or one line that says why not."""

import json
import re
import shutil

import pytest

from minimoe import cli
from minimoe.cli import arguments


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a run of one step on the made-up language: a to h, A to H, digits and signs."""
    folder = tmp_path_factory.mktemp("made")
    run = folder / arguments.DEFAULT_RUN
    assert cli.main(["train", "--clusters", "--preset", "tiny", "--n-steps", "1", "--run", str(run)]) == 0
    return folder


@pytest.fixture
def explore(made, tmp_path, monkeypatch, capsys):
    """A function that runs the command in a copy of that folder: exit status, standard output, standard error."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()

    def command(*words):
        try:
            status = cli.main(["explore", *words])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return command


def texts(path):
    """The texts in a page."""
    data = json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)[1])
    return ["".join(text["characters"]) for text in data["texts"]]


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_the_page_goes_into_the_folder_of_the_run(explore, tmp_path):
    before, path = files(tmp_path), tmp_path / arguments.DEFAULT_RUN / "explorer.html"
    status, out, err = explore()
    assert (status, err) == (0, "")
    assert set(files(tmp_path)) - set(before) == {path}
    assert f"{arguments.DEFAULT_RUN}/explorer.html" in out and path.as_uri() in out
    assert f"{path.stat().st_size:,} bytes" in out
    assert texts(path) == ["!#$%&*+-01234567ABCDEFGHabcdefgh"]  # it does not know the usual text


def test_a_run_texts_and_a_place_can_be_named(explore, tmp_path):
    status, out, _ = explore(arguments.DEFAULT_RUN, "--text", "abc", "A1!&", "--output", "new/page.html")
    assert status == 0 and "new/page.html" in out
    assert texts(tmp_path / "new/page.html") == ["abc", "A1!&"]


@pytest.mark.parametrize(("line", "words"), [
    (["nowhere"], ["no trained run in nowhere", arguments.DEFAULT_RUN]),
    (["--output", "page.txt"], ["page.txt", "must end in .html"]),
    (["--text", ""], ["''", "0 characters", "1 to 32"]), (["--text", "a" * 33], ["33 characters", "1 to 32"]),
    (["--text", "abc", "xyz"], ["not seen in training", "'x' 'y' 'z'"]),
    (["--output", "/dev/null/page.html"], ["cannot write the page /dev/null/page.html"]),
    (["--threads", "2"], ["--threads"])])
def test_what_cannot_be_done_is_refused_in_one_line(explore, tmp_path, line, words):
    before = files(tmp_path)
    status, out, err = explore(*line)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert all(word in err for word in words), err
    assert files(tmp_path) == before


@pytest.mark.parametrize("options", [["--router", "soft"], ["--n-experts", "1", "--top-k", "1"],
                                     ["--first-dense-layers", "2"]])
def test_a_model_without_routers_is_refused(explore, options):
    cli.main(["train", "--clusters", "--preset", "tiny", "--n-steps", "1", "--run", "other", *options])
    status, _, err = explore("other")
    assert status == 2 and "nothing to explore" in err and "other" in err
