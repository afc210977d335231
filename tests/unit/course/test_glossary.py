"""The glossary: what it names is there, and the words that papers are searched for are in it."""

import ast
import json
import re
from pathlib import Path

from minimoe.course import lessons
from tests.unit.test_house import NODES, TREES

TEXT = (lessons.FOLDER / "glossary.md").read_text("utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines()
        if re.match(r"\| (?!word )", line)]
WORDS = {word.lower() for word, *_ in ROWS for word in re.findall(r"\*\*(.+?)\*\*", word)}


def names():
    """Whatever has a name in the package: modules, functions, arguments, arrays, fields, and keys that are strings."""
    kinds = {ast.FunctionDef: "name", ast.ClassDef: "name", ast.arg: "arg", ast.Name: "id", ast.Attribute: "attr",
             ast.Constant: "value"}
    named = {str(getattr(node, kinds[type(node)])).split(".")[-1] for _, node in NODES if type(node) in kinds}
    return named | {Path(file).stem for file in TREES}


def test_each_row_has_a_word_in_bold_names_of_our_code_a_meaning_and_a_lesson_that_is_there():
    known, files = names(), {path.name for path in lessons.find()}
    assert len(ROWS) > 50 and {len(row) for row in ROWS} == {5}
    for word, code, _, meaning, lesson in ROWS:
        unknown = {part for name in re.findall(r"`(.+?)`", code) for part in name.split(".")} - known
        assert not unknown and "`" in code and meaning, word
        number, file = re.fullmatch(r"\[(\d\d)\]\((.+)\)", lesson).groups()
        assert file in files and file.startswith(number), word


def test_a_word_stands_in_the_lesson_that_teaches_it():
    for word, *_, lesson in ROWS:
        cells = json.loads((lessons.FOLDER / lesson[5:-1]).read_text("utf-8"))["cells"]
        text = "".join(line for cell in cells if cell["cell_type"] == "markdown" for line in cell["source"]).lower()
        bold = re.findall(r"\*\*(.+?)\*\*", word.lower())
        assert any(term.rstrip("s") in text for term in bold), (word, lesson)


def test_a_learner_finds_the_words_of_the_field():
    assert {"batch size", "sequence", "kv cache", "prefill", "decode", "expert parallelism", "token choice",
            "expert choice", "load-balancing loss", "feed-forward network", "shared experts", "compute-bound",
            "memory-bound", "arithmetic intensity", "active parameters", "router z-loss", "capacity factor",
            "dropless", "mask", "calibration", "n:m", "erdős-rényi", "snfs", "gradual magnitude pruning",
            "movement pruning", "taylor importance", "block influence", "csr", "bitmask", "adamw", "warm-up", "control",
            "effective size", "mutual information", "router saturation", "churn", "co-activation", "activations",
            "roofline", "nats", "margin", "validation loss", "held-out loss", "structured"} <= WORDS
    for path in lessons.find(("01", "02", "03", "04", "05")):  # a longer text in bold is a sentence
        cells = json.loads(path.read_text("utf-8"))["cells"]
        text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown").lower()
        terms = {term.rstrip("s") for term in re.findall(r"\*\*([^*]+)\*\*", text)
                 if term[-1] not in ".:?" and len(term.split()) <= 3}
        assert terms <= {word.rstrip("s") for word in WORDS}, path
