"""Whether the tests notice one wrong token: mutants of the library, and the test that fails on each.

    python -m tests.benchmarks.mutants [--count N] [--nearest] [--save FILE]

A mutant is the library with one token changed: - for +, <= for <, 2 for 1.  It meets the tests of its module first,
then those of its package, then all others; the first failure kills it.  A mutant is known by its function and line, so
a saved list can be applied to a tree where files have moved.
"""

import ast
import collections
import io
import itertools
import json
import keyword
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tokenize
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path, PurePosixPath
from queue import SimpleQueue

from tests.benchmarks import turns

ROOT = Path(__file__).parents[2]
AREAS = [r"nn/", r"moe/routers/", r"moe/losses/", r"moe/\w+\.py", r"model\.py", r"batches\.py",
         r"training/optimizer\.py", r"gradcheck/", r"cost/"]
"""Parts of the library, as patterns of paths in minimoe/.  Each gets the same share of the mutants."""
SOURCE_READERS = ("test_bugs", "test_house")
"""Beginnings of the names of test files that read the library's source: any edit may fail them, so they prove nothing
here."""

SWAPS = {"+": "-", "*": "/", "<": "<=", ">": ">=", "==": "!=", "and": "or", "&": "|", "+=": "-=", "*=": "/=",
         "True": "False", "min": "max", "minimum": "maximum", "argmin": "argmax", "any": "all", "floor": "ceil"}
SWAPS |= {new: old for old, new in SWAPS.items()} | {"//": "/", "%": "//", "**": "*", "is": "is not", "not": ""}
IDENTITY = ("file", "function", "line", "mutated", "nth")
"""What a mutant is known by; nth counts the equal lines before it in its function."""


def replacement(token, before):
    """What takes a token's place, or None.  A star is changed only between two operands."""
    if token.type == tokenize.NUMBER:
        n = ast.literal_eval(token.string)
        return repr(n + 1 if isinstance(n, int) else 2 * n or 1.0)
    binary = re.search(r"[\w)\]]$", before.string) and not keyword.iskeyword(before.string)
    if token.string in ("*", "**") and not binary or token.string == "is" and "is not" in token.line:
        return None
    return SWAPS.get(token.string) if token.type in (tokenize.OP, tokenize.NAME) else None


def without_effect(tree):
    """(begin, end) of annotations, error messages, formatted text, and the argument `strict` of zip."""
    for node in ast.walk(tree):
        called = getattr(node, "func", None)
        parts = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if (isinstance(node, ast.Raise | ast.JoinedStr) or isinstance(node, ast.keyword) and node.arg == "strict"
                or getattr(called, "attr", getattr(called, "id", None)) in ("print", "format", "ljust", "rjust")):
            parts.append(node)
        yield from (((part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)) for part in parts if part)


def functions(source):
    """The qualified name of the function or class that each line is in; empty outside of any."""
    names = [""] * len(source.splitlines())
    for node in ast.walk(ast.parse(source)):  # outer ones first
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            for i in range(node.lineno - 1, node.end_lineno):
                names[i] = f"{names[i]}.{node.name}".lstrip(".")
    return names


def mutants_of(file):
    """Every mutant of a file, as dicts with the keys of `IDENTITY`."""
    source, found = (ROOT / file).read_text("utf-8"), []
    lines, names, skipped = source.splitlines(), functions(source), list(without_effect(ast.parse(source)))
    for before, token in itertools.pairwise(tokenize.generate_tokens(io.StringIO(source).readline)):
        new = replacement(token, before)
        if new is not None and not any(begin <= token.start < end for begin, end in skipped):
            i, line = token.start[0] - 1, lines[token.start[0] - 1]
            mutated = line[:token.start[1]] + new + line[token.end[1]:]
            nth = sum((names[j], lines[j].strip()) == (names[i], line.strip()) for j in range(i))
            found.append(dict(file=file, function=names[i], line=line.strip(), mutated=mutated.strip(), nth=nth))
    return found


def library(tree):
    """Paths of the library's files, relative to a tree."""
    return sorted(path.relative_to(tree).as_posix() for path in (tree / "minimoe").rglob("*.py"))


def round_robin(lists):
    """The first of each list, then the second of each, and so on."""
    return [item for row in itertools.zip_longest(*lists) for item in row if item is not None]


def draw(count, seed):
    """Random mutants, the same number from each area, and from each file of an area, as far as there are any."""
    rng, areas = random.Random(seed), []
    for area in AREAS:
        files = [mutants_of(file) for file in library(ROOT) if re.match(f"minimoe/{area}", file)]
        areas.append(round_robin([rng.sample(mutants, len(mutants)) for mutants in rng.sample(files, len(files))]))
    return round_robin(areas)[:count]


def place(mutant, tree):
    """(file, index of the line): the nth such line of its function, or the only one in other files; None if gone."""
    sources = {file: (tree / file).read_text("utf-8") for file in library(tree)}
    found = [(file, i) for file, source in sources.items() for i, line in enumerate(source.splitlines())
             if line.strip() == mutant["line"] and functions(source)[i] == mutant["function"]]
    own = [(file, i) for file, i in found if file == mutant["file"]][mutant["nth"]:]
    return own[0] if own else found[0] if len(found) == 1 else None


def stages(file, options):
    """Test files of the module, of its package, and the others, those that mention the module first."""
    path = PurePosixPath(file)
    package = path.parent.name
    module = package if path.stem == "__init__" else path.stem
    tests = [test.relative_to(ROOT) for test in sorted((ROOT / options.tests).rglob("test_*.py"))
             if "integration" not in test.parts and not test.name.startswith(SOURCE_READERS)]
    own = [test for test in tests if re.match(rf"test_{module}(_|$)", test.stem)]
    near = [test for test in tests if test not in own
            and (test.parent.name == package or re.match(rf"test_{package}(_|$)", test.stem))]
    others = [] if options.nearest else [test for test in tests if test not in own + near]
    return own, near, sorted(others, key=lambda test: not re.search(rf"\b{module}\b", (ROOT / test).read_text("utf-8")))


def failure(tree, tests, timeout=None):
    """The first of some test files' tests that fails, "timeout", or None if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "--tb=no",
               "--hypothesis-seed=0", "--import-mode=importlib", *map(str, tests)]
    try:
        run = subprocess.run(command, cwd=tree, capture_output=True, encoding="utf-8", timeout=timeout,
                             env=os.environ | {"OPENBLAS_NUM_THREADS": "1"})
    except subprocess.TimeoutExpired:
        return "timeout"
    finally:
        shutil.rmtree(tree / ".hypothesis", ignore_errors=True)  # the next mutant gets no examples from this one
    failed = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", run.stdout, re.MULTILINE)
    return None if run.returncode in (0, 5) else failed[1] if failed else f"exit status {run.returncode}"  # 5: no tests


def run_one(mutant, tree, mtime, options):
    """The mutant with its outcome.  mtime: seconds, one per mutant, so that no byte code is taken for another's."""
    where = place(mutant, tree)
    if where is None:
        return mutant | dict(outcome="gone")
    path, i = tree / where[0], where[1]
    original = path.read_text("utf-8")
    lines = original.splitlines(keepends=True)
    lines[i] = lines[i].replace(mutant["line"], mutant["mutated"])
    parts = stages(where[0], options)[2 if mutant.get("outcome") == "open" else 0:]  # open: the nearest have passed
    try:
        path.write_text("".join(lines), "utf-8")
        os.utime(path, (mtime, mtime))
        test = next(filter(None, (failure(tree, tests, options.timeout) for tests in parts if tests)), None)
    finally:
        path.write_text(original, "utf-8")
    return mutant | (dict(outcome="killed", test=test) if test else
                     dict(outcome="open" if options.nearest else "survived"))


def run_all(mutants, todo, options):
    """Give the mutants at the indices `todo` their outcomes.  Raises SystemExit if a test fails without any mutant."""
    trees = SimpleQueue()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        for job in range(options.jobs):
            trees.put(tree := Path(folder, str(job)))
            shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", "runs"))
        needed = {test for i in todo for tests in stages(mutants[i]["file"], options) for test in tests}
        if failed := failure(tree, sorted(needed)):
            raise SystemExit(f"without any mutant, this test fails: {failed}")

        def work(i):
            tree = trees.get()
            try:
                mutants[i] = run_one(mutants[i], tree, i, options)
            finally:
                trees.put(tree)
            return shown(mutants[i])

        try:
            for done, future in enumerate(as_completed([pool.submit(work, i) for i in todo]), 1):
                print(f"{done}/{len(todo)} {future.result()}", file=sys.stderr, flush=True)
                if options.save:
                    temporary = options.save.with_suffix(".tmp")
                    temporary.write_text(json.dumps(mutants, indent=1), "utf-8")
                    temporary.replace(options.save)
        finally:
            pool.shutdown(cancel_futures=True)


def shown(mutant):
    """A line about a mutant."""
    return "{outcome}: {file} {function}: {line}  ->  {mutated}  {test}".format_map({"test": ""} | mutant).rstrip()


def main():
    """Draw or read the mutants, run those without an outcome, and print how many were killed."""
    parser = turns.parser(__doc__)
    parser.add_argument("--count", type=turns.count, default=200, help="mutants to draw (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument("--jobs", type=turns.count, default=1, help="mutants at a time (default: 1)")
    parser.add_argument("--tests", default="tests/unit" if (ROOT / "tests/unit").exists() else "tests",
                        help="folder of tests (default: %(default)s)")
    parser.add_argument("--list", type=Path, metavar="FILE", help="read the mutants from this JSON file instead")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write outcomes there; if it exists, resume from it")
    parser.add_argument("--nearest", action="store_true", help="stop after the tests of module and package")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds of one stage that kill (default: 1800)")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job, and its tests, would ignore it
    if options.save and options.save.exists():
        mutants = json.loads(options.save.read_text("utf-8"))
    else:
        drawn = json.loads(options.list.read_text("utf-8")) if options.list else draw(options.count, options.seed)
        mutants = [{key: mutant[key] for key in IDENTITY} for mutant in drawn]  # an outcome may be of a different tree
    todo = [i for i, mutant in enumerate(mutants)
            if "outcome" not in mutant or mutant["outcome"] == "open" and not options.nearest]
    if todo:
        run_all(mutants, todo, options)
    count = collections.Counter(mutant["outcome"] for mutant in mutants)
    print(f"{count['killed']} of {len(mutants) - count['gone']} mutants killed; "
          f"survivors: {count['survived']}, open: {count['open']}, gone: {count['gone']}")
    print(*sorted(shown(mutant) for mutant in mutants if mutant["outcome"] != "killed"), sep="\n")


if __name__ == "__main__":
    main()
