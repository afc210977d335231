"""The comparison of all routers: a fair plan, right numbers in the table, and a run that can be interrupted."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from minimoe import cost
from minimoe.experiments import routers
from minimoe.names import ROUTERS
from minimoe.training import loop

PLAN = routers.plan(quick=False, seeds=3, vocab_size=50)
CONFIGS = PLAN.configs()


def test_every_router_is_there_and_a_dense_model():
    assert list(CONFIGS) == [routers.DENSE, *ROUTERS]


@pytest.mark.parametrize("name", ROUTERS)
def test_all_have_the_same_experts_in_sum_and_the_same_work_a_token(name):
    config = CONFIGS[name]
    assert config.n_experts * config.d_hidden == PLAN.whole.n_experts * PLAN.whole.d_hidden
    assert config.top_k * config.d_hidden == PLAN.whole.top_k * PLAN.whole.d_hidden == CONFIGS[routers.DENSE].d_hidden


@pytest.mark.parametrize("name", [name for name, router in ROUTERS.items() if not router.soft])
def test_counted_flops_differ_by_the_router_and_by_dropped_tokens_alone(name):
    """Dropless, the experts of all do the same work; a router has one score an expert, or two with noise."""
    whole = cost.count(replace(CONFIGS[routers.DENSE], top_k=1), 2, 32).forward_flops
    config = replace(CONFIGS[name], capacity_factor=None)
    scores = {"noisy_topk": 2, "hash": 0, "random": 0, "uniform": 0}.get(name, 1) * config.n_experts
    router = 2 * 2 * 32 * config.n_layers * config.d_model * scores
    one = 2 * 2 * 32 * config.n_layers * config.d_model  # the dense model's own idle router
    if name not in ("gshard", "st_moe"):  # whose second experts are used at random
        assert cost.count(config, 2, 32).forward_flops == whole - one + router


def histories(**changes):
    """A state with the fields that the comparison reads: two layers of two experts, records every second step."""
    history = {"eval_ce": [3.0, 2.0], "seconds": [0.1, 0.3, 0.2],
               "drop": [0.5] * 4 + [0.3] * routers.LAST + [0.1] * routers.LAST,
               "router_load": [[[0.9, 0.1]] * 2] * 5 + [[[0.5, 0.5], [0.4, 0.6]]] * routers.LAST} | changes
    return SimpleNamespace(history=history, train_config=SimpleNamespace(record_every=2))


def test_measure_by_hand():
    """The busiest expert of the last records has 0.6 of the load where 0.5 is even.

    Drops are written down at every step, and over as many steps as the last records are half are 0.3 and half 0.1.
    """
    result = routers.measure([histories(), histories(eval_ce=[2.5])])
    np.testing.assert_allclose(result.ce, [2.0, 2.5])
    np.testing.assert_allclose(result.load, [1.2, 1.2])
    np.testing.assert_allclose(result.drop, [0.2, 0.2])
    np.testing.assert_allclose(result.seconds, [0.2, 0.2])


@pytest.mark.parametrize("load", [[], [[1.0], [1.0]]])
def test_no_busiest_expert_without_a_choice(load):
    assert np.isnan(routers.measure([histories(router_load=[load] * 20)]).load).all()


def results(**ces):
    """Results with these losses, and the same of everything else."""
    same = np.full(3, 1.5), np.full(3, 0.25), np.full(3, 0.01)
    return {name: routers.Result(np.array(ces.get(name, [3.0, 3.0, 3.0])), *same) for name in CONFIGS}


def test_the_lowest_loss_is_first_and_who_sees_the_future_is_last():
    rows = routers.table(results(hash=[2.0, 2.1, 2.2], soft=[0.1, 0.1, 0.1], expert_choice=[0.2] * 3), CONFIGS).splitlines()
    assert rows[1].split()[:4] == ["hash", "2", "of", "8"]
    assert "2.100 ± 0.100" in rows[1] and "1.50 ± 0.00" in rows[1] and "25.0%" in rows[1]
    assert [row.split()[0] for row in rows[len(CONFIGS) - 1:len(CONFIGS) + 1]] == ["soft", "expert_choice"]


@pytest.mark.parametrize("name", ROUTERS)
def test_kinds_are_what_the_routers_declare(name):
    if ROUTERS[name].soft:
        assert routers.kinds()[name] == "sees the future"
        return
    policy = routers.routers.POLICIES[name]
    assert routers.kinds()[name] == {(True, True): "causal", (False, True): "causal in evaluation",
                                 (False, False): "sees the future"}[policy.CAUSAL, policy.CAUSAL_IN_EVALUATION]


def test_the_verdict_compares_the_best_with_the_controls_seed_by_seed():
    """2.0, 2.1, 2.2 against 2.5, 2.5, 2.15: 0.283 on average, and lower in 2 of 3."""
    words = routers.verdict(results(hash=[2.0, 2.1, 2.2], random=[2.5, 2.5, 2.15], soft=[0.1] * 3))
    assert "- hash is 0.283 nats below random, and below it in 2 of 3 seeds." in words
    assert "No seed-for-seed difference from hash: random." in words
    assert "expert_choice and soft look at later tokens" in words


def test_if_a_control_is_best_the_verdict_says_so():
    words = routers.verdict(results(uniform=[2.0] * 3))
    assert "- uniform is 1.000 nats below random" in words
    assert "below uniform" not in words


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The quick plan with two routers, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    configs = routers.Plan.configs
    monkeypatch.setattr(routers.Plan, "configs", lambda plan: {
        name: config for name, config in configs(plan).items() if name in (routers.DENSE, "softmax_topk", "soft")})
    return tmp_path


def test_a_quick_comparison_trains_prints_and_draws_and_a_second_one_trains_nothing(small, monkeypatch):
    said = []
    routers.main(quick=True, seeds=1, say=said.append)
    assert (small / "runs/routers-quick/routers.png").stat().st_size > 10_000
    assert said[-1].startswith("\nFar too short to compare")
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("trained again"))
    again = []
    routers.main(quick=True, seeds=1, say=again.append)
    assert sum("finished earlier" in line for line in again) == 3


def test_the_figure_alone_is_the_same_bytes_again_and_needs_no_run(small, monkeypatch):
    routers.main(quick=True, seeds=2, say=lambda line: None)
    quick, picture = routers.plan(True, 1, 50), small / "runs/routers-quick/routers.png"
    drawn = picture.read_bytes()
    for name in ("dense", "softmax_topk", "soft"):
        shutil.rmtree(small / "runs/routers-quick" / name)
    monkeypatch.setattr(routers, "plan", lambda *_: quick)
    monkeypatch.setattr(routers, "kept", lambda of=routers.kept: of("runs/routers-quick"))
    picture.unlink()
    said = []
    routers.figure(say=said.append)
    assert said == ["wrote runs/routers-quick/routers.png"] and picture.read_bytes() == drawn


def test_what_is_kept_of_a_comparison_is_the_comparison(small, monkeypatch):
    told = []
    monkeypatch.setattr(routers, "table", lambda results, configs: told.append(results) or "")
    routers.main(quick=True, seeds=2, say=lambda line: None)
    found = routers.kept("runs/routers-quick")
    assert found.keys() == told[0].keys()
    for name, result in told[0].items():
        for field in ("ce", "load", "drop", "seconds"):
            np.testing.assert_allclose(getattr(found[name], field), getattr(result, field), rtol=1e-6)
            assert getattr(found[name], field).shape == (2,)
