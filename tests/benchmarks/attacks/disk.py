"""Full disks, folders without permission, and an output that takes nothing."""

import os
import shutil
from pathlib import Path

from tests.benchmarks.attacks import attempt, kills

RUN = attempt.ROOT / "notebooks/results/moe"
LOOKS = (["cost"], ["cost", "--json"], ["cost", "--list"], ["cost", "--help"], ["rosetta"], ["doctor", RUN],
         ["route", "def", "--run", RUN],
         ["generate", "--run", RUN, "--n-tokens", "5"], ["causality", "--trials", "1"], ["--help"])
WRITES = (["explore", RUN, "--output", "x/page.html"], ["cost", "--figure", "x/a.png"], ["figures"],
          ["bench", "--steps", "1", "--preset", "tiny", "--figure", "x/b.png"],
          [*kills.START[:-4], "--n-steps", "3", "--run", "x/run"])
TRAIN = ["train", "--preset", "tiny", "--n-steps", "1", "--text"]
NEW = ("", "new", "nothing", "x\x1b[2Jy\n")
"""Names that a command may make a folder of."""
BAD = ("n" * 300, "fifo", "a/" * 3000, "loop", "words.txt/x", "/dev/zero", "/dev/full", "folder.json", "\0", "\ud800",
       *NEW)


def attack(rng, folder, quick):
    """(case, problem or None) of each attempt."""
    for words in LOOKS[:2] if quick else LOOKS:
        with open("/dev/full", "wb") as full:
            end = attempt.finished(attempt.started(words, folder, stdout=full))
        yield f"{words[0]} > /dev/full", attempt.problem(end, (2,))
    for words in WRITES[:2] if quick else WRITES:
        where = kills.made(folder / f"full {words[0]}")
        end = attempt.finished(attempt.started(words, where, preexec_fn=attempt.limited(0)))
        yield f"{words[0]}, full disk", attempt.problem(end, (2,)) or left(where)
        where = kills.made(folder / f"read-only {words[0]}")
        yield f"{words[0]}, read-only folder", _denied(words, where, where, 0o500)
    yield from _names(folder, quick)


def left(folder):
    """What files a command has left that failed, or None."""
    return ", ".join(path.name for path in folder.rglob("*") if path.is_file() and path.name != "words.txt") or None


def _denied(words, cwd, folder, mode):
    folder.chmod(mode)
    try:
        process = attempt.started(words, cwd, preexec_fn=attempt.without_privileges)
        return attempt.problem(attempt.finished(process), (2,))
    finally:
        folder.chmod(0o700)


def _names(folder, quick):
    """Names that are too long, files of others, and files that are none."""
    where = kills.made(folder / "names")
    shutil.copytree(RUN, where / "secret")
    (where / "loop").symlink_to("loop")
    (where / "folder.json").mkdir()
    os.mkfifo(where / "fifo")
    for name in BAD[:2] if quick else BAD:
        for words in _naming(name):
            end = attempt.command(words, where, 10)
            creates = {"words.txt", "--output", "--figure"} & set(words)
            free = creates and name in (*NEW, "folder.json")
            yield f"{' '.join(map(str, words))[:90]!a}", attempt.problem(end, (0, 2) if free else (2,))
            for made in NEW[1:]:
                shutil.rmtree(where / made, ignore_errors=True)
    for words in (["doctor", "secret"], ["generate", "--run", "secret"], ["train", "--resume", "--run", "secret"],
                  [*TRAIN, "words.txt", "--run", "secret"], ["cost", "--run", "secret"], ["cost", "--file", "secret/x"],
                  [*TRAIN, "secret/x.txt"]):
        yield f"{words[0]}, a folder of another user", _denied(words, where, where / "secret", 0)
    for kind in (where / "fifo", Path("/dev/zero")):
        run = where / f"run of {kind.name}"
        run.mkdir()
        (run / "checkpoint.npz").symlink_to(kind)
        for words in (["doctor", run], ["train", "--resume", "--run", run], [*TRAIN, "words.txt", "--run", run]):
            yield f"{words[0]}, checkpoint {kind.name}", attempt.problem(attempt.command(words, where, 10), (2,))


def _naming(name):
    """Command lines that name a text, a file, a run, a page or a picture so."""
    return ([*TRAIN, name, "--run", "new"], ["cost", "--file", name], ["doctor", name], ["generate", "--run", name],
            ["train", "--resume", "--run", name], ["explore", RUN.as_posix(), "--output", Path(name, "x.html")],
            ["cost", "--figure", Path(name, "x.png")], [*TRAIN, "words.txt", "--run", Path(name, "run")])
