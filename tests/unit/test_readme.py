"""What the README mentions exists, and its commands work."""

import re
import shlex
from pathlib import Path

import pytest

from minimoe import cli
from minimoe.course import lessons
from tests.unit import test_house

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"^python -m minimoe[^|\n#]*|`python -m minimoe(?!\.)([^`]*)`", README, re.MULTILINE)))
MAP = [name for line in re.search(r"```\nminimoe/\n(.*?)```", README, re.DOTALL)[1].splitlines()
       for name in re.findall(r"[a-z]+(?:/|\.py)", re.split(r" {2,}|: ", line.strip())[0])]


def test_every_file_that_is_linked_exists():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_map_has_every_room_in_the_order_of_imports_and_no_other():
    rooms = {path.name + "/" * path.is_dir() for path in (ROOT / "minimoe").iterdir()
             if not path.name.startswith("__")}
    assert len(MAP) == len(set(MAP)) and set(MAP) == rooms
    floors = [test_house.floor(name) for name in MAP]
    assert floors[5:] == sorted(floors[5:]) and max(floors[:5]) < floors[5], "imports only from lines above it"


def test_every_file_that_is_named_exists():
    named = re.findall(r"`((?:minimoe|tests|notebooks|figures)/[\w./*-]*)`", README)
    named += [name.replace(".", "/") + ".py" for name in re.findall(r"python -m ((?:minimoe|tests)\.[\w.]+)", README)]
    assert named and [path for path in named if not list(ROOT.glob(path.removesuffix("/")))] == []


def test_it_is_read_in_ten_minutes_and_says_how_long_each_lesson_takes():
    assert len(README.splitlines()) <= 160
    assert len(re.sub(r"```.*?```|<[^>]*>", "", README, flags=re.DOTALL).split()) <= 1150
    minutes = dict(re.findall(r"^\| \[\d\d\]\(notebooks/(\w+)\.ipynb\) .* (\d+) \|$", README, re.MULTILINE))
    assert minutes == {path.stem: re.search(r"About (\d+) minutes to read", path.read_text("utf-8"))[1]
                       for path in lessons.find()}


@pytest.mark.parametrize("command", [c for c in COMMANDS if "..." not in c])
def test_every_command_is_one_that_the_program_knows(command):
    assert cli.parser().parse_args(shlex.split(command))


def test_the_python_example_prints_what_it_says(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    routing, losses, first, *_ = capsys.readouterr().out.splitlines()
    printed = " ".join(f"{float(number):.2f}" for number in re.findall(r"\d\.\d+", f"{routing} {losses}"))
    said = " ".join(re.findall(r"\b\d\.\d\d\b", example.split("# [3 2 3 7]")[1].replace("4.17", "")))
    assert printed == said and routing.startswith("[3 2 3 7]") and first.endswith(": right")


def test_the_first_test_command_is_what_continuous_integration_runs():
    (command,) = re.findall(r"\.venv/bin/python (-m pytest.*)", README)
    assert f'"$python" {command}\n' in (ROOT / ".ci/run").read_text("utf-8")
