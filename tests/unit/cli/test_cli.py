"""The command line as its user meets it: what works says what it did, and what cannot work is refused in one line."""

import errno
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl

from minimoe import cli, gradcheck, model
from minimoe.cli import arguments
from minimoe.config import ModelConfig, TrainConfig, preset
from minimoe.cost import answers
from minimoe.course import lessons
from minimoe.experiments import compare, routers, studies, tour
from minimoe.generation import sampling
from minimoe.gradcheck import checks
from minimoe.moe import capacity, losses
from minimoe.moe.routers import ROUTERS
from minimoe.nn import ops
from minimoe.training import checkpoint, corpus, data, loop

FILES = {
    "words.txt": b"The cat sat on the mat, if x: the hat\n" * 30,
    "shuffled.txt": b"if x: the hat, The mat sat on the cat\n" * 30,
    "other.txt": b"0123456789\n" * 90,
    "short.txt": b"to be or not to be\n",
    "brief.txt": b"to be or not to be\n" * 16,
    "empty.txt": b"",
    "blank.txt": b" \n\n \n",
    "latin.txt": b"caf\xe9 au lait\n" * 90,
    "zero.bin": b"\0\1\2\3" * 300,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with FILES, a finished run, and half a run (3 of 6 steps), both on words.txt."""
    folder = tmp_path_factory.mktemp("made")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    text = data.build(corpus.from_files([folder / "words.txt"]), sequence=32)
    config, training = preset("tiny", dict(vocab_size=len(text.tokenizer)), dict(n_steps=6, eval_batches=2))
    state = loop.new_state(config, training, text)
    for _ in range(3):
        loop.step_once(state, text)
    checkpoint.save(folder / "half/checkpoint.npz", state)
    loop.train(state, text, folder / "run/checkpoint.npz")
    return folder


@pytest.fixture
def run(made, tmp_path, monkeypatch, capsys):
    """A function that runs a command in a copy of that folder: exit status, standard output, standard error."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")  # help is not wrapped
    monkeypatch.delenv("NO_COLOR", raising=False)

    def command(line):
        try:
            status = cli.main(shlex.split(line))
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return command


@pytest.fixture
def refused(run):
    """A function that runs a command which must fail with status 2, and change no file: the one line that it says."""

    def command(line):
        before = contents()
        status, out, err = run(line)
        assert (status, out) == (2, "")
        assert contents() == before
        assert len(err.splitlines()) == 1, err
        return err

    return command


def contents():
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def missing(line, words):
    """Which of the words a line does not say; top_k and --top-k are one word."""
    return [word for word in words if word.replace("_", "-") not in line.replace("_", "-")]


NUMBERS = [field for record in (ModelConfig, TrainConfig) for field in fields(record)
           if field.name != "vocab_size" and ("int" in str(field.type) or "float" in str(field.type))]
OPTION = {field.name: f"--{field.name.replace('_', '-')}" for record in (ModelConfig, TrainConfig)
          for field in fields(record)}


@pytest.mark.parametrize("value", ["-1", "nan"])
@pytest.mark.parametrize("name", [field.name for field in NUMBERS])
def test_no_number_is_negative_or_nan(refused, name, value):
    assert not missing(refused(f"train {OPTION[name]} {value}"), [name.replace("_", "-"), value])


IMPOSSIBLE = {
    "train --top-k 9": ["top-k", "9", "n-experts = 8"],
    "train --n-heads 3": ["n-heads", "3", "128", "multiple"],
    "train --n-heads 128": ["n-heads", "d-model", "128", "even"],
    "train --n-kv-heads 3": ["n-kv-heads", "3", "divide n-heads = 4"],
    "train --n-layers 0": ["n-layers", "0", "1 or more"],
    "train --capacity-factor 0": ["capacity-factor", "0", "above 0"],
    "train --capacity-factor inf": ["capacity-factor", "inf", "finite"],
    "train --eval-capacity-factor 0": ["eval-capacity-factor", "0", "above 0"],
    "train --top-k 1 --renormalize": ["renormalize", "True", "top-k >= 2"],
    "train --learning-rate inf": ["learning-rate", "inf", "finite"],
    "train --learning-rate 1e-4 --min-learning-rate 1e-3": ["min-learning-rate", "0.001", "0.0001"],
    "train --beta2 1": ["beta2", "1", "below 1"],
    "train --batch 1.5": ["batch", "1.5", "int"],
    "train --d-model none": ["d-model", "none", "int"],
    "train --sequence 65": ["sequence", "65", "max-sequence = 64"],
    "train --preset huge": ["preset", "huge", "tiny", "shakespeare-cpu"],
    "train --router magic": ["router", "magic", *ROUTERS],
    "train --drop-order last": ["drop-order", "last", *capacity.ORDERS],
    "train --text words.txt --clusters": ["text", "clusters", "not allowed"],
    "train --no-such-option 1": ["no-such-option"],
    "train --preset tiny --n-steps 1 --text words.txt --vocab-size 9": ["vocab-size"],
    "gradcheck --top-k 99": ["top-k", "99", f"n-experts = {gradcheck.SMALL.n_experts}"],
    "generate --run run --temperature -1": ["temperature", "-1", "0 or more"],
    "generate --run run --temperature nan": ["temperature", "nan", "finite"],
    "generate --run run --temperature inf": ["temperature", "inf", "finite"],
    "generate --run run --top-k 0": ["top-k", "0", "1 or more"],
    "generate --run run --top-p 0": ["top-p", "0", "above 0"],
    "generate --run run --top-p 1.5": ["top-p", "1.5", "at most 1"],
    "generate --run run --n-tokens -1": ["n-tokens", "-1", "0 or more"],
    "generate --run run --seed -1": ["seed", "-1", "0 or more"],
    "route --run run cat --layer 99": ["layer", "99", "with a router are 0, 1"],
    "route --run run cat --layer 2": ["layer", "2", "with a router are 0, 1"],
    "route --run run cat --layer -1": ["layer", "-1", "with a router are 0, 1"],
    "route --run run cat --capacity-factor 0": ["capacity-factor", "0", "above 0"],
    "route --run run cat --capacity-factor nan": ["capacity-factor", "nan", "finite"],
    "route --run run cat --drop-order last": ["drop-order", "last", *capacity.ORDERS],
    "route --run run cat --colour red": ["colour", "red", "auto", "always", "never"],
    "--seeds 0": ["seeds", "0", "1 or more"],
    "--quick train --clusters": ["quick", "belongs to the tour", "`routers`, `compare` and `studies`"],
    "--seeds 2 figures": ["seeds", "belongs to the tour", "`routers`, `compare` and `studies`"],
    "--fresh cost": ["fresh", "belongs to the tour", "`routers`, `compare` and `studies`"],
    "routers --seeds 0": ["seeds", "0", "1 or more"],
    "compare --seeds 0": ["seeds", "0", "1 or more"],
    "--seeds -1 compare": ["seeds", "-1", "1 or more"],
    "compare --n-steps 9": ["n-steps"],
    "causality --trials 0": ["trials", "0", "1 or more"],
    "train --finer 0": ["finer", "0", "divide d-hidden = 256"],
    "train --finer 3": ["finer", "3", "divide d-hidden = 256"],
    "train --router gshard --finer 2": ["finer", "2", "gshard", "always takes 2"],
    "train --router gshard --top-k 1": ["top-k", "1", "gshard", "always takes 2"],
    "train --jitter 0.1": ["jitter", "0.1", "softmax-topk", "no use", "switch"],
    "train --load-coef 0.1": ["load-coef", "0.1", "noise", "noisy-topk"],
    "train --router soft --capacity-factor 1": ["capacity-factor", "1", "soft", "no assignments"],
    "train --first-dense-layers 5": ["first-dense-layers", "5", "n-layers = 4"],
    "train --n-devices 3": ["n-devices", "3", "divide n-experts = 8"],
    "--threads 0 train --clusters": ["threads", "0", "1 or more"],
    "routers --threads -3": ["threads", "-3", "1 or more"],
    "compare --threads 0": ["threads", "0", "1 or more"],
    "--threads 2 route --run run cat": ["threads", "route", "`compare`, `studies` and `bench`"],
    "--threads 2 cost": ["threads", "cost", "tour, `train`, `routers`, `compare`, `studies` and `bench`"],
    "gradcheck --threads 2": ["threads"],
    "bench --figure words.txt": ["figure", "words.txt", ".png"],
    "bench --steps 0": ["steps", "0", "1 or more"],
    "bench --sequence 65": ["sequence", "65", "max-sequence = 64"],
    "bench --batch 7": ["groups", "2", "divide batch = 7"],
    "bench --n-steps 9": ["n-steps"],
    "dance": ["dance", "train", "generate", "route", "doctor", "gradcheck", "figures", "routers", "compare",
              "causality", "rosetta", "cost", "bench"],
}


@pytest.mark.parametrize("command", IMPOSSIBLE)
def test_an_impossible_option_is_refused_by_name_and_value_with_what_would_do(refused, command):
    assert not missing(refused(command), IMPOSSIBLE[command])


TEXTS = {
    "missing.txt": ["missing.txt", "No such file"],
    ".": ["--text .", "directory"],
    "empty.txt": ["empty.txt", "no text"],
    "blank.txt": ["blank.txt", "no text"],
    "latin.txt": ["latin.txt", "UTF-8"],
    "zero.bin": ["zero.bin", "binary"],
    "short.txt": ["short.txt", "19", "too short", "32"],
    "brief.txt": ["brief.txt", "304", "too short", "32"],  # its tenth that is held out has 31
    "words.txt words.txt": ["words.txt", "distinct names"],
    "words.txt missing.txt": ["missing.txt"],
}


@pytest.mark.parametrize("files", TEXTS)
def test_a_text_that_cannot_be_trained_on_is_refused(refused, files):
    assert not missing(refused(f"train --preset tiny --text {files}"), TEXTS[files])


def test_the_length_that_a_short_text_is_told_to_have_is_enough(run, refused):
    told = max(int(number) for number in re.findall(r"\d+", refused("train --preset tiny --text short.txt")))
    Path("long.txt").write_text(("to be " * told)[:told])
    status, _, _ = run("train --preset tiny --n-steps 1 --text long.txt --run new")
    assert status == 0


@pytest.mark.parametrize("command", ["generate --run run --prompt", "route --run run"])
def test_characters_that_the_model_never_saw_are_named(refused, command):
    assert not missing(refused(f"{command} 'the été Zoë'"), ["'Z'", "'é'", "'ë'", "not seen in training"])


def test_an_empty_prompt_is_refused_in_the_words_of_the_user(refused):
    line = refused("generate --run run --prompt ''")
    assert not missing(line, ["prompt"])
    assert "shape" not in line


@pytest.mark.parametrize("length", [0, 33])
def test_route_takes_a_text_that_fits_the_context(refused, length):
    assert not missing(refused(f"route --run run '{'t' * length}'"), [f"{length} characters", "1 to 32"])


def test_the_longest_text_fits(run):
    assert run(f"route --run run {'t' * 32}")[0] == 0


@pytest.mark.parametrize("command", ["generate --run nowhere", "route --run nowhere cat"])
def test_without_a_run_the_way_to_one_is_shown(refused, command):
    assert not missing(refused(command), ["nowhere", "python -m minimoe train"])


@pytest.mark.parametrize("command", ["train --resume --run nowhere"])
def test_without_a_run_its_missing_checkpoint_is_named(refused, command):
    assert not missing(refused(command), ["no checkpoint", "checkpoint.npz"])


def edited(raw, edit):
    """A checkpoint's bytes with the dict of its arrays, and its header read and written again, edited."""
    Path("edit.npz").write_bytes(raw)
    with np.load("edit.npz") as file:
        arrays = dict(file)
    header = json.loads(arrays["header"].tobytes())
    edit(header, arrays)
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez("edit.npz", **arrays)
    return Path("edit.npz").read_bytes()


def flipped(raw, place):
    return raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1:]


DAMAGE = {
    "empty": lambda raw: b"",
    "half": lambda raw: raw[:len(raw) // 2],
    "all but the last byte": lambda raw: raw[:-1],
    "something else": lambda raw: b"once upon a time" * 100,
    "a bit of an array flipped": lambda raw: flipped(raw, raw.index(b"embed.w_VD.npy") + 500),
    "marked as encrypted": lambda raw: flipped(raw, raw.rindex(b"PK\1\2") + 8),
    "marked as compressed": lambda raw: flipped(raw, raw.rindex(b"PK\1\2") + 10),
    "the place of its table of contents flipped": lambda raw: flipped(raw, raw.rindex(b"PK\5\6") + 18),
    "of another program": lambda raw: edited(raw, lambda header, arrays: header.update(format="maximoe")),
    "of another version": lambda raw: edited(raw, lambda header, arrays: header.update(version=2)),
    "without its step": lambda raw: edited(raw, lambda header, arrays: header.pop("step")),
    "of another width": lambda raw: edited(raw, lambda header, arrays: header["model_config"].update(d_model=64)),
    "with an unknown field": lambda raw: edited(raw, lambda header, arrays: header["train_config"].update(luck=7)),
    "without an array": lambda raw: edited(raw, lambda header, arrays: arrays.pop("params/embed.w_VD")),
    "with a pickle": lambda raw: edited(raw, lambda header, arrays: arrays.update({"history/ce": np.array([{}])})),
}


@pytest.mark.parametrize("command", ["generate --run half", "route --run half cat",
                                     "train --resume --run half --text words.txt"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused(refused, damage, command):
    path = Path("half/checkpoint.npz")
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert not missing(refused(command), ["half/checkpoint.npz"])


def test_a_checkpoint_of_another_version_says_which_this_program_reads(refused):
    path = Path("run/checkpoint.npz")
    path.write_bytes(DAMAGE["of another version"](path.read_bytes()))
    assert not missing(refused("generate --run run"), ["version 2", "version 1"])


@pytest.mark.parametrize("option", ["--n-steps 7", "--top-k 1", "--no-renormalize", "--drop-order rank", "--seed 1",
                                    "--n-kv-heads none", "--preset shakespeare-cpu"])
def test_a_run_goes_on_with_its_own_options_only(refused, option):
    name, _, value = option.removeprefix("--").removeprefix("no-").partition(" ")
    assert not missing(refused(f"train --resume --run half --text words.txt {option}").lower(), [name, value])


@pytest.mark.parametrize("text", ["--text shuffled.txt", "--text other.txt", "--text words.txt other.txt", "--clusters",
                                  ""])
def test_a_run_goes_on_with_its_own_text_only(refused, text):
    assert not missing(refused(f"train --resume --run half {text}"), ["text", "not the one"])


def test_a_run_goes_on_with_the_options_that_it_was_started_with(run):
    assert run("train --resume --run half --text words.txt --n-steps 6 --top-k 2 --d-model 32")[0] == 0
    np.testing.assert_array_equal(checkpoint.load("half/checkpoint.npz").history["ce"],
                                  checkpoint.load("run/checkpoint.npz").history["ce"])


def test_a_finished_run_says_so_and_stays(run):
    before = contents()
    status, out, _ = run("train --resume --run run --text words.txt")
    assert (status, contents()) == (0, before)
    assert not missing(out, ["finished", "6 steps"])


def test_an_existing_run_is_not_overwritten(refused):
    assert not missing(refused("train --preset tiny --run half --text words.txt"),
                       ["half/checkpoint.npz", "--resume", "--run"])


def test_a_folder_that_cannot_be_written_is_found_before_training(refused):
    line = refused("train --preset tiny --n-steps 20 --text words.txt --run words.txt/run")
    assert not missing(line, ["cannot write", "words.txt/run"])


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(run, monkeypatch, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    before = contents()
    monkeypatch.setattr(os, "replace", fail)
    status, _, err = run("train --resume --run half --text words.txt")
    assert (status, contents()) == (2, before)
    assert not missing(err.splitlines()[-1], ["half/checkpoint.npz", os.strerror(number)])


@pytest.fixture
def no_other_figures(monkeypatch):
    """Nothing is drawn but what is the tour's."""
    for module in (routers, compare, answers, studies, lessons):
        monkeypatch.setattr(module, "figure", lambda: None)


def test_a_figure_that_cannot_be_drawn_keeps_no_other_from_it(refused, no_other_figures, monkeypatch):
    def fail():
        raise ValueError("there is no routers.npz")

    drawn = []
    monkeypatch.setattr(routers, "figure", fail)
    monkeypatch.setattr(studies, "figure", lambda: drawn.append("explorer"))
    monkeypatch.setattr(tour, "figures", lambda: drawn.append("tour") or True)
    assert "no routers.npz" in refused("figures") and drawn == ["explorer", "tour"]


def test_figures_that_cannot_be_written_are_refused(run, no_other_figures, monkeypatch):
    monkeypatch.setattr(tour, "figures", lambda: tour.plots.save(tour.plots.Figure(), "words.txt/load.png"))
    status, _, err = run("figures")
    assert (status, len(err.splitlines())) == (2, 1)
    assert not missing(err, ["words.txt"])


def test_a_model_that_is_too_large_for_the_memory_is_refused(refused, monkeypatch):
    def fail(*_):
        raise MemoryError("Unable to allocate 7.28 TiB")

    monkeypatch.setattr(model, "init_params", fail)
    assert not missing(refused("train --text words.txt"), ["7.28 TiB"])


DIVERGING = "train --preset tiny --text words.txt --run new --warmup-steps 0 --checkpoint-every 1"


def test_a_number_that_is_not_finite_is_told_with_its_step_and_place(run):
    """The first step makes weights of 1e30, whose products overflow in the second."""
    status, _, err = run(f"{DIVERGING} --learning-rate 1e30")
    assert status == 2
    assert re.search(r"step 2: the gradient is (nan|inf).* layers\.\d.*new/checkpoint.npz keeps step 1;.*--learning-",
                     err.splitlines()[-1])
    assert checkpoint.load("new/checkpoint.npz").step == 1


def test_parameters_that_are_not_finite_are_not_saved(run):
    """The first step is as large as the learning rate, which float32 cannot hold."""
    status, _, err = run(f"{DIVERGING} --learning-rate 1e40")
    assert status == 2
    assert re.search(r"step 1: the parameter embed.w_VD is no longer finite; nothing was saved yet;.*--learning-rate",
                     err.splitlines()[-1])
    assert not Path("new/checkpoint.npz").exists()


@pytest.mark.parametrize(("rate", "where"), [
    ("1e30", "step 2: the gradient is"), ("1e40", "step 2: the loss is nan; .* in the parameter ")])
def test_nothing_is_kept_of_a_run_that_diverges_before_its_first_checkpoint(run, rate, where):
    status, _, err = run(f"{DIVERGING} --learning-rate {rate} --checkpoint-every 50")
    assert status == 2
    assert re.search(f"{where}.*nothing was saved", err.splitlines()[-1])
    assert not Path("new/checkpoint.npz").exists()


def test_a_validation_loss_that_is_not_finite_is_no_success(run):
    """A learning rate of 1e40 overflows the weights in the only step, after its loss was seen to be finite."""
    status, _, err = run(f"{DIVERGING} --learning-rate 1e40 --n-steps 1")
    assert status == 2
    assert "step 1" in err.splitlines()[-1]


FOR_ALL = dict(
    d_model=24, n_layers=3, n_heads=6, n_kv_heads=3, d_hidden=5, n_experts=6, top_k=1, n_shared_experts=2,
    first_dense_layers=1, moe_every=2, d_dense=7, capacity_factor=1.5, eval_capacity_factor=2.5, pad_experts=True,
    drop_order="rank", balance_coef=0.5, z_coef=0.25, importance_coef=0.125, sequence_coef=0.375, device_coef=0.625,
    entropy_coef=0.75, n_devices=3, global_balance=True, rope_theta=100.0, norm_eps=1e-4, tie_embeddings=True,
    max_sequence=48, n_steps=2, batch=3, sequence=16, groups=3, accumulate=2, learning_rate=1e-4,
    min_learning_rate=1e-5, warmup_steps=1, weight_decay=0.2, beta1=0.8, beta2=0.98, adam_eps=1e-7, clip_norm=2.0,
    eval_every=2, eval_batches=1, record_every=3, checkpoint_every=4, seed=5)
OWN = [dict(router="softmax_topk", renormalize=False), dict(router="switch", jitter=0.5),
       dict(router="noisy_topk", load_coef=0.875),
       dict(router="sigmoid_bias", bias_rate=0.5, n_groups=3, top_groups=2, gate_scale=2.5)]
"""Fields of one router each."""

DEFAULTS = asdict(ModelConfig()) | asdict(TrainConfig())


def option(name, value):
    """What sets a field on the command line."""
    if isinstance(value, bool):
        return OPTION[name] if value else OPTION[name].replace("--", "--no-")
    return f"{OPTION[name]} {value}"


@pytest.mark.parametrize("own", OWN, ids=lambda own: own["router"])
def test_an_option_sets_its_field(run, own):
    fields = FOR_ALL | own
    assert run(" ".join(["train --text words.txt --run new", *(option(*field) for field in fields.items())]))[0] == 0
    state = checkpoint.load("new/checkpoint.npz")
    assert asdict(state.model_config) | asdict(state.train_config) == DEFAULTS | fields | dict(vocab_size=17)


def test_every_field_has_an_option_that_changes_it():
    changed = {name for own in OWN for name, value in (FOR_ALL | own).items() if value != DEFAULTS[name]}
    assert changed == DEFAULTS.keys() - {"vocab_size"}  # which comes from the text


def test_optional_fields_take_none(run):
    """The preset has n_kv_heads = 2."""
    optional = ["n_kv_heads", "d_dense", "capacity_factor", "eval_capacity_factor", "min_learning_rate"]
    optional += [f"{name}_coef" for name in losses.LOSSES]
    nones = [f"{OPTION[name]} {none}" for name, none in zip(optional, itertools.cycle(["none", "None", "NONE"]))]
    assert run(f"train --preset tiny --n-steps 1 --text words.txt --run new {' '.join(nones)}")[0] == 0
    config = checkpoint.load("new/checkpoint.npz").model_config
    training = checkpoint.load("new/checkpoint.npz").train_config
    assert {getattr(training if name == "min_learning_rate" else config, name) for name in optional} == {None}


def test_options_that_are_not_given_are_those_of_the_preset(run):
    assert run("train --preset tiny --n-steps 1 --text words.txt --run new --no-tie-embeddings")[0] == 0
    state = checkpoint.load("new/checkpoint.npz")
    config, training = preset("tiny", dict(vocab_size=17), dict(n_steps=1))
    assert (state.model_config, state.train_config) == (config, training)


def documented(run, command):
    """Option -> what the help of a command says of it."""
    _, out, _ = run(f"{command} --help")
    return {option: re.sub(r"\s+", " ", text) for names, text in
            re.findall(r"^  (--\S.*?)(?:\n? {2,})(\S.*(?:\n {6,}.*)*)", out, re.MULTILINE)
            for option in re.findall(r"--[a-z0-9-]+", names)}


@pytest.mark.parametrize(("command", "records"), [
    ("train", [ModelConfig, TrainConfig]), ("gradcheck", [ModelConfig])])
def test_help_lists_every_field_with_its_explanation_and_unit(run, command, records):
    told = documented(run, command)
    for field in (field for record in records for field in fields(record)):
        if (command, field.name) != ("train", "vocab_size"):  # which comes from the text
            assert field.metadata["help"] in told[OPTION[field.name]]
            assert field not in NUMBERS or field.name == "seed" or re.search(r"\[.+\]", told[OPTION[field.name]])
    assert {"--no-renormalize", "--no-tie-embeddings"} <= told.keys()


@pytest.mark.parametrize(("command", "defaults"), [
    ("train", asdict(preset("shakespeare-cpu")[0]) | asdict(preset("shakespeare-cpu")[1])),
    ("gradcheck", asdict(gradcheck.SMALL))])
def test_help_tells_the_defaults_that_the_command_has(run, command, defaults):
    told = documented(run, command)
    wrong = {name for name, value in defaults.items()
             if (command, name) != ("train", "vocab_size")
             and f"(default: {str(value).lower()})" not in told[OPTION[name]]}
    assert wrong == set()


def test_help_names_every_command(run):
    status, out, _ = run("--help")
    assert status == 0
    assert not missing(out, ["--quick", "--seeds", "--fresh", "--threads", "train ", "generate ", "route ",
                             "doctor ", "gradcheck ", "figures ", "routers ", "compare ", "causality ", "rosetta ",
                             "cost ", "bench "])


@pytest.mark.parametrize("command", ["routers", "compare"])
def test_help_of_a_comparison_tells_its_options_and_how_many_seeds_it_has(run, command):
    told = documented(run, command)
    assert {"--quick", "--seeds", "--fresh", "--threads"} <= told.keys()
    assert "far too short to compare" in told["--quick"] and "(default: 3)" in told["--seeds"]


def loaded(folder="run"):
    state = checkpoint.load(f"{folder}/checkpoint.npz")
    return state, state.params, state.model_config


@pytest.mark.parametrize(("options", "same"), [
    ("--seed 3", dict(temperature=0.8, seed=3)),
    ("--temperature 2 --top-k 5", dict(temperature=2.0, top_k=5)),
    ("--top-p 0.5", dict(temperature=0.8, top_p=0.5)),
    ("--temperature 0", dict(temperature=0))])
def test_generate_writes_the_prompt_and_what_the_library_samples(run, options, same):
    status, out, _ = run(f"generate --run run --prompt 'the cat ' --n-tokens 40 {options}")
    state, params, config = loaded()
    tokens_S = sampling.generate(params, config, state.tokenizer.encode("the cat "), 40, **same)
    assert (status, out) == (0, state.tokenizer.decode(tokens_S) + "\n")


def test_a_prompt_may_be_longer_than_the_context(run):
    _, out, _ = run(f"generate --run run --prompt '{'the cat ' * 6}' --n-tokens 5")
    assert out.startswith("the cat " * 6)
    assert len(out) == 8 * 6 + 5 + 1


def test_no_tokens_leave_the_prompt(run):
    assert run("generate --run run --prompt 'the cat' --n-tokens 0") == (0, "the cat\n", "")


def test_a_model_with_a_capacity_cannot_generate_and_says_why(refused):
    path = Path("run/checkpoint.npz")
    state = checkpoint.load(path)
    state.model_config = replace(state.model_config, eval_capacity_factor=1.5)
    checkpoint.save(path, state)
    assert not missing(refused("generate --run run"), ["eval-capacity-factor", "1.5", "dropless"])


def test_route_prints_the_first_expert_of_each_character_and_every_assignment(run):
    status, out, _ = run("route --run run 'the cat'")
    state, params, config = loaded()
    _, routings = model.forward(params, state.tokenizer.encode("the cat")[None], config)
    lines = out.splitlines()
    for layer, routing in enumerate(routings):
        expert_TK = routing.expert_A.reshape(-1, 2)
        place = lines.index(f"layer {layer}, first choice of each character:")
        assert lines[place + 1:place + 3] == ["the cat", "".join(map(str, expert_TK[:, 0]))]
        for token, (experts, gates) in enumerate(zip(expert_TK, routing.gate_A.reshape(-1, 2), strict=True)):
            row = f"{layer:5}  {token:5} {'the cat'[token]!r:<5} " + "   ".join(
                f"{e}: {g:.2f} kept (no limit)" for e, g in zip(experts, gates, strict=True))
            assert row in lines
    assert status == 0


def test_route_can_show_one_layer(run):
    _, out, _ = run("route --run run 'the cat' --layer 1")
    _, both, _ = run("route --run run 'the cat'")
    assert "layer 0," not in out
    rows = [line for line in both.splitlines() if re.match(r" +1 +\d", line)]
    assert [line for line in out.splitlines() if re.match(r" +\d +\d", line)] == rows
    assert len(rows) == 7


def test_route_shows_who_is_dropped_when_the_experts_are_limited(run):
    """7 tokens, K = 2, E = 4, factor 0.5: ceil(0.5 * 14 / 4) = 2 slots an expert, 8 in all: at least 6 of 14 drop."""
    _, out, _ = run("route --run run 'the cat' --layer 0 --capacity-factor 0.5")
    state, params, config = loaded()
    config = replace(config, eval_capacity_factor=0.5)
    _, routings = model.forward(params, state.tokenizer.encode("the cat")[None], config)
    assert out.count("DROPPED") == (~routings[0].kept_A).sum() >= 6
    assert out.count("kept (place ") == routings[0].kept_A.sum()
    assert "place 3, room for 2" in out


def test_route_lets_the_drop_order_decide(run):
    """All first choices before any second choice: the last character's first choice is kept only if few want it."""
    by_position, by_rank = (run(f"route --run run 'the cat' --layer 0 --capacity-factor 0.5 --drop-order {order}")[1]
                            for order in ("position", "rank"))
    assert by_position != by_rank


ESCAPE = "\x1b["


@pytest.mark.parametrize(("terminal", "variable", "option", "coloured"), [
    (False, None, "", False), (True, None, "", True), (True, "1", "", False), (True, "", "", True),
    (True, None, "--colour never", False), (False, None, "--colour always", True), (True, "1", "--color always", True)])
def test_colours_are_for_terminals_and_as_asked(run, monkeypatch, terminal, variable, option, coloured):
    """NO_COLOR counts when it is set and not empty [no-color.org]; what is asked for outright comes first."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    if variable is not None:
        monkeypatch.setenv("NO_COLOR", variable)
    status, out, _ = run(f"route --run run cat {option}")
    assert (status, ESCAPE in out) == (0, coloured)


def test_layers_are_shown_by_their_number_in_the_model(run):
    run("train --preset tiny --n-steps 1 --clusters --run new --first-dense-layers 1")
    status, out, _ = run("route --run new aceg")
    assert status == 0
    assert re.findall(r"^layer (\d),", out, re.MULTILINE) == ["1"]
    assert {line.split()[0] for line in out.splitlines() if "kept" in line and "token" not in line} == {"1"}
    status, _, err = run("route --run new aceg --layer 0")
    assert status == 2 and not missing(err, ["layer", "0", "with a router are 1"])


@pytest.mark.parametrize("options", ["--first-dense-layers 2", "--router soft"])
def test_a_model_that_assigns_nothing_has_nothing_to_show(run, options):
    run(f"train --preset tiny --n-steps 1 --clusters --run new {options}")
    status, _, err = run("route --run new aceg")
    assert status == 2 and not missing(err, ["new has no layer that assigns tokens to experts"])


@pytest.mark.parametrize("router", ["expert_choice", "soft"])
def test_a_model_that_looks_into_the_future_writes_nothing(run, router):
    run(f"train --preset tiny --n-steps 1 --clusters --run new --router {router}")
    status, _, err = run("generate --run new")
    assert status == 2 and not missing(err, ["router", router, "cannot generate", "not causal"])


def test_finer_experts_are_those_of_the_configuration(run):
    run("train --preset tiny --n-steps 1 --clusters --run new --finer 4")
    expected = preset("tiny", dict(vocab_size=32))[0].finer(4)
    assert checkpoint.load("new/checkpoint.npz").model_config == expected


@pytest.mark.parametrize(("options", "expected"), [
    ("--text words.txt --run new", "generate route doctor"),
    ("--text words.txt --run 'my run'", "generate route doctor"),
    ("--text other.txt --run new", "generate route doctor"), ("--clusters --run new", "generate route doctor"),
    ("--clusters --first-dense-layers 1", "generate route doctor"), ("--clusters --first-dense-layers 2", "generate"),
    ("--clusters --router expert_choice", "route doctor"), ("--clusters --router soft", ""),
    ("--clusters --router gshard --eval-capacity-factor 1", "generate route doctor")])
def test_the_commands_that_train_prints_work(run, options, expected):
    _, out, _ = run(f"train --preset tiny --n-steps 2 {options}")
    commands = re.findall(r"python -m minimoe (.*)", out)
    assert [command.split()[0] for command in commands] == expected.split()
    for command in commands:
        status, out, err = run(command)
        assert (status, err) == (0, "")
        assert out


def test_train_reports_the_validation_loss_and_where_it_saved(run):
    status, out, _ = run("train --preset tiny --n-steps 2 --clusters --run new")
    assert status == 0
    assert checkpoint.load("new/checkpoint.npz").domains == ("cluster 0", "cluster 1", "cluster 2", "cluster 3")
    loss = checkpoint.load("new/checkpoint.npz").history["eval_ce"][-1]
    assert not missing(out, [f"validation loss {loss:.4f} nats per token", "new/checkpoint.npz"])


def test_without_a_text_the_embedded_corpus_is_trained_on(run):
    run("train --preset tiny --n-steps 1 --eval-batches 1")
    assert checkpoint.load("runs/train/checkpoint.npz").domains == ("english", "python")


def test_the_run_that_is_looked_at_by_default_is_the_tours():
    assert Path(arguments.DEFAULT_RUN) / "checkpoint.npz" == tour.plan(False, 1, 9).path(tour.MOE, 0)


@pytest.mark.parametrize(("command", "arguments"), [
    ("", (False, 1, False, 2)), ("--quick --seeds 2 --fresh", (True, 2, True, 2)),
    ("--threads 3", (False, 1, False, 3))])
def test_without_a_command_the_tour_starts(run, monkeypatch, command, arguments):
    seen = []
    monkeypatch.setattr(tour, "main", lambda *given: seen.append(given))
    assert run(command)[0] == 0
    assert seen == [arguments]


@pytest.mark.parametrize(("module", "command"), [(routers, "routers"), (compare, "compare")])
@pytest.mark.parametrize(("line", "arguments"), [
    ("COMMAND", (False, 3, False, 2)), ("COMMAND --quick --seeds 2 --fresh --threads 1", (True, 2, True, 1)),
    ("--quick --seeds 2 --fresh --threads 1 COMMAND", (True, 2, True, 1)),
    ("--quick --seeds 5 COMMAND --seeds 4", (True, 4, False, 2)), ("--fresh COMMAND --threads 3", (False, 3, True, 3))])
def test_options_of_a_comparison_stand_before_or_after_it(run, monkeypatch, module, command, line, arguments):
    seen = []
    monkeypatch.setattr(module, "main", lambda *given: seen.append(given))
    assert run(line.replace("COMMAND", command)) == (0, "", "")
    assert seen == [arguments]


@pytest.mark.parametrize("there", [True, False])
def test_figures_says_so_if_there_is_no_tour_to_draw(run, monkeypatch, there):
    drawn, others = [], [routers, compare, answers, studies, lessons]
    for module in others:
        monkeypatch.setattr(module, "figure", lambda module=module: drawn.append(module))
    monkeypatch.setattr(tour, "figures", lambda: there)
    status, out, _ = run("figures")
    assert status == 0 and drawn == others
    assert ("left as they are: `python -m minimoe` trains what they show" in out) == (not there)


@pytest.mark.parametrize(("module", "function", "command"), [
    (tour, "figures", "figures"), (tour, "main", ""), (tour, "main", "--threads 1"), (tour, "main", "--threads 3"),
    (compare, "main", "compare")])
def test_matrix_products_have_one_thread_while_a_command_runs(run, no_other_figures, monkeypatch, module, function,
                                                              command):
    def of_blas():
        return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]

    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        seen, before = [], of_blas()
        monkeypatch.setattr(module, function, lambda *_: seen.append(of_blas()))
        run(command)
        assert seen == [[1] * len(before)]
        assert of_blas() == before == [2] * len(before) != []


@pytest.fixture
def interrupted(monkeypatch):
    """The first batch that is drawn comes with a Ctrl-C."""
    def interrupt(*options):
        monkeypatch.setattr(data, "sample", sample)
        signal.raise_signal(signal.SIGINT)
        return sample(*options)

    sample = data.sample
    monkeypatch.setattr(data, "sample", interrupt)


@pytest.mark.usefixtures("interrupted")
@pytest.mark.parametrize("text", ["--text words.txt", "--text words.txt other.txt", "--clusters", ""])
def test_the_command_that_an_interrupted_run_prints_goes_on_with_it(run, text):
    status, out, err = run(f"train --preset tiny --n-steps 2 --eval-batches 1 --run new {text}")
    assert (status, out.count("\n")) == (130, 1)  # what the layers are
    assert checkpoint.load("new/checkpoint.npz").step == 1
    assert run(re.search(r"python -m minimoe (.*train --resume .*)", err)[1])[0] == 0
    assert checkpoint.load("new/checkpoint.npz").finished


@pytest.mark.usefixtures("interrupted")
def test_an_interrupted_run_goes_on_with_any_number_of_threads(run):
    """No number depends on it."""
    _, _, err = run("--threads 1 train --preset tiny --n-steps 2 --text words.txt --run new")
    assert "python -m minimoe train --resume" in err


def test_an_interrupted_command_has_status_130_and_says_so(run, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tour, "main", interrupt)
    assert run("--quick") == (130, "", "\nminimoe: interrupted\n")


def test_a_reader_that_goes_away_is_no_error(made):
    code = "import sys; from minimoe import cli; sys.exit(cli.main())"
    command = [sys.executable, "-c", code, "generate", "--run", "run", "--prompt", "the", "--n-tokens", "100000"]
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with subprocess.Popen(command, cwd=made, env=environment, **pipes) as process:
        process.stdout.read(10)
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 0)


SMALL_CHECK = ("gradcheck --vocab-size 5 --d-model 4 --n-layers 1 --n-heads 2 --n-kv-heads 1 --d-hidden 3 "
               "--n-experts 3 --top-k 2")


@pytest.fixture
def one_layer_case(monkeypatch):
    """One way to set the layer up, of twenty."""
    name, case = next(iter(checks.layer_cases().items()))
    monkeypatch.setattr(checks, "layer_cases", lambda: {name: case})


@pytest.mark.usefixtures("one_layer_case")
def test_gradcheck_of_right_gradients_has_status_0(run):
    status, out, err = run(SMALL_CHECK)
    assert (status, err) == (0, "")
    assert re.search(r"(\d+) of \1 checks right", out)


@pytest.mark.usefixtures("one_layer_case")
def test_gradcheck_of_a_wrong_gradient_has_status_1_and_names_it(run, monkeypatch):
    def without_the_slope_of_the_sigmoid(dh_TF, cache):
        gate_TF, up_TF, sigmoid_TF = cache
        return dh_TF * up_TF * sigmoid_TF, dh_TF * gate_TF * sigmoid_TF

    monkeypatch.setattr(ops, "silu_gate_backward", without_the_slope_of_the_sigmoid)
    status, out, _ = run(SMALL_CHECK)
    assert status == 1
    assert not missing(out, ["SiLU gate: WRONG", "SwiGLU: WRONG", "softmax: right"])
    assert not re.search(r"(\d+) of \1 checks right", out)
