"""Options: each sets what it names, help fits the terminal, and what cannot work is refused in one line."""

import re
import shlex
from dataclasses import asdict, fields

import pytest

from minimoe import cli, gradcheck
from minimoe.cli import arguments
from minimoe.config import ModelConfig, TrainConfig, preset
from minimoe.course import lessons
from minimoe.experiments import compare, routers, sparsity, studies, tour
from minimoe.moe import capacity, losses
from minimoe.moe.routers import ROUTERS
from minimoe.training import checkpoint

COMMANDS = ("train", "prune", "generate", "route", "explore", "doctor", "gradcheck", "figures", "routers", "compare",
            "sparsity", "studies", "lessons", "causality", "rosetta", "cost", "bench")

REFUSED = {  # a command -> what its one line names: one of each kind; what fields can be is tested with the fields
    "train --top-k 9": ["top_k = 9", "n_experts = 8"], "train --beta2 nan": ["beta2 = nan"],
    "train --batch 1.5": ["--batch", "1.5", "int"], "train --d-model none": ["--d-model", "none", "int"],
    "train --router magic": ["--router", "magic", *ROUTERS], "train --drop-order last": ["last", *capacity.ORDERS],
    "train --preset huge": ["--preset", "huge", "tiny", "shakespeare-cpu"],
    "train --text words.txt --clusters": ["--text", "--clusters", "not allowed"],
    "train --no-such-option 1": ["no option --no-such-option", "python -m minimoe train --help"],
    "train --top_k 2": ["no option --top_k; did you mean --top-k"], "train --steps=2": ["did you mean --n-steps?"],
    "train --vocab-size 9": ["--vocab-size"], "doctor runs/done runs/half": ["no argument 'runs/half'"],
    "--seed 3": ["no option --seed; did you mean --seeds?"],
    "trian": ["no command 'trian'; did you mean train?"], "--quik": ["did you mean --quick?"],
    "train --router swich": ["did you mean switch?"],
    "train --sequence 65": ["sequence = 65", "max_sequence = 64"], "train --finer 3": ["finer = 3", "d_hidden = 256"],
    "train --text missing.txt": ["missing.txt", "No such file"],
    "train --preset tiny --text short.txt": ["short.txt", "19", "too short", "32"],
    "train --preset tiny --run runs/half --text words.txt": ["runs/half/checkpoint.npz", "--resume", "--run"],
    "train --preset tiny --text words.txt --run words.txt/run": ["cannot write", "words.txt/run"],
    "train --preset tiny --text words.txt --run words.txt": ["words.txt is a file: a run is a folder"],
    "doctor runs/done/checkpoint.npz": ["is a file: name the folder, runs/done"],
    "train --resume --run nowhere": ["no checkpoint", "nowhere/checkpoint.npz"],
    "train --resume --run runs/half --text words.txt --top-k 1": ["--top-k 1", "started with 2"],
    "train --resume --run runs/half --text words.txt --no-renormalize": ["--renormalize False", "started with None"],
    "train --resume --run runs/half --text words.txt --preset tiny": ["--preset tiny", "its own options"],
    "train --resume --run runs/half --text 'other words.txt'": ["text", "not the one"],
    "train --resume --run runs/half": ["trained on your own texts, words.txt", "--text"],
    "gradcheck --top-k 99": ["top_k = 99", f"n_experts = {gradcheck.SMALL.n_experts}"],
    "generate --run nowhere": ["nowhere", "runs/done, runs/half", "ships with the lessons: choose with --run"],
    "generate --run runs/done --prompt ''": ["--prompt", "at least one character"],
    "generate --run runs/done --prompt 'the été Zoë'": ["'Z'", "'é'", "'ë'", "not seen in training"],
    "route --run runs/done cat --layer 2": ["--layer 2", "with a router are 0, 1"],
    "route --run runs/done cat --capacity-factor 0": ["--capacity-factor 0", "above 0"],
    f"route --run runs/done {'t' * 33}": ["33 characters", "1 to 32"],
    "route --run runs/done ''": ["0 characters", "1 to 32"],
    "explore runs/done --output page.txt": ["page.txt", "must end in .html"],
    "explore runs/done --output /dev/null/page.html": ["cannot write the page /dev/null/page.html"],
    "doctor nowhere": ["no trained run in nowhere (no checkpoint.npz)", "choose by naming its folder"],
    "--quick train --clusters": ["--quick", "is an option of the tour", "`routers`, `compare`, `sparsity`, `studies`"],
    "sparsity --kept --fresh": ["--kept trains nothing", "leave --fresh out"],
    "--seeds 0": ["--seeds 0", "1 or more"], "--seeds -1 compare": ["--seeds -1", "1 or more"],
    "--threads 0 train --clusters": ["--threads 0", "1 or more"],
    "--threads 2 cost": ["--threads", "cost", "`prune`, `routers`, `compare`, `studies` and `bench`"],
    "causality --trials 0": ["--trials 0", "1 or more"], "bench --steps 0": ["steps = 0", "1 or more"],
    "bench --figure words.txt": ["words.txt", ".png"], "cost --ranks 2": ["--ranks", "--run"],
    "cost --run runs/done --top-k 1": ["--top-k", "no effect with --run"], "dance": ["dance", *COMMANDS],
}


@pytest.mark.parametrize("command", REFUSED)
def test_what_cannot_work_is_refused_by_name_and_value(refused, command):
    line = refused(command)
    assert [words for words in REFUSED[command] if words not in line] == [], line


FOR_ALL = dict(
    d_model=24, n_layers=3, n_heads=6, n_kv_heads=3, d_head=8, d_hidden=5, n_experts=6, top_k=1, n_shared_experts=2,
    first_dense_layers=1, moe_every=2, d_dense=7, capacity_factor=1.5, eval_capacity_factor=2.5, pad_experts=True,
    drop_order="rank", balance_coef=0.5, z_coef=0.25, importance_coef=0.125, sequence_coef=0.375, device_coef=0.625,
    entropy_coef=0.75, n_devices=3, global_balance=True, rope_theta=100.0, norm_eps=1e-4, tie_embeddings=True,
    max_sequence=48, n_steps=2, batch=3, sequence=16, groups=3, accumulate=2, learning_rate=1e-4,
    min_learning_rate=1e-5, warmup_steps=1, weight_decay=0.2, beta1=0.8, beta2=0.98, adam_eps=1e-7, clip_norm=2.0,
    eval_every=2, eval_batches=1, record_every=3, checkpoint_every=4, seed=5, router="sigmoid_bias", bias_rate=0.5,
    n_groups=3, top_groups=2, group_score="paper", balance_first=True, gate_scale=2.5, renormalize=False, jitter=0.5,
    load_coef=0.875, sparsity=0.5, dynamic="set", density="erdos_renyi", sparsity_every=1, drop_fraction=0.25,
    sparsity_end=1.0)
DEFAULTS = asdict(ModelConfig()) | asdict(TrainConfig())


def option(name, value=""):
    """What sets a field on the command line."""
    flag = name.replace("_", "-")
    return (f"--{flag}" if value else f"--no-{flag}") if isinstance(value, bool) else f"--{flag} {value}"


def read(line):
    """The fields that a line sets."""
    options = cli.parser().parse_args(shlex.split(line))
    return arguments.given(options, ModelConfig) | arguments.given(options, TrainConfig)


def test_every_field_has_an_option_that_sets_it():
    assert {name for name, value in FOR_ALL.items() if value != DEFAULTS[name]} == DEFAULTS.keys() - {"vocab_size"}
    assert read(" ".join(["train", *(option(*field) for field in FOR_ALL.items())])) == FOR_ALL
    assert read("train --d-model 7 --renormalize") == dict(d_model=7, renormalize=True)
    optional = ["n_kv_heads", "d_dense", "capacity_factor", "eval_capacity_factor", "min_learning_rate",
                *(f"{name}_coef" for name in losses.LOSSES)]
    nones = " ".join(option(name, none) for name, none in zip(optional, ("none", "None", "NONE") * 9, strict=False))
    assert read(f"train {nones}") == dict.fromkeys(optional)


def test_options_that_are_not_given_are_those_of_the_preset(run):
    assert run("train --preset tiny --n-steps 1 --text words.txt --run new --no-tie-embeddings --finer 2")[0] == 0
    state = checkpoint.load("new/checkpoint.npz")
    config, training = preset("tiny", dict(vocab_size=17), dict(n_steps=1))
    assert (state.model_config, state.train_config) == (config.finer(2), training)


def documented(run, command):
    """Option -> what the help of a command says of it, each on one line."""
    status, out, _ = run(f"{command} --help")
    assert status == 0 and max(map(len, out.splitlines())) <= 80, command
    return {option: " ".join(text.split()) for names, text in
            re.findall(r"^  (--\S.*?)(?:\n? {2,})(\S.*(?:\n {6,}.*)*)", out, re.MULTILINE)
            for option in re.findall(r"--[a-z0-9-]+", names)}


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_80_columns_and_explains_the_options(run, command):
    """For the fields of a configuration with their explanation, and the default of the command."""
    told = documented(run, command)
    shown = {"train": preset("shakespeare-cpu"), "gradcheck": [gradcheck.SMALL]}.get(command, [])
    for field, value in ((field, getattr(record, field.name)) for record in shown for field in fields(record)):
        if (command, field.name) != ("train", "vocab_size"):  # which comes from the text
            words = told[option(field.name).strip()]
            assert field.metadata["help"] in words and words.endswith(f"(default: {str(value).lower()})")
    if command in ("routers", "compare", "sparsity", "studies"):
        assert {"--quick", "--seeds", "--fresh", "--processes" if command == "sparsity" else "--threads"} <= told.keys()
        assert "far too short" in told["--quick"] and "(default: 3)" in told["--seeds"]
    if command == "":
        assert all(re.search(rf"^ +{name} ", run("--help")[1], re.MULTILINE) for name in COMMANDS)


EXPERIMENTS = {  # a line -> the module whose `main` it calls, with what: quick, seeds, fresh, threads or processes
    "": (tour, False, 1, False, 2), "--quick --seeds 2 --fresh": (tour, True, 2, True, 2),
    "--threads 3": (tour, False, 1, False, 3), "routers": (routers, False, 3, False, 2),
    "compare --quick --seeds 2 --fresh --threads 1": (compare, True, 2, True, 1),
    "--quick --seeds 2 --fresh --threads 1 studies": (studies, True, 2, True, 1),
    "--quick --seeds 5 compare --seeds 4": (compare, True, 4, False, 2),
    "--fresh routers --threads 3": (routers, False, 3, True, 3),
    "sparsity --quick --processes 3": (sparsity, True, 3, False, 3),
    "lessons 03 04 --check": (lessons, ["03", "04"], True),
}


@pytest.mark.parametrize("line", EXPERIMENTS)
def test_options_of_an_experiment_stand_before_or_after_it(run, monkeypatch, line):
    module, *expected = EXPERIMENTS[line]
    seen = []
    monkeypatch.setattr(module, "main", lambda *given: seen.append(list(given)) or True)
    assert run(line) == (0, "", "")
    assert seen == [expected]
