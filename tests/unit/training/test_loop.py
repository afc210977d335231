"""Training: it learns, a resumed run equals an uninterrupted one, looking changes nothing; and how a run ends."""

import signal
import threading
from dataclasses import replace

import numpy as np
import pytest

from minimoe.generation import sampling
from minimoe.training import checkpoint, corpus, data, loop
from tests import small


@pytest.fixture
def handler():
    """The default action of Ctrl-C in Python, even where the tests run in the background and it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def signaled(*steps):
    """An `on_step` that presses Ctrl-C after each of these steps, as often as a step is listed."""
    def on_step(state):
        for _ in range(steps.count(state.step)):
            signal.raise_signal(signal.SIGINT)
    return on_step


@pytest.mark.parametrize("config, more", [
    *((config, {}) for config in small.BY_ROUTER.values()), (small.DENSE, {}), (small.RANDOM_DROPS, dict(accumulate=2)),
    (replace(small.BY_ROUTER["noisy_topk"], global_balance=True), dict(accumulate=2))],
    ids=[*small.BY_ROUTER, "dense", "random drops", "global balance"])
def test_a_resumed_run_is_the_run_itself_bit_for_bit(tmp_path, config, more):
    """Of every router, each of which learns something: at first the loss is about log 32 = 3.47 nats."""
    path = tmp_path / "checkpoint.npz"
    straight = loop.train(small.new(config, n_steps=10, eval_every=5, **more), small.CORPUS,
                          on_step=lambda state: state.step == 5 and checkpoint.save(path, state))
    resumed = checkpoint.load(path)
    assert resumed.step == 5
    assert small.numbers(loop.train(resumed, small.CORPUS)) == small.numbers(straight)
    assert np.mean(straight.history["ce"][-3:]) < straight.history["ce"][0] - 0.2


def test_any_number_of_threads_gives_the_same_bits():
    config = replace(small.RANDOM_DROPS, global_balance=True)
    states = [small.new(config, n_steps=2, groups=3, accumulate=2) for _ in range(3)]
    one, *more = (small.numbers(loop.train(state, small.CORPUS, threads=i + 1)) for i, state in enumerate(states))
    assert [one, one] == more


def test_the_seed_decides_the_first_weights_and_the_draws():
    assert small.numbers(small.trained(seed=1)) == small.numbers(small.trained(seed=1))
    one, other = small.new(seed=0), small.new(seed=1)
    assert not np.array_equal(one.params["head.w_DV"], other.params["head.w_DV"])
    assert one.rng.random() != other.rng.random()


def test_every_step_has_one_entry_and_every_evaluation_and_record_one():
    history = small.trained(replace(small.MODEL, entropy_coef=0.1), n_steps=7, eval_every=3, record_every=2).history
    every_step, evaluations, records = range(1, 8), [3, 6, 7], [1, 3, 5, 7]
    assert history.keys() >= {"ce", "balance", "z", "entropy", "grad_norm", "seconds", "drop", "eval_ce", "eval_load",
                              "eval_drop", "router_load", "router_drop", "router_entropy", "router_margin",
                              "router_dead", "router_logit"} and "sequence" not in history
    assert history["eval_step"] == evaluations and history["router_step"] == records
    steps_of = {"eval": evaluations, "router": records}
    for name, values in history.items():
        assert len(values) == len(steps_of.get(name.split("_")[0], every_step)), name


@pytest.mark.parametrize("config", [small.RANDOM_DROPS, small.BY_ROUTER["noisy_topk"], small.BY_ROUTER["gshard"]],
                         ids=["random drops", "noise", "a random second"])
def test_looking_changes_no_step(config):
    """Neither evaluating, nor recording, nor writing text between two steps."""
    def look(state):
        if config is not small.RANDOM_DROPS:
            sampling.generate(state.params, config, [1, 2, 3], 12, seed=5)

    seldom = small.trained(config, n_steps=4, eval_every=4, record_every=100)
    often = loop.train(small.new(config, n_steps=4, eval_every=1, record_every=1), small.CORPUS, on_step=look)
    assert len(often.history["eval_ce"]) == len(often.history["router_drop"]) == 4
    assert len(seldom.history["eval_ce"]) == len(seldom.history["router_drop"]) == 1
    assert all(often.history[name] == seldom.history[name] for name in ("ce", "balance", "z", "grad_norm", "drop"))
    assert all(np.array_equal(often.params[name], seldom.params[name]) for name in often.params)
    assert often.rng.bit_generator.state == seldom.rng.bit_generator.state


def test_checkpoints_are_saved_every_so_often_and_at_the_end(tmp_path):
    path, steps = tmp_path / "checkpoint.npz", []
    state = loop.train(small.new(n_steps=5, checkpoint_every=2), small.CORPUS, path,
                       lambda state: steps.append(checkpoint.load(path).step if path.exists() else None))
    assert steps == [None, None, 2, 2, 4] and checkpoint.load(path).step == 5
    before = small.numbers(state)
    assert small.numbers(loop.train(state, small.CORPUS)) == before  # a finished run stays as it is


@pytest.mark.parametrize("config, training, message", [
    (replace(small.MODEL, vocab_size=33), {}, "vocab_size = 33: the text has 32 characters"),
    (small.MODEL, dict(sequence=9), "sequence = 9: must be at most max_sequence = 8"),
    (replace(small.MODEL, global_balance=True), {}, "global_balance = True: .*accumulate = 1 and groups = 1"),
    (small.MODEL, dict(n_steps=1, warmup_steps=2), "warmup_steps = 2: longer than n_steps = 1"),
    (small.MODEL, {}, "the text is not the one that this run was trained on")])
def test_a_run_that_cannot_be_is_refused(config, training, message):
    other = data.build(corpus.clusters(length=300, seed=1), 8)
    with pytest.raises(ValueError, match=f"^{message}"):
        loop.train(small.new(config, **training), other)


@pytest.mark.parametrize("call", [
    lambda: loop.new_state(None, small.TRAINING, small.CORPUS), lambda: loop.new_state(small.MODEL, {}, small.CORPUS),
    lambda: loop.train(None, small.CORPUS), lambda: loop.train(small.new(), "text"), lambda: corpus.clusters(1.5),
    lambda: corpus.from_files("x"), lambda: corpus.from_files([1]), lambda: data.build({"a": None}, 8),
    lambda: data.build(["a"], 8), lambda: data.build({}, 0), lambda: checkpoint.save("x", None),
    lambda: checkpoint.load(3)])
def test_arguments_of_another_kind_are_refused_by_name_and_value(call):
    with pytest.raises(ValueError, match=r"^\S+ = .*: must be"):
        call()


def test_ctrl_c_finishes_the_step_and_saves_it(tmp_path, handler):
    path, state = tmp_path / "checkpoint.npz", small.new()
    for where in (None, path):
        with pytest.raises(loop.Interrupted, match=f"stopped after step {state.step + 2}"):
            loop.train(state, small.CORPUS, where, signaled(state.step + 2))
        assert signal.getsignal(signal.SIGINT) is handler
    assert state.step == 4 and small.numbers(checkpoint.load(path)) == small.numbers(state)
    finished = loop.train(checkpoint.load(path), small.CORPUS, path, signaled(6))
    assert small.numbers(finished) == small.numbers(small.trained())
    assert checkpoint.load(path).finished  # the last step was the last anyway


def test_a_second_ctrl_c_stops_at_once(tmp_path, handler):
    with pytest.raises(KeyboardInterrupt) as caught:
        loop.train(small.new(), small.CORPUS, tmp_path / "checkpoint.npz", signaled(1, 1))
    assert caught.type is KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is handler


def test_where_ctrl_c_is_ignored_or_another_thread_trains_it_is_left_alone(handler):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert loop.train(small.new(), small.CORPUS, on_step=signaled(2, 2)).finished
    state = small.new()
    thread = threading.Thread(target=loop.train, args=(state, small.CORPUS))
    thread.start()
    thread.join()
    assert small.numbers(state) == small.numbers(small.trained())
