"""The rules of the house, held for every file there is: what may import what, who stands beside whom, which names tell
the truth, what keeps its type, and what nobody does."""

import ast
import dataclasses
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import shapes

import minimoe
from minimoe import config as configs
from minimoe import generation, gradcheck, model
from minimoe import params as parameters
from minimoe.moe import routers, telemetry

ROOT = Path(minimoe.__file__).parent
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}
CORE = [name for name in TREES if name.startswith(("nn/", "moe/")) or name == "model.py"]
FUNCTIONS = [(file, node) for file, tree in TREES.items() for node in ast.walk(tree)
             if isinstance(node, ast.FunctionDef)]

FLOORS = {"config": 0, "params": 0, "nn": 1, "moe": 2, "model": 3, "gradcheck": 4, "generation": 4, "training": 4,
          "sparsity": 5, "analysis": 5, "": 5.5, "course": 6, "tour": 6, "commands": 7, "cli": 8, "__main__": 9}
"""A file imports from lower floors and from its own folder.  "" is `minimoe/__init__.py`, the face of floors 0 to 5."""


def assert_none(violations):
    violations = sorted(set(violations))
    assert not violations, "\n" + "\n".join(violations)


def room(file):
    """The part of the house that a file is in: a folder, or the file itself; "" is the face."""
    return file.split("/")[0].removesuffix(".py").replace("__init__", "")


def floor(file):
    return FLOORS.get(room(file), 10)


def file_of(module):
    """The file of a dotted name within minimoe; a name that is no module is looked up in what it is taken from."""
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


def test_every_file_has_a_floor():
    assert_none(f"{file}: unknown; give {room(file)!r} a floor in FLOORS" for file in TREES
                if room(file) not in FLOORS)


def test_imports_go_down():
    assert_none(f"{file} (floor {floor(file)}) imports {target} (floor {floor(target)})"
                for file, tree in TREES.items() for target in imports(file, tree) if goes_up(file, target))


@pytest.mark.parametrize("source", [
    "from minimoe import model", "import minimoe.model", "from minimoe.model import forward", "from .. import model",
    "from ..model import forward", "def f():\n    from minimoe import model"])
def test_an_import_is_found_however_it_is_written(source):
    assert list(imports("nn/ops.py", ast.parse(source))) == ["model.py"]


def test_a_name_that_is_no_module_comes_from_the_face():
    assert list(imports("tour.py", ast.parse("from minimoe import ModelConfig"))) == ["__init__.py"]


@pytest.mark.parametrize(("file", "target", "up"), [
    ("nn/ops.py", "moe/layer.py", True), ("nn/ops.py", "nn/attention.py", False), ("model.py", "nn/ops.py", False),
    ("config.py", "params.py", True), ("model.py", "__init__.py", True), ("tour.py", "__init__.py", False),
    ("__init__.py", "generation.py", False), ("__init__.py", "cli.py", True)])
def test_up_and_down_are_told_apart(file, target, up):
    assert goes_up(file, target) == up


def definitions(file):
    return [node for node in TREES[file].body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]


def is_forward(file, function):
    return file in CORE and (function.name.endswith("_forward")
                             or file.startswith("moe/routers/") and function.name == "forward")


def test_a_backward_stands_directly_beneath_its_forward():
    for file in CORE:
        names = [node.name for node in definitions(file)]
        forwards = [node.name for node in definitions(file) if is_forward(file, node)]
        backwards = [name for name in names if name.endswith("_backward") or name == "backward"]
        assert backwards == [name.replace("forward", "backward") for name in forwards], file
        assert [names[names.index(name) + 1] for name in forwards] == backwards, file


def test_a_router_has_the_four_names():
    for path in (ROOT / "moe/routers").glob("[!_]*.py"):
        names = vars(routers.POLICIES[path.stem])
        assert isinstance(names["CAUSAL"], bool), path.stem
        assert all(callable(names[name]) for name in ("weights", "forward", "backward")), path.stem


def key():
    """The letters that the docstring of minimoe explains."""
    return set(re.findall(r"   ([A-Z1]) (?:= \S+ )?[a-z]", minimoe.__doc__))


def test_the_key_is_found():
    assert set("BSTDHGPMVLEKFCANR1") <= key()


def test_every_letter_of_a_suffix_is_in_the_key():
    assert_none(f"{file}: {match[0]}" for file in TREES
                for match in shapes.SUFFIX.finditer((ROOT / file).read_text()) if not set(match[1]) <= key())


B, S, PAST = 3, 10, 1
CONFIG = configs.ModelConfig(vocab_size=13, d_model=24, n_layers=1, n_heads=6, n_kv_heads=2, d_hidden=11, n_experts=7,
                             top_k=5, max_sequence=S, capacity_factor=0.8)
CHANGED = {router: dict(router=router) for router in configs.ROUTERS}
CHANGED |= {"two layers": dict(n_layers=2), "tied": dict(tie_embeddings=True), "dense": dict(n_experts=1, top_k=1)}
CASES = gradcheck.layer_cases() | {name: dataclasses.replace(CONFIG, **fields) for name, fields in CHANGED.items()}
TOKENS_BS, TARGETS_BS = np.random.default_rng(0).integers(0, 7, (2, B, S))
MASK_BS = np.arange(S) < np.array([[S - 2], [S], [S]])


def step(config, dtype=np.float64, replays=None):
    """One training step on a batch with padding: (Losses, routings), cache and gradients."""
    params = {name: array.astype(dtype) for name, array in gradcheck.random_params(config).items()}
    out, cache = model.objective_forward(params, TOKENS_BS, TARGETS_BS, config, MASK_BS, training=True,
                                         rng=np.random.default_rng(0), replays=replays)
    return out, cache, model.objective_backward(1.0, cache)


def decode(config):
    """The last tokens of a batch, with the keys and values of the first ones as their past."""
    params = model.init_params(config)
    _, cache = model.model_forward(params, TOKENS_BS[:, :PAST], config)
    return lambda: model.model_forward(params, TOKENS_BS[:, PAST:], config, pasts=[
        (block.attention.k_BGMP, block.attention.v_BGMP) for block in cache.blocks])


def read(routing):
    """All that can be read from a Routing; eight times the same one, as if from eight layers."""
    telemetry.summarize([routing] * 8)
    telemetry.count_by_label(routing, np.arange(routing.n_tokens) % 2, 2)
    routing.one_hot()


def widths(config):
    """The letters that have one size in a model."""
    return dict(D=config.d_model, H=config.n_heads, G=config.kv_heads, P=config.d_head, V=config.vocab_size,
                E=config.n_experts, K=config.top_k, F=config.d_hidden)


def assigned(routing):
    """The letters that have one size in a layer."""
    letters = dict(A=len(routing.kept_A), N=int(routing.kept_A.sum()), C=routing.capacity, L=8)
    return {letter: size for letter, size in letters.items() if size is not None}


def runs(config):
    """(sizes, function) of all that the core does with a configuration."""
    params, batch = model.init_params(config), dict(B=B, S=S, T=B * S, M=S)
    (_, routings), _, _ = step(config)
    whole = widths(config) | batch
    yield whole, lambda: model.init_params(config)
    yield whole, lambda: model.forward(params, TOKENS_BS, config, MASK_BS)
    yield whole, lambda: model.loss_and_grads(params, TOKENS_BS, TARGETS_BS, config, MASK_BS,
                                              rng=np.random.default_rng(0))
    trained = whole | assigned(routings[0]) if config.n_layers == 1 else whole
    yield trained, lambda: (step(config), step(config, replays=routings), read(routings[0]))
    if routers.POLICIES[config.router].CAUSAL:
        yield whole | dict(S=S - PAST, T=B * (S - PAST)), decode(config)
        yield widths(config), lambda: generation.generate(params, config, TOKENS_BS[0, :2], 4)


@pytest.fixture(scope="module")
def traced():
    """What the tracer says of every case: (lies, names seen)."""
    lies, seen = {}, set()
    for config in CASES.values():
        for sizes, run in runs(config):
            with shapes.Tracer([ROOT / file for file in CORE], sizes) as tracer:
                run()
            lies, seen = tracer.lies | lies, seen | tracer.seen
    return lies, seen


def test_the_sizes_differ():
    """But for M, which is S where there is no past."""
    (_, routings), _, _ = step(CONFIG)
    layer = widths(CONFIG) | assigned(routings[0]) | dict(B=B)
    for letters in (layer | dict(S=S, T=B * S), layer | dict(S=S - PAST, T=B * (S - PAST), M=S)):
        assert len(set(letters.values())) == len(letters)


def test_every_suffix_is_true(traced):
    lies, _ = traced
    assert_none(f"{place}: {lie}" for place, lie in lies.items())


def test_every_suffix_is_looked_at(traced):
    """A name that no run reaches is not checked: let `runs` reach it."""
    _, seen = traced
    names = set().union(*(shapes.suffixed_locals(ROOT / file) for file in CORE))
    assert_none(f"{file}:{line}: {name}" for file, line, name in names - seen)


def lies_of(body, name="f"):
    """What the tracer says of a function of x_BSD, where B, S, T, D = 2, 3, 6, 4."""
    space = {"np": np}
    exec(compile(f"def {name}(x_BSD):\n" + textwrap.indent(body, "    "), "made up", "exec"), space)
    with shapes.Tracer(["made up"], dict(B=2, S=3, T=6, D=4)) as tracer:
        space[name](np.zeros((2, 3, 4)))
    return tracer.lies


@pytest.mark.parametrize("body", [
    "x_TD = x_BSD.reshape(6, 4)\nreturn x_TD", "'Returns y_TD, cache.'\nreturn x_BSD.reshape(6, 4), None",
    "mask_BS = None", "some_N, x_ND = np.arange(5), np.zeros((5, 4))", "sum_BS1 = x_BSD.sum(axis=2, keepdims=True)",
    "return {'layers.0.w_DF': np.zeros((4, 9)), 'layers.1.w_DF': np.ones((4, 9))}"])
def test_the_tracer_passes_the_truth(body):
    assert not lies_of(body)


@pytest.mark.parametrize("body", [
    "x_DT = x_BSD.reshape(6, 4)", "x_TD = x_BSD", "rows_B = len(x_BSD)", "sum_BS1 = x_BSD",
    "some_N, x_ND = np.arange(5), np.zeros((6, 4))",
    "x_TD = x_BSD\nx_TD = x_TD.reshape(6, 4)",
    "'Returns y_BD, cache.'\nreturn x_BSD[0], None", "'Gradient of x_BD: made up.'\nreturn x_BSD",
    "return [{'layers.0.w_BD': x_BSD[0]}]", "return {'layers.0.w_DF': np.zeros((4, 9)), 'b_F': np.ones(8)}"])
def test_the_tracer_catches_a_lie(body):
    assert len(lies_of(body)) == 1


def test_the_tracer_catches_a_result_that_belies_the_name_of_its_function():
    assert not lies_of("return x_BSD[0]", "first_SD")
    assert lies_of("return x_BSD[0]", "first_BD")


def test_the_operations_used_elsewhere_exist():
    names = {f"{Path(file).stem}.{node.name}" for file, node in FUNCTIONS}
    assert_none(name for name in shapes.ELSEWHERE if not {name, f"{name}_forward"} & names)


def floating(value):
    """(name, array or number) of each that is not whole, in nested containers."""
    return [(name, part) for inside in shapes.containers(value) for name, part in inside.items()
            if getattr(part, "dtype", np.dtype(int)).kind in "fc"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES)
def test_the_type_of_the_parameters_is_the_type_of_everything(case, dtype):
    found = floating(step(CASES[case], dtype))
    assert {"total", "ce", "gate_A", "prob_TE", "k_BGMP", "w_up_EDF", "gain_D"} <= {name for name, _ in found}
    assert_none(f"{name} is {part.dtype}" for name, part in found if part.dtype != dtype)


@pytest.mark.parametrize("case", CASES)
def test_complex_numbers_pass_through_the_forward(case):
    """Turned by a tiny angle, the parameters turn the objective; not turned, they leave it what it was."""
    config, params = CASES[case], gradcheck.random_params(CASES[case])
    plain, still, turned = (
        model.objective_forward({name: w * factor for name, w in params.items()}, TOKENS_BS, TARGETS_BS, config)[0][0]
        for factor in (1, 1 + 0j, 1 + 1e-20j))
    np.testing.assert_allclose(still, plain, rtol=1e-12)
    assert np.imag(still.total) == 0
    assert np.imag(turned.total) != 0


NOT_ANALYTIC = {"abs", "absolute", "fabs", "maximum", "minimum", "fmax", "fmin", "clip", "sign", "hypot", "norm",
                "angle", "conj", "conjugate", "vdot"}


def test_the_forward_is_analytic():
    """Telemetry only reads a Routing."""
    assert_none(f"{file}:{node.lineno}: {name}" for file in CORE if file != "moe/telemetry.py"
                for node in ast.walk(TREES[file]) if isinstance(node, ast.Call)
                if (name := ast.unparse(node.func).split(".")[-1]) in NOT_ANALYTIC)


def test_nothing_that_is_passed_in_is_changed():
    """Of every function of the core, private ones too: its arguments before the call and after it."""
    before, changed = {}, []
    files = {str(ROOT / file) for file in CORE}

    def profile(frame, event, _):
        code = frame.f_code
        if code.co_filename in files and event == "call":
            before[frame] = [(array, array.copy()) for array in parameters.arrays_in(dict(frame.f_locals))]
        elif frame in before and event == "return":
            changed.extend(code.co_qualname for array, copy in before.pop(frame) if array.tobytes() != copy.tobytes())

    for config in CASES.values():
        sys.setprofile(profile)
        try:
            step(config)
        finally:
            sys.setprofile(None)
    assert_none(changed)


@pytest.mark.parametrize("case", CASES)
def test_backward_can_be_called_twice(case):
    _, cache, first = step(CASES[case])
    second = model.objective_backward(1.0, cache)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def nodes(kind, files=TREES):
    """(file:line, node) of every syntax node of a kind."""
    return [(f"{file}:{node.lineno}", node) for file in files for node in ast.walk(TREES[file])
            if isinstance(node, kind)]


def test_nothing_is_asserted():
    assert_none(where for where, _ in nodes(ast.Assert))


def test_randomness_is_a_generator():
    """Neither NumPy's global generator nor Python's."""
    used = [(where, ast.unparse(node)) for where, node in nodes(ast.Attribute)]
    assert_none(f"{where}: {name}" for where, name in used if re.fullmatch(r"np\.random\.\w+", name)
                and name not in ("np.random.default_rng", "np.random.Generator"))
    assert_none(where for where, node in nodes((ast.Import, ast.ImportFrom))
                if "random" in [getattr(node, "module", None), *(alias.name for alias in node.names)])


def test_ties_go_to_the_lowest_index():
    calls = [(where, ast.unparse(node)) for where, node in nodes(ast.Call)]
    assert_none(f"{where}: {call}" for where, call in calls
                if re.match(r".*\.argpartition\(", call)
                or re.match(r"[\w.]+\.argsort\(", call) and "kind='stable'" not in call)


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


@pytest.mark.parametrize("line", ["A[0] = 1", "A.b = 1", "A[B].c[0] += 1", "del A[0]", "A.b.append(1)"])
def test_a_written_name_is_found_however_it_is_written(line):
    assert list(written_names(ast.parse(line))) == ["A"]


def test_no_function_writes_to_its_module():
    assert_none(where for where, _ in nodes(ast.Global))
    for file, function in FUNCTIONS:
        constants = {name.id for node in TREES[file].body if isinstance(node, (ast.Assign, ast.AnnAssign))
                     for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
        assert_none(f"{file}: {function.name} changes {name}" for name in written_names(function) if name in constants)


def test_only_the_programs_print():
    programs = {"cli.py", "commands.py", "tour.py", "__main__.py"}
    assert_none(where for where, node in nodes(ast.Name, TREES.keys() - programs) if node.id == "print")


def test_importing_minimoe_needs_numpy_alone():
    code = ("import sys; before = set(sys.modules); import minimoe; "
            "print(*{name.split('.')[0] for name in sys.modules.keys() - before "
            "if getattr(sys.modules[name], '__file__', None)})")
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) - sys.stdlib_module_names == {"minimoe", "numpy"}


def public(tree):
    """(name, node) of a file's public functions and classes, and of the classes' public methods."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                yield from ((f"{node.name}.{name}", method) for name, method in public(node))


def test_what_is_public_has_a_docstring():
    assert_none(file for file, tree in TREES.items() if not ast.get_docstring(tree))
    assert_none(f"{file}: {name}" for file, tree in TREES.items() for name, node in public(tree)
                if not ast.get_docstring(node))


def test_the_docstring_of_a_forward_tells_of_its_cache():
    assert_none(f"{file}: {function.name}" for file, function in FUNCTIONS
                if is_forward(file, function) and "cache" not in ast.get_docstring(function))


def test_functions_and_files_are_short():
    lengths = {f"{file}: {node.name}": (node.end_lineno - node.lineno + 1, 60) for file, node in FUNCTIONS}
    lengths |= {file: (len((ROOT / file).read_text().splitlines()), 300) for file in TREES}
    assert_none(f"{name}: {length} lines, at most {most}" for name, (length, most) in lengths.items() if length > most)


def test_there_is_no_file_for_odds_and_ends():
    assert not list(ROOT.rglob("util*"))


def test_requirements_are_floors():
    lines = (ROOT.parent / "requirements.txt").read_text().splitlines()
    assert_none(line for line in lines if not re.fullmatch(r"[a-z]+>=[0-9.]+", line))


@pytest.mark.parametrize("config", [configs.ModelConfig, configs.TrainConfig])
def test_every_option_explains_itself(config):
    assert_none(field.name for field in dataclasses.fields(config) if not field.metadata.get("help"))
