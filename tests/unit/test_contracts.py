"""The rules of the house, held for every file there is: what may import what, who stands beside whom, which names tell
the truth, what keeps its type, and what nobody does."""

import ast
import dataclasses
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import minimoe
from minimoe import batches, gradcheck, model, parameters
from minimoe.config import ModelConfig, TrainConfig
from minimoe.generation import sampling
from minimoe.moe import capacity, losses, routers, soft, telemetry
from minimoe.moe.routing import Tokens
from tests import shapes

ROOT = Path(minimoe.__file__).parent
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}
CORE = [name for name in TREES if name.startswith(("nn/", "moe/")) or name == "model.py"]
FUNCTIONS = [(file, node) for file, tree in TREES.items() for node in ast.walk(tree)
             if isinstance(node, ast.FunctionDef)]

FLOORS = {"parameters": 0, "files": 0, "terminal": 0, "nn": 1, "moe": 2, "config": 2.5, "model": 3, "batches": 3.5,
          "gradcheck": 4, "generation": 4, "training": 4, "sparsity": 5, "cost": 5, "": 5.5, "plots": 6, "analysis": 7,
          "experiments": 8, "course": 9, "cli": 10, "__main__": 11}
"""A file imports from lower floors and from its own folder.  "" is `minimoe/__init__.py`, the face of floors 0 to 5."""


def assert_none(violations):
    violations = sorted(set(violations))
    assert not violations, "\n" + "\n".join(violations)


def room(file):
    """The part of the house that a file is in: a folder, or the file itself; "" is the face."""
    return file.split("/")[0].removesuffix(".py").replace("__init__", "")


def floor(file):
    return FLOORS.get(room(file), 12)


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
    assert list(imports("cli/train.py", ast.parse("from minimoe import ModelConfig"))) == ["__init__.py"]


@pytest.mark.parametrize(("file", "target", "up"), [
    ("nn/ops.py", "moe/layer.py", True), ("nn/ops.py", "nn/attention.py", False), ("model.py", "nn/ops.py", False),
    ("moe/layer.py", "config/model.py", True), ("config/model.py", "moe/layer.py", False),
    ("parameters.py", "files.py", True),
    ("model.py", "__init__.py", True), ("cli/train.py", "__init__.py", False),
    ("__init__.py", "generation/sampling.py", False), ("__init__.py", "cli.py", True)])
def test_up_and_down_are_told_apart(file, target, up):
    assert goes_up(file, target) == up


MAPS = [file for file in TREES if Path(file).name == "__init__.py"]


@pytest.mark.parametrize("file", MAPS)
def test_the_docstring_of_a_folder_is_its_map(file):
    """A line for each file and folder in it, indented by 4: name, spaces, what it is."""
    folder = (ROOT / file).parent
    inside = [path.stem for path in folder.iterdir() if path.suffix == ".py" and not path.name.startswith("__")]
    inside += [path.parent.name for path in folder.glob("*/__init__.py")]
    lines = (ROOT / file).read_text().split('"""')[1].splitlines()
    assert sorted(line.split()[0] for line in lines if re.match(r" {4}\w+ {2,}\S", line)) == sorted(inside)


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
        assert sum(len(w.shape) == 2 for w in page.weights(CONFIG, 1.0).values()) == facts.matrices
        assert ("bias_E" in page.weights(CONFIG, 1.0)) == facts.has_bias
        assert all(callable(getattr(page, name)) for name in ("forward", "backward"))


def asked(node):
    """The names of routers that a syntax node looks up or compares with."""
    parts = {ast.Compare: lambda: [node.left, *node.comparators], ast.Dict: lambda: node.keys}.get(type(node), list)()
    inside = [part for whole in parts if whole for part in getattr(whole, "elts", [whole])]
    named = {part.value for part in inside if isinstance(part, ast.Constant)}
    return named & routers.ROUTERS.keys() - {"soft", "random"}


@pytest.mark.parametrize("line", ["a == 'switch'", "'switch' != a", "a in ('b', 'switch')", "{'switch': 1}"])
def test_a_question_about_one_router_is_found_however_it_is_put(line):
    assert asked(ast.parse(line).body[0].value) == {"switch"}


def test_only_its_own_page_knows_a_router():
    """Others ask for its facts.  ("soft" is also a kind of layer, "random" a drop order.)"""
    rooms = {"config", "nn", "moe", "model", "batches", "gradcheck", "generation", "training", "cost", "analysis"}
    assert_none(f"{where}: {name}" for where, node in nodes((ast.Compare, ast.Dict)) for name in asked(node)
                if room(where) in rooms and where.split(":")[0] != "moe/routers/__init__.py")


MADE_UP = '''
"""Made up: the K experts with the lowest scores, their gates the probabilities."""

from minimoe.moe import gates, routing
from minimoe.moe.facts import Facts
from minimoe.moe.routers import softmax_topk
from minimoe.nn import ops

FACTS = Facts(summary="the lowest scores", losses=dict(balance=0.01))

weights = softmax_topk.weights


def forward(x_TD, weights, config, tokens, training=False, rng=None, replay=None):
    """Returns a Routing, cache."""
    logit_TE, linear = ops.linear_forward(x_TD, weights["w_router_DE"])
    prob_TE, softmax = ops.softmax_forward(logit_TE)
    expert_TK = gates.top_k_experts(-logit_TE, config.top_k, replay)
    assigned, weighed = gates.gates_forward(prob_TE, expert_TK, tokens.mask_T, config.gates_sum_to_one)
    return (routing.dropless_routing(*assigned, logit_TE, prob_TE, tokens),
            softmax_topk.SoftmaxTopKCache(linear, softmax, weighed))


def backward(grad, cache):
    """Gradients of x_TD and, as a dict, of the weights."""
    return softmax_topk.backward(grad, cache)
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
assert all(gradcheck.check_layer(config).ok for config in made_up)
assert gradcheck.check_layer(made_up[5], one_by_one=True).rows[-1].length > 0
"""


def test_a_new_router_needs_its_file_and_its_line_alone(tmp_path):
    shutil.copytree(ROOT, tmp_path / "minimoe", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "minimoe/moe/routers/made_up.py").write_text(MADE_UP)
    table = tmp_path / "minimoe/moe/routers/__init__.py"
    table.write_text(table.read_text().replace("PAGES = {\n", "PAGES = {\n" + MADE_UP_LINE))
    run = subprocess.run([sys.executable, "-c", USE_IT], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def key():
    """The letters that the docstring of minimoe explains."""
    return set(re.findall(r"   ([A-Z1]) (?:= [^a-z]+ )?[a-z]", minimoe.__doc__))


def test_the_key_is_found():
    assert set("BSTDHGPMQVLEKFJCZANR1") == key()


def test_every_letter_of_a_suffix_is_in_the_key():
    assert_none(f"{file}: {match[0]}" for file in TREES
                for match in shapes.SUFFIX.finditer((ROOT / file).read_text()) if not set(match[1]) <= key())


B, S, PAST = 3, 10, 1
CONFIG = ModelConfig(vocab_size=13, d_model=24, n_layers=1, n_heads=6, n_kv_heads=2, d_hidden=11, n_experts=7,
                     top_k=5, max_sequence=S, capacity_factor=0.8)
CHANGED = {f"drop by {order}": dict(drop_order=order) for order in capacity.ORDERS} | {
    "dropless": dict(capacity_factor=None),
    "raw gates": dict(renormalize=False),
    "one expert a token": dict(top_k=1),
    "two layers": dict(n_layers=2),
    "tied": dict(tie_embeddings=True),
    "dense": dict(n_experts=1, top_k=1),
    "shared experts": dict(n_shared_experts=2),
    "first layer dense": dict(n_layers=2, first_dense_layers=1, d_dense=15),
    "every second layer": dict(n_layers=2, moe_every=2),
    "every layer dense": dict(first_dense_layers=1, d_dense=15),
    "no jitter": dict(router="switch", top_k=1, jitter=0),
    "groups": dict(router="sigmoid_bias", n_groups=7, top_groups=5, gate_scale=2.5),
}


def with_all_losses(router):
    """The fields of a router with each loss that it can have."""
    fields = {f"{name}_coef": 0.1 for name in losses.LOSSES if name != "load" or router == "noisy_topk"}
    fields |= dict(router=router, top_k=routers.ROUTERS[router].FACTS.top_k or CONFIG.top_k, n_devices=7)
    return fields | (dict(capacity_factor=None, top_k=4) if routers.ROUTERS[router].FACTS.soft else {})


CHANGED |= {router: with_all_losses(router) for router in routers.ROUTERS}
CASES = {name: dataclasses.replace(CONFIG, **fields) for name, fields in CHANGED.items()}
"""Name -> ModelConfig: every router, with every loss, and every option of the layer."""
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
    telemetry.drop_by_label(routing, np.arange(routing.n_tokens) % 2, 2)
    telemetry.churn(telemetry.chosen(routing), telemetry.chosen(routing))
    telemetry.coactivation(routing)
    telemetry.first_choice(routing)
    routing.one_hot()


def widths(config):
    """The letters that have one size in a model."""
    letters = dict(D=config.d_model, H=config.n_heads, G=config.kv_heads, P=config.d_head, V=config.vocab_size,
                   E=config.n_experts, F=config.d_hidden)
    if routers.ROUTERS[config.router].FACTS.soft:
        C = soft.slots_per_expert(config)
        letters |= dict(C=C, Z=config.n_experts * C)
    elif config.router != "expert_choice":  # where a token has as many experts as want it
        letters |= dict(K=config.top_k)
    if "dense" in config.layer_kinds:
        letters |= dict(J=config.dense_width)
    return letters | (dict(J=config.n_shared_experts * config.d_hidden) if config.n_shared_experts else {})


def assigned(routing):
    """The letters that have one size in a layer."""
    letters = dict(A=len(routing.kept_A), N=int(routing.kept_A.sum()), C=routing.capacity, K=routing.n_ranks, L=8)
    return {letter: size for letter, size in letters.items() if size is not None}


def share(config, routings):
    """What is done once a step, not once a micro-batch: loads of all, and weights that no gradient moves."""
    count_LE = np.array([r.count_E for r in routings])
    model.after_step(model.init_params(config), count_LE, config)
    (logit_TV, _), _ = model.model_forward(model.init_params(config), TOKENS_BS, config, MASK_BS)
    load_LE = count_LE / count_LE.sum(axis=1, keepdims=True)
    model.losses_forward(logit_TV, routings, TARGETS_BS, config, MASK_BS, load_LE)


def repeat(config, routing):
    """What the explorer asks of a router, to decide again as it did."""
    weights = parameters.scope(model.init_params(config), f"layers.{config.moe_layers[0]}.moe.")
    return routers.ROUTERS[config.router].FACTS.explorer.numbers(routing, weights)


def runs(config):
    """(sizes, function) of all that the core does with a configuration."""
    params, batch = model.init_params(config), dict(B=B, S=S, T=B * S, M=S)
    (_, routings), _, _ = step(config)
    whole = widths(config) | batch
    yield whole, lambda: model.init_params(config)
    yield whole, lambda: model.forward(params, TOKENS_BS, config, MASK_BS)
    yield whole, lambda: batches.loss_and_grads(params, TOKENS_BS, TARGETS_BS, config, MASK_BS,
                                              rng=np.random.default_rng(0))
    trained = whole | assigned(routings[0]) if len(routings) == 1 else whole
    yield trained, lambda: (step(config), step(config, replays=routings), [read(r) for r in routings[:1]])
    yield whole, lambda: [repeat(config, routing) for routing in routings]
    yield whole, lambda: (Tokens.anonymous(MASK_BS.ravel()), share(config, routings) if routings else None)
    if routers.ROUTERS[config.router].FACTS.causal_in_evaluation:
        yield whole | dict(S=S - PAST, T=B * (S - PAST)), decode(config)
        yield widths(config), lambda: sampling.generate(params, config, TOKENS_BS[0, :2], 4)


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
    layer = widths(CASES["shared experts"]) | assigned(routings[0]) | dict(B=B)
    whole = dict(S=S, T=B * S)
    for letters in (layer | whole, layer | dict(S=S - PAST, T=B * (S - PAST), M=S), widths(CASES["soft"]) | whole):
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


OF_A_KIND = {"moe": {"gate_A", "prob_TE", "balance", "z", "w_up_EDF"}, "dense": {"w_up_DJ"},
             "soft": {"w_slot_DEC", "w_up_EDF"}}
"""What must be among all that a step with such a layer makes."""


def floating(value):
    """(name, array or number) of each that is not whole, in nested containers."""
    return [(name, part) for inside in shapes.containers(value) for name, part in inside.items()
            if getattr(part, "dtype", np.dtype(int)).kind in "fc"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES)
def test_the_type_of_the_parameters_is_the_type_of_everything(case, dtype):
    config = CASES[case]
    found = floating(step(config, dtype))
    expected = {"total", "ce", "k_BGMP", "gain_D"}.union(*(OF_A_KIND[kind] for kind in config.layer_kinds))
    assert expected <= {name for name, _ in found}
    assert_none(f"{name} is {part.dtype}" for name, part in found if part.dtype != dtype)


@pytest.mark.parametrize("case", CASES)
def test_complex_numbers_pass_through_the_forward(case):
    """Turned by a tiny angle, the parameters turn the objective; not turned, they leave it what it was."""
    config, params = CASES[case], gradcheck.random_params(CASES[case])
    plain, still, turned = (
        model.objective_forward({name: w * factor for name, w in params.items()}, TOKENS_BS, TARGETS_BS, config)[0][0]
        for factor in (1, 1 + 0j, 1 + 1e-20j))
    plain, still_too = ([losses.ce, *losses.auxiliary.values(), losses.total] for losses in (plain, still))
    np.testing.assert_allclose(still_too, plain, rtol=1e-12)
    assert np.imag(still.total) == 0
    assert np.imag(turned.total) != 0


NOT_ANALYTIC = {"abs", "absolute", "fabs", "maximum", "minimum", "fmax", "fmin", "clip", "sign", "hypot", "norm",
                "angle", "conj", "conjugate", "vdot"}


OF_REAL_NUMBERS = {
    "moe/routers/sigmoid_bias.py": {"after_step"},
    "moe/linear_assignment.py": {"balanced_assignment", "_best_move", "_prices", "_moves", "_shortest_paths"},
    "moe/routers/sinkhorn.py": {"plan"},
}
"""Functions that choose or count, and so get real numbers alone: no gradient flows through them."""


def test_the_forward_is_analytic():
    """But for functions that get real numbers alone; and telemetry, which only reads a Routing."""
    assert_none(f"{file}:{node.lineno}: {name}" for file in CORE if file != "moe/telemetry.py"
                for part in TREES[file].body if getattr(part, "name", None) not in OF_REAL_NUMBERS.get(file, ())
                for node in ast.walk(part) if isinstance(node, ast.Call)
                if (name := ast.unparse(node.func).split(".")[-1]) in NOT_ANALYTIC)


def test_functions_of_real_numbers_get_no_complex_ones():
    seen, given = set(), []

    def profile(frame, event, _):
        name = frame.f_code.co_name, frame.f_code.co_filename
        if event == "call" and name in functions:
            seen.add(name)
            given.extend(name for array in parameters.arrays_in(dict(frame.f_locals)) if array.dtype.kind == "c")

    functions = {(name, str(ROOT / file)) for file, of_file in OF_REAL_NUMBERS.items() for name in of_file}
    for config in CASES.values():
        params = {name: w * (1 + 1e-20j) for name, w in gradcheck.random_params(config).items()}
        sys.setprofile(profile)
        try:
            (_, routings), _ = model.objective_forward(params, TOKENS_BS, TARGETS_BS, config, MASK_BS, training=True,
                                                       rng=np.random.default_rng(0))
            model.after_step(gradcheck.random_params(config), [r.count_E for r in routings], config)
        finally:
            sys.setprofile(None)
    assert_none(map(str, given))
    assert seen == functions


def test_nothing_that_is_passed_in_is_changed():
    """Of every function of the core, private ones too: its arguments before the call and after it.

    But for `out`, which is there to be written to, as NumPy's is.
    """
    before, changed = {}, []
    files = {str(ROOT / file) for file in CORE}

    def profile(frame, event, _):
        code = frame.f_code
        if code.co_filename in files and event == "call":
            given = {name: value for name, value in frame.f_locals.items() if name != "out"}
            before[frame] = [(array, array.copy()) for array in parameters.arrays_in(given)]
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
    programs = {"cli", "plots", "experiments", "course", "__main__"}
    others = {file for file in TREES if room(file) not in programs and file != "training/progress.py"}
    assert_none(where for where, node in nodes(ast.Name, others) if node.id == "print")


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


@pytest.mark.parametrize("config", [ModelConfig, TrainConfig])
def test_every_option_explains_itself(config):
    assert_none(field.name for field in dataclasses.fields(config) if not field.metadata.get("help"))
