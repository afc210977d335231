"""Files are complete or absent."""

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


def test_two_that_write_one_file_do_not_write_into_each_other_and_what_stops_the_renaming_keeps_the_old(tmp_path):
    path = tmp_path / ("n" * 240 + ".html")
    with files.written(path) as one:
        write(path, "second")
        one.write_text("first", "utf-8")
    assert path.read_text("utf-8") == "first"

    def stop():
        raise ValueError("not ours any more")

    with pytest.raises(ValueError, match="not ours any more"), files.written(path, "the page", stop) as temporary:
        temporary.write_text("third", "utf-8")
    assert path.read_text("utf-8") == "first" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, ValueError])
def test_an_interruption_in_a_write_stays_one_whatever_it_leads_to(tmp_path, error):
    with pytest.raises(KeyboardInterrupt), files.written(tmp_path / "a") as temporary:
        try:
            temporary.touch()
            raise KeyboardInterrupt
        finally:
            raise error("the archive has an open entry")
    assert not list(tmp_path.iterdir())


def test_what_killed_processes_left_of_a_file_is_removed_and_nothing_else(tmp_path):
    for name in ("a.npz", "a.npz.tmp", "a.npz.12-ff.tmp", "b.npz.12-ff.tmp", "a.npz.txt"):
        (tmp_path / name).touch()
    files.remove_temporary(tmp_path / "a.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "a.npz.txt", "b.npz.12-ff.tmp"]


def test_a_message_is_short_whatever_it_names_and_keeps_its_end():
    assert str(files.NotWritten("short")) == "short"
    message = str(files.NotWritten("cannot write " + "n" * 10**6 + ": File name too long"))
    assert len(message) < 600 and message.startswith("cannot write n") and message.endswith("n: File name too long")


def test_only_files_are_read_and_none_that_is_too_large(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"123")
    files.check_regular(tmp_path / "file", 3)
    for path, words in ((tmp_path / "pipe", "a pipe"), ("/dev/zero", "a device"), (tmp_path, "Is a directory"),
                        (tmp_path / "file", "3 bytes; 2 is the limit"), (tmp_path / "none", "No such file"),
                        ("\0", "No file can have this name"), ("\ud800", "No file can have this name")):
        with pytest.raises(OSError, match=words):
            files.check_regular(path, 2)
    with pytest.raises(files.NotWritten, match="cannot write the page .*: No file can have this name"):
        write("\0", "")
    with pytest.raises(ValueError, match="path = 3: must be a string or a Path"):
        files.check_regular(3)
