"""What an MoE is worth, by arithmetic on made-up losses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimoe.experiments import effective_size
from tests.small import entry


def family(*losses):
    """Dense models of 1, 10, 100 and 1000 thousand parameters; losses: of each, a number or one number per seed."""
    sizes, flops = (1_000, 10_000, 100_000, 1_000_000), (1e9, 4e9, 64e9, 128e9)
    return [entry(f"dense {size}", size, work, *np.atleast_1d(of_seeds))
            for size, work, of_seeds in zip(sizes, flops, losses, strict=False)]


def moe(*ces):
    return entry("MoE, 2 of 8", 12_000, 2e9, *ces, active=3_000)


@pytest.mark.parametrize(("loss", "size", "flops"), [
    (2.5, 10 ** 4.5, 16e9),  # halfway from 3 to 2: sqrt(1e4 * 1e5) parameters, sqrt(4e9 * 64e9) FLOPs
    (3.75, 10 ** 3.25, 2 ** 0.5 * 1e9),  # a quarter of the way from 4 to 3: 1e9 * 4^(1/4)
    (4.0, 1e3, 1e9), (1.0, 1e6, 128e9),
    (4.1, 1e3, 1e9), (0.0, 1e6, 128e9)])  # outside of the family: cut to its ends
def test_in_a_family_on_a_line_a_loss_is_worth_exactly_its_place(loss, size, flops):
    """loss = 4 - p at 10^(3 + p) parameters.  FLOPs lie on no line: they are taken between neighbors."""
    models = family(4.0, 3.0, 2.0, 1.0)
    found = effective_size.worth(moe(loss), [models[i] for i in (2, 0, 3, 1)])  # in any order
    np.testing.assert_allclose(found, [size, size, size, 1e3, 1e6, flops], rtol=1e-12)


@pytest.mark.parametrize(("losses", "loss", "place"), [
    ((3.0, 1.0, 1.0), 1.0, 1.0),  # of two that have the loss the smaller
    ((2.0, 2.3, 1.0), 1.6, 1 + (2.15 - 1.6) / 1.15),  # the first two are pooled to 2.15
    ((3.0, 1.0, 1.5, 2.0), 1.6, 1.4 / 1.5), ((3.0, 1.0, 1.5, 2.0), 1.2, 3.0),  # the last three to 1.5
    ((1.0, 2.0, 3.0), 1.9, 2.0), ((1.0, 2.0, 3.0), 2.1, 0.0)])  # all to 2: better is the largest, worse the smallest
def test_losses_that_rise_on_the_way_are_pooled_with_their_neighbors(losses, loss, place):
    found = effective_size.worth(moe(loss), family(*losses))
    np.testing.assert_allclose(found.size, 10 ** (3 + place), rtol=1e-12)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=8))
def test_the_nearest_falling_sequence_is_that_of_the_min_max_formula(losses):
    """The oracle: over all stretches that hold a place, the min over starts of the max over ends of their mean."""
    n = len(losses)
    falling = [min(max(np.mean(losses[a:b + 1]) for b in range(i, n)) for a in range(i + 1)) for i in range(n)]
    np.testing.assert_allclose(effective_size.falling_losses(losses), falling, atol=1e-12)


def test_low_and_high_by_a_loop_over_draws():
    """Of 1000 sorted sizes the tenth part is at place 0.1 * 999 = 99.9, from 0; between two, by the logarithm."""
    rng = np.random.default_rng(3)
    losses, ces = np.array([4.0, 3.0, 2.0, 1.0])[:, None] + rng.normal(0, 0.1, (4, 8)), 2.5 + rng.normal(0, 0.3, 8)
    models, drawn = family(*losses), []
    for draw in np.random.default_rng(7).integers(0, 8, (effective_size.DRAWS, 8)):
        means = [np.mean([of_model[i] for i in draw]) for of_model in losses]
        drawn.append(10 ** (3 + np.interp(-np.mean(ces[draw]), np.negative(means), range(4))))
    drawn.sort()
    found = effective_size.worth(moe(*ces), models, seed=7)
    np.testing.assert_allclose(found.low, drawn[99] ** 0.1 * drawn[100] ** 0.9, rtol=1e-10)
    np.testing.assert_allclose(found.high, drawn[899] ** 0.9 * drawn[900] ** 0.1, rtol=1e-10)


def test_what_a_seed_does_to_all_models_alike_leaves_no_doubt():
    """Were each model's seeds drawn apart, low and high would be decades apart."""
    shift = np.array([0.0, 0.7, -0.4])
    found = effective_size.worth(moe(*(2.5 + shift)), family(4 + shift, 3 + shift, 2 + shift, 1 + shift))
    np.testing.assert_allclose([found.size, found.low, found.high], 10 ** 4.5, rtol=1e-10)


def test_of_three_seeds_the_range_holds_the_truth_about_six_times_in_ten(monkeypatch):
    """An MoE that is worth 150,000, among five sizes whose losses have noise.  Of 80 the deviation is 0.055."""
    monkeypatch.setattr(effective_size, "DRAWS", 100)
    rng, hits, sizes = np.random.default_rng(11), [], 10_000 * 3.0 ** np.arange(5)
    for _ in range(80):
        *losses, ces = 5 - 0.2 * np.log([*sizes, 150_000])[:, None] + rng.normal(0, 0.03, (6, 3))
        dense = [entry("dense", int(size), size, *of_seeds) for size, of_seeds in zip(sizes, losses, strict=True)]
        found = effective_size.worth(moe(*ces), dense)
        hits.append(found.low <= 150_000 <= found.high)
    assert 0.45 < np.mean(hits) < 0.78


@pytest.mark.parametrize(("found", "seeds", "told"), [
    ((6e3, 1e3, 1e5), 2, "the seeds do not show what it is worth: anything from 1 k to 100 k"),  # from end to end
    ((6e3, 4e3, 9e3), 3, "6 k parameters (80 % of draws of the seeds: 4 k to 9 k), 2.00 times its active and 0.50"),
    ((1e3, 1e3, 9e3), 3, "at most 1 k parameters (80 % of draws of the seeds: at most 1 k to 9 k), 0.33 times"),
    ((1e5, 6e3, 1e5), 3, "at least 100 k parameters (80 % of draws of the seeds: 6 k to at least 100 k), 33.33"),
    ((6e3, 6e3, 6e3), 1, "6 k parameters (one seed), 2.00 times its active and 0.50 times its total ones.")])
def test_the_worth_in_words(found, seeds, told):
    worth = effective_size.Worth(*found, 1e3, 1e5, 1e9)
    words = effective_size.worth_words(moe(*[2.0] * seeds), worth)
    assert words.removeprefix("MoE, 2 of 8: ").removeprefix("worth a dense model of ").startswith(told)
