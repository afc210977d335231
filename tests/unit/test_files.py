"""Files are whole or not there."""

import os

import pytest

from minimoe import files


def write(path, text):
    with files.written(path, "the page") as temporary:
        temporary.write_text(text, "utf-8")


def test_writing_makes_the_folder_and_leaves_no_other_file(tmp_path):
    path = tmp_path / "new" / "folder" / "page.html"
    write(path, "first")
    write(path, "second")
    assert path.read_text("utf-8") == "second" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("where", ["write", "rename"])
def test_writing_that_fails_leaves_what_was_there(tmp_path, monkeypatch, where):
    def fail(*_):
        raise OSError(28, "No space left on device")

    path = tmp_path / "page.html"
    write(path, "before")
    if where == "rename":
        monkeypatch.setattr(os, "replace", fail)
    with (pytest.raises(files.NotWritten, match=f"cannot write the page {path}: No space left on device"),
          files.written(path, "the page") as temporary):
        temporary.write_text("half", "utf-8")
        if where == "write":
            fail()
    assert path.read_text("utf-8") == "before" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_an_error_of_the_user(tmp_path):
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(ValueError, match="cannot write the page .*: (File exists|Not a directory)"):
        write(tmp_path / "file" / "page.html", "")


@pytest.mark.parametrize(("name", "good"), [("a.html", True), ("a.HTML", True), ("a.htm", False), ("html", False),
                                            ("a.html.bak", False)])
def test_an_ending_tells_what_is_written(name, good):
    if good:
        files.check_ending(name, "the page", ".html")
    else:
        with pytest.raises(ValueError, match=f"^the page {name}: must end in .html, since it is written as HTML$"):
            files.check_ending(name, "the page", ".html")
