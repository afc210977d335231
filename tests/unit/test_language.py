"""The words that a reader meets: the field's terms, American spelling, and none of the tics that crept in before."""

import json
import re
from pathlib import Path

import pytest

import minimoe

ROOT = Path(minimoe.__file__).parent.parent
CLEAN = ("minimoe/**/*", "README.md", "notebooks/*")
"""Where no tic may come back: patterns of files."""

TICS = {  # what is not written -> what it looked like, and what is written instead
    r"\b(FLOPs|nats|ms|us|bytes|tokens|numbers|rows|copies|vectors) an? (token|step|layer|expert|head|second|batch|"
    r"seed|domain|device|group|router)\b(?! \w+s\b)": ("4 FLOPs a token", "4 FLOPs per token"),
    r"\b(one|two|\d+|K|few) (\w+ )?(experts?|choices|gates?|slots|bars?|dots?|entry|buttons?|bits?) an? "
    r"(token|step|layer|expert|seed|domain|run)\b(?! \w+s\b)": ("one button a token", "which two experts a token uses"),
    r"\b[Ee]xperts? a token\b(?! \w+s\b)": ("Experts a token", "experts per token"),
    r"\b(by lot|lots|in turn)\b": ("experts by lot", "experts at random"),
    r"\bbeside\b": ("beside a dense model", "compared with a dense model; besides"),
    r"\b(dear|dearer|hangs? on|tells? of|says? of)\b": ("it hangs on K", "it depends on K"),
    r"\b(somebody|nobody|someone)\b": ("nobody takes it", "no expert takes it"),
    r"\b(gone on with|goes on from|goes on with|unsaid|said twice|must be said)\b": ("goes on from step 2", "resumes"),
    r"\b(texts at once|keys and values kept|waits for bytes|feed-forward part)\b": ("texts at once", "batch size"),
    r"\b(at sight|for ever|one another|turned away|nearly as many tokens prefer)\b": ("wrong at sight", "is wrong"),
    r"\b[Aa] MoE\b": ("a MoE", "an MoE"),
    r"(?i)(optimis|normalis|initialis|specialis|generalis|maximis|minimis(?!m)|summaris|analys(e|ed|ing)\b|neighbour|"
    r"behaviour|favour|honour|labell(?!e(dby|ft))|modell|travell|learnt\b|judgement)": ("optimiser", "optimizer"),
    r"(?i)(?<!-)colou?r(?<!color)(?!ed_text)|\bgreys?\b": ("its colour.", "its color; coloured_text; --colour"),
}


@pytest.mark.parametrize("tic", TICS)
def test_a_tic_is_recognized_and_its_remedy_is_not(tic):
    wrong, right = TICS[tic]
    assert re.search(tic, wrong) and not re.search(tic, right)


def prose(path):
    """The lines of a file, or of the cells of a notebook, without their outputs."""
    text = path.read_text("utf-8")
    if path.suffix != ".ipynb":
        return text.splitlines()
    return [line for cell in json.loads(text)["cells"] for line in cell["source"]]


def test_what_a_reader_meets_has_none():
    files = {path for pattern in CLEAN for path in ROOT.glob(pattern)
             if path.suffix in (".py", ".js", ".css", ".html", ".md", ".ipynb")}
    found = sorted(f"{path.relative_to(ROOT)}:{number}: {match[0]}: {line.strip()}" for path in files
                   for number, line in enumerate(prose(path), 1) for tic in TICS for match in re.finditer(tic, line))
    assert len(files) > 100 and not found, "\n" + "\n".join(found)
