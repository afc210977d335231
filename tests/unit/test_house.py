"""The rules for every file: which imports are allowed, where things are, what only a router's file knows, and what no
file does."""

import ast
import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import minimoe
from minimoe.config import ModelConfig, TrainConfig
from minimoe.moe import losses, routers
from tests import shapes

ROOT = Path(minimoe.__file__).parent
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8")) for path in sorted(ROOT.rglob("*.py"))}
CORE = [name for name in TREES if name.startswith(("nn/", "moe/")) or name == "model.py"]
NODES = [(file, node) for file, tree in TREES.items() for node in ast.walk(tree)]
FUNCTIONS = [(file, node) for file, node in NODES if isinstance(node, ast.FunctionDef)]

FLOORS = {"interrupts": -1, "require": -1, "parameters": 0, "files": 0, "terminal": 0, "nn": 1, "moe": 2,
          "config": 2.5, "model": 3, "batches": 3.5, "sparsity": 3.7, "gradcheck": 4, "generation": 4, "training": 4,
          "cost": 5, "": 5.5, "plots": 6, "analysis": 7, "experiments": 8, "course": 9, "cli": 10, "__main__": 11}
"""A file imports from lower floors and its own folder.  "" is `minimoe/__init__.py`, the interface of floors 0 to 5."""


def assert_none(violations):
    violations = sorted(set(violations))
    assert not violations, "\n" + "\n".join(violations)


def nodes(kind, files=TREES):
    """(file:line, node) of every syntax node of a kind."""
    return [(f"{file}:{node.lineno}", node) for file, node in NODES if isinstance(node, kind) and file in files]


def room(file):
    """The part of the package that a file belongs to: a folder, or the file itself; "" is the public interface."""
    return file.split("/")[0].removesuffix(".py").replace("__init__", "")


def floor(file):
    return FLOORS.get(room(file), 12)


def file_of(module):
    """The file of a dotted name within minimoe; for a name that is not a module, the file of its parent."""
    parts = module.split(".")[1:]
    while parts:
        for file in ("/".join(parts) + ".py", "/".join(parts) + "/__init__.py"):
            if file in TREES:
                return file
        parts = parts[:-1]
    return "__init__.py"


def imports(file, tree):
    """The files of minimoe that a file imports, at its head or inside functions."""
    package = ["minimoe", *file.split("/")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[:len(package) + 1 - node.level] if node.level else []
            modules = [".".join([*above, *filter(None, [node.module]), alias.name]) for alias in node.names]
        else:
            continue
        yield from (file_of(module) for module in modules if module.split(".")[0] == "minimoe")


def goes_up(file, target):
    own_folder = "/" in file and room(file) == room(target)
    return not own_folder and floor(target) >= floor(file)


def test_imports_go_down():
    assert_none(f"{file}: unknown; give {room(file)!r} a floor in FLOORS" for file in TREES if room(file) not in FLOORS)
    assert_none(f"{file} (floor {floor(file)}) imports {target} (floor {floor(target)})"
                for file, tree in TREES.items() for target in imports(file, tree) if goes_up(file, target))


def test_an_import_is_found_however_it_is_written_and_up_and_down_are_told_apart():
    for source in ("from minimoe import model", "import minimoe.model", "from minimoe.model import forward",
                   "from .. import model", "from ..model import forward", "def f():\n    from minimoe import model"):
        assert list(imports("nn/ops.py", ast.parse(source))) == ["model.py"]
    assert list(imports("cli/train.py", ast.parse("from minimoe import ModelConfig"))) == ["__init__.py"]
    for file, target, up in (
            ("nn/ops.py", "moe/layer.py", True), ("nn/ops.py", "nn/attention.py", False),
            ("model.py", "nn/ops.py", False), ("parameters.py", "files.py", True), ("__init__.py", "cli.py", True)):
        assert goes_up(file, target) == up


def test_importing_minimoe_needs_numpy_alone():
    code = ("import sys; before = set(sys.modules); import minimoe; "
            "print(*{name.split('.')[0] for name in sys.modules.keys() - before "
            "if getattr(sys.modules[name], '__file__', None)})")
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, stdout=subprocess.PIPE, encoding="utf-8",
                         check=True)
    assert set(run.stdout.split()) - sys.stdlib_module_names == {"minimoe", "numpy"}


@pytest.mark.parametrize("file", [file for file in TREES if Path(file).name == "__init__.py"])
def test_the_docstring_of_a_folder_is_its_map(file):
    """One line for each file and folder in it, indented by 4: name, spaces, description."""
    folder = (ROOT / file).parent
    inside = [path.stem for path in folder.iterdir() if path.suffix == ".py" and not path.name.startswith("__")]
    inside += [path.parent.name for path in folder.glob("*/__init__.py")]
    lines = (ROOT / file).read_text("utf-8").split('"""')[1].splitlines()
    assert sorted(line.split()[0] for line in lines if re.match(r" {4}\w+ {2,}\S", line)) == sorted(inside)


def is_forward(file, function):
    return file in CORE and (function.name.endswith("_forward")
                             or file.startswith("moe/routers/") and function.name == "forward")


def test_a_backward_is_directly_below_its_forward_whose_docstring_mentions_the_cache():
    for file in CORE:
        defined = [node for node in TREES[file].body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        names, forwards = [node.name for node in defined], [node.name for node in defined if is_forward(file, node)]
        backwards = [name for name in names if name.endswith("_backward") or name == "backward"]
        assert backwards == [name.replace("forward", "backward") for name in forwards], file
        assert [names[names.index(name) + 1] for name in forwards] == backwards, file
    assert_none(f"{file}: {function.name}" for file, function in FUNCTIONS
                if is_forward(file, function) and "cache" not in ast.get_docstring(function))


def test_a_router_is_a_page_and_a_line_in_the_table():
    pages = {f"minimoe.moe.routers.{path.stem}" for path in (ROOT / "moe/routers").glob("[!_]*.py")}
    assert sorted(page.__name__ for page in routers.ROUTERS.values()) == sorted(pages | {"minimoe.moe.soft"})


@pytest.mark.parametrize("page", routers.ROUTERS.values(), ids=routers.ROUTERS)
def test_the_facts_of_a_router_are_complete_and_agree(page):
    facts, fields = page.FACTS, {field.name: field for field in dataclasses.fields(ModelConfig)}
    assert facts.causal_in_evaluation or not facts.causal  # evaluation looks at no more than training
    assert facts.summary and facts.evaluation and facts.explorer.choice in ("best", "turn", "experts", "recorded")
    assert facts.losses.keys() <= losses.LOSSES.keys() and min(facts.losses.values(), default=1) > 0
    assert set(facts.options) <= fields.keys()
    if not facts.soft:
        weights = page.weights(ModelConfig(), 1.0)
        assert sum(len(w.shape) == 2 for w in weights.values()) == facts.matrices
        assert ("bias_E" in weights) == facts.has_bias
        assert all(callable(getattr(page, name)) for name in ("forward", "backward"))


def asked(node):
    """The names of routers that a syntax node looks up or compares with."""
    parts = {ast.Compare: lambda: [node.left, *node.comparators], ast.Dict: lambda: node.keys,
             ast.Call: lambda: [word.value for word in node.keywords if word.arg == "router"]}.get(type(node), list)()
    inside = [part for whole in parts if whole for part in getattr(whole, "elts", [whole])]
    named = {part.value for part in inside if isinstance(part, ast.Constant)}
    return named & routers.ROUTERS.keys() - {"soft", "random", "uniform"}


def test_only_its_own_page_knows_a_router():
    """Other files ask for its facts.  ("soft" is also a kind of layer, "random" a drop order, "uniform" a density.)"""
    for line in ("a == 'switch'", "'switch' != a", "a in ('b', 'switch')", "{'switch': 1}", "dict(router='switch')"):
        assert asked(ast.parse(line).body[0].value) == {"switch"}
    rooms = {"config", "nn", "moe", "model", "batches", "gradcheck", "generation", "training", "cost", "analysis"}
    assert_none(f"{where}: {name}" for where, node in nodes((ast.Compare, ast.Dict, ast.Call)) for name in asked(node)
                if room(where) in rooms and where.split(":")[0] != "moe/routers/__init__.py")


MADE_UP = '''
"""Made up: the experts with the highest scores."""

from minimoe.moe.facts import Facts
from minimoe.moe.routers import softmax_topk

FACTS = Facts(summary="the highest scores", losses=dict(balance=0.01))
weights, forward, backward = softmax_topk.weights, softmax_topk.forward, softmax_topk.backward
'''
MADE_UP_LINE = '    "made_up": "routers.made_up",\n'
USE_IT = """
from minimoe import cli, gradcheck
from minimoe.moe import routers
from minimoe.training import checkpoint

assert cli.main(["train", "--router", "made_up", "--clusters", "--preset", "tiny", "--n-steps", "2"]) == 0
assert checkpoint.load("runs/train/checkpoint.npz").model_config.router == "made_up"
assert cli.main(["generate", "--run", "runs/train", "--n-tokens", "5"]) == 0
made_up = [config for config in gradcheck.layer_cases().values() if config.router == "made_up"]
assert len(made_up) == 15  # K of 1, 2 and all, each with and without capacity, which has four drop orders
assert all(gradcheck.check_layer(config).ok for config in made_up[::7])
assert gradcheck.check_layer(made_up[5], one_by_one=True).rows[-1].length > 0
"""


def test_a_new_router_needs_only_its_file_and_its_line(tmp_path):
    shutil.copytree(ROOT, tmp_path / "minimoe", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "minimoe/moe/routers/made_up.py").write_text(MADE_UP, "utf-8")
    table = tmp_path / "minimoe/moe/routers/__init__.py"
    table.write_text(table.read_text("utf-8").replace("PAGES = {\n", "PAGES = {\n" + MADE_UP_LINE), "utf-8")
    run = subprocess.run([sys.executable, "-c", USE_IT], cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr


def test_every_letter_of_a_suffix_is_in_the_key():
    """The key is in the docstring of minimoe."""
    key = set(re.findall(r"   ([A-Z1]) (?:= [^a-z]+ )?[a-z]", minimoe.__doc__))
    assert set("BSTDHGPMQVLEKFJCZANR1") == key
    assert_none(f"{file}: {match[0]}" for file in TREES
                for match in shapes.SUFFIX.finditer((ROOT / file).read_text("utf-8")) if not set(match[1]) <= key)


NOT_ANALYTIC = {"abs", "absolute", "fabs", "maximum", "minimum", "fmax", "fmin", "clip", "sign", "hypot", "norm",
                "angle", "conj", "conjugate", "vdot"}
OF_REAL_NUMBERS = {
    "moe/routers/sigmoid_bias.py": {"after_step"},
    "moe/linear_assignment.py": {"balanced_assignment", "_best_move", "_prices", "_moves", "_shortest_paths"},
    "moe/routers/sinkhorn.py": {"plan"},
}
"""Functions that choose or count, and so get only real numbers: no gradient flows through them."""


def test_the_forward_is_analytic():
    """Except functions of real numbers, and telemetry, which only reads a Routing."""
    assert_none(f"{file}:{node.lineno}: {name}" for file in CORE if file != "moe/telemetry.py"
                for part in TREES[file].body if getattr(part, "name", None) not in OF_REAL_NUMBERS.get(file, ())
                for node in ast.walk(part) if isinstance(node, ast.Call)
                if (name := ast.unparse(node.func).split(".")[-1]) in NOT_ANALYTIC)


def test_ties_go_to_the_lowest_index():
    assert_none(f"{where}: {ast.unparse(node)}" for where, node in nodes(ast.Call)
                if (name := getattr(node.func, "attr", None)) == "argpartition"
                or name == "argsort" and "kind='stable'" not in ast.unparse(node))


def test_randomness_is_a_generator_and_nothing_is_asserted():
    """Neither NumPy's global generator nor Python's."""
    assert_none(f"{where}: {node.attr}" for where, node in nodes(ast.Attribute)
                if getattr(node.value, "attr", None) == "random" and node.attr not in ("default_rng", "Generator"))
    assert_none(where for where, node in nodes((ast.Import, ast.ImportFrom))
                if "random" in [getattr(node, "module", None), *(alias.name for alias in node.names)])
    assert_none(where for where, _ in nodes(ast.Assert))


CHANGES = {"append", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "remove", "discard", "clear",
           "sort", "reverse", "fill"}


def written_names(function):
    """The names whose entries, attributes or contents a function changes."""
    for node in ast.walk(function):
        stored = isinstance(node, (ast.Subscript, ast.Attribute)) and not isinstance(node.ctx, ast.Load)
        if stored or isinstance(node, ast.Attribute) and node.attr in CHANGES:
            while isinstance(node, (ast.Subscript, ast.Attribute)):
                node = node.value
            yield ast.unparse(node)


def test_no_function_writes_to_its_module():
    for line in ("A[0] = 1", "A.b = 1", "A[B].c[0] += 1", "del A[0]", "A.b.append(1)"):
        assert list(written_names(ast.parse(line))) == ["A"]
    assert_none(where for where, _ in nodes(ast.Global))
    constants = {(file, name.id) for file, tree in TREES.items() for node in tree.body
                 if isinstance(node, (ast.Assign, ast.AnnAssign))
                 for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
    assert_none(f"{file}: {function.name} changes {name}" for file, function in FUNCTIONS
                for name in written_names(function) if (file, name) in constants)


def test_only_the_programs_print():
    programs = {"cli", "plots", "experiments", "course", "__main__", "terminal"}
    others = {file for file in TREES if room(file) not in programs and file != "training/progress.py"}
    assert_none(where for where, node in nodes(ast.Name, others) if node.id == "print")


def public(tree):
    """(name, node) of a file's public functions and classes, and of the classes' public methods."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                yield from ((f"{node.name}.{name}", method) for name, method in public(node))


def test_everything_public_has_a_docstring():
    assert_none(file for file, tree in TREES.items() if not ast.get_docstring(tree))
    assert_none(f"{file}: {name}" for file, tree in TREES.items() for name, node in public(tree)
                if not ast.get_docstring(node))
    assert_none(field.name for config in (ModelConfig, TrainConfig) for field in dataclasses.fields(config)
                if not field.metadata.get("help"))


def leaves_the_encoding_to_the_machine(call):
    """Whether a call reads or writes text in an encoding that differs between Windows and Linux."""
    name, keywords = ast.unparse(call.func), {keyword.arg for keyword in call.keywords}
    strings = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
    return "encoding" not in keywords and (
        name.endswith(".read_text") and not call.args or name.endswith(".write_text") and len(call.args) < 2
        or re.search(r"(?<!os\.)(?<!zip\.)(?<!archive\.)\bopen$", name) and name != "webbrowser.open"
        and not any(re.fullmatch(r"[rwx]\+?b\+?", str(text)) for text in strings)
        or "text" in keywords and name.startswith("subprocess."))


def test_text_files_are_read_and_written_in_utf_8_wherever_the_tests_run():
    for line in ("p.read_text()", "p.write_text(t)", "open(p)", "p.open('w')", "subprocess.run(c, text=True)"):
        assert leaves_the_encoding_to_the_machine(ast.parse(line).body[0].value)
    texts = {path: path.read_text("utf-8") for folder in ("minimoe", "tests")
             for path in (ROOT.parent / folder).rglob("*.py")}
    trees = {path: ast.parse(text) for path, text in texts.items() if re.search(r"_text\(|\bopen\(|text=True", text)}
    assert_none(f"{path.relative_to(ROOT.parent)}:{node.lineno}" for path, tree in trees.items()
                for node in ast.walk(tree) if isinstance(node, ast.Call) and leaves_the_encoding_to_the_machine(node))


def test_functions_and_files_are_short():
    lengths = {f"{file}: {node.name}": (node.end_lineno - node.lineno + 1, 60) for file, node in FUNCTIONS}
    lengths |= {file: (len((ROOT / file).read_text("utf-8").splitlines()), 300) for file in TREES}
    assert_none(f"{name}: {length} lines, at most {most}" for name, (length, most) in lengths.items() if length > most)


def test_there_is_no_file_for_odds_and_ends_and_requirements_are_floors():
    assert not list(ROOT.rglob("util*"))
    lines = (ROOT.parent / "requirements.txt").read_text("utf-8").splitlines()
    assert_none(line for line in lines if not re.fullmatch(r"[a-z-]+>=[0-9.]+", line))
