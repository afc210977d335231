"""What a MoE is worth, by arithmetic on made-up losses; and the tables and words say what the numbers say."""

import itertools

import numpy as np
import pytest

from minimoe import cost
from minimoe.experiments import effective_size


def entry(name, total, flops, *ces, active=None, budget="steps", steps=100, seconds=10.0):
    return effective_size.Entry(name, budget, steps, cost.Parameters(total, active or total, 0, 0), flops, seconds,
                       np.array(ces))


def family(*losses):
    """Dense models of 1, 10, 100 and 1000 thousand parameters; losses: of each, a number or one number a seed."""
    sizes, flops = (1_000, 10_000, 100_000, 1_000_000), (1e9, 4e9, 64e9, 128e9)
    return [entry(f"dense {size}", size, work, *np.atleast_1d(of_seeds))
            for size, work, of_seeds in zip(sizes, flops, losses, strict=False)]


def moe(*ces, flops=2e9):
    return entry("MoE, 2 of 8", 12_000, flops, *ces, active=3_000)


def nearest_falling(losses):
    """An oracle: the min-max formula of isotonic regression, over all stretches that hold a place."""
    n = len(losses)
    return [min(max(np.mean(losses[a:b + 1]) for b in range(i, n)) for a in range(i + 1)) for i in range(n)]


def met(sizes, losses, loss):
    """An oracle: along the falling sequence from the left, the first two neighbours that have the loss between them."""
    falling, places = nearest_falling(losses), np.log(sizes)
    if loss >= falling[0]:
        return sizes[0]
    for i in range(len(sizes) - 1):
        if falling[i] > loss >= falling[i + 1]:
            share = (falling[i] - loss) / (falling[i] - falling[i + 1])
            return np.exp(places[i] + share * (places[i + 1] - places[i]))
    return sizes[-1]


@pytest.mark.parametrize(("loss", "size", "flops"), [
    (2.5, 10 ** 4.5, 16e9),  # halfway from 3 to 2: sqrt(1e4 * 1e5) parameters, sqrt(4e9 * 64e9) FLOPs
    (2.25, 10 ** 4.75, 32e9),  # three quarters of the way from 3 to 2: 4e9 * 16^(3/4) = 4e9 * 8
    (3.75, 10 ** 3.25, 2 ** 0.5 * 1e9),  # a quarter of the way from 4 to 3: 1e9 * 4^(1/4)
    (1.5, 10 ** 5.5, 2 ** 0.5 * 64e9),  # halfway from 2 to 1: 64e9 * 2^(1/2)
    (4.0, 1e3, 1e9), (3.0, 1e4, 4e9), (2.0, 1e5, 64e9), (1.0, 1e6, 128e9)])
def test_in_a_family_on_a_line_a_loss_is_worth_exactly_its_place(loss, size, flops):
    """loss = 4 - p at 10^(3 + p) parameters.  FLOPs lie on no line: they are taken between neighbours."""
    found = effective_size.worth(moe(loss), family(4.0, 3.0, 2.0, 1.0))
    np.testing.assert_allclose(found, [size, size, size, 1e3, 1e6, flops], rtol=1e-12)


@pytest.mark.parametrize(("losses", "loss", "place"), [
    ((3.0, 1.0, 1.0), 2.0, 0.5), ((3.0, 1.0, 1.0), 1.0, 1.0),  # of two that have the loss the smaller
    ((3.0, 2.5, 2.0), 2.125, 1.75), ((3.2, 2.9, 1.9, 1.0), 2.06, 1.84),
    ((2.0, 2.3, 1.0), 1.6, 1 + (2.15 - 1.6) / 1.15),  # the first two are pooled to 2.15
    ((3.0, 2.0, 2.5, 1.5), 2.25, 1.0), ((3.0, 2.0, 2.5, 1.5), 2.6, 0.4 / 0.75),  # the middle two to 2.25
    ((3.0, 1.0, 1.5, 2.0), 1.6, 1.4 / 1.5), ((3.0, 1.0, 1.5, 2.0), 1.2, 3.0),  # the last three to 1.5
    ((1.0, 4.0, 1.0), 2.1, 1 + 0.4 / 1.5)])
def test_losses_that_rise_on_the_way_are_pooled_with_their_neighbours(losses, loss, place):
    found = effective_size.worth(moe(loss), family(*losses))
    np.testing.assert_allclose(found.size, 10 ** (3 + place), rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_nearest_falling_sequence_is_that_of_the_min_max_formula(seed):
    losses = np.random.default_rng(seed).normal(size=7)
    np.testing.assert_allclose(effective_size.falling_losses(losses), nearest_falling(losses), rtol=1e-12)


@pytest.fixture
def uneven():
    """Five sizes at uneven distances, their losses of eight seeds, and those of a MoE."""
    rng = np.random.default_rng(3)
    sizes = np.array([2_000, 3_000, 9_000, 40_000, 50_000])
    losses = 4 - 0.2 * np.log(sizes)[:, None] + rng.normal(0, 0.04, (5, 8))
    return sizes, losses, 4 - 0.2 * np.log(12_000) + rng.normal(0, 0.04, 8)


def dense(sizes, losses):
    return [entry("dense", int(size), 1e6 * size, *of_seeds) for size, of_seeds in zip(sizes, losses, strict=True)]


def test_the_sequence_is_of_the_means_of_all_seeds(uneven):
    sizes, losses, ces = uneven
    found = effective_size.worth(moe(*ces), dense(sizes, losses))
    np.testing.assert_allclose(found.size, met(sizes, losses.mean(axis=1), ces.mean()), rtol=1e-10)
    np.testing.assert_allclose(found.flops, 1e6 * found.size, rtol=1e-10)  # FLOPs as the sizes: on a line of their own
    np.testing.assert_allclose([found.smallest, found.largest], [2_000, 50_000], rtol=1e-12)


@pytest.mark.parametrize("seed", [0, 7])
def test_low_and_high_by_a_loop_over_draws(uneven, seed):
    """Of 1000 sorted sizes the tenth part is at place 0.1 * 999 = 99.9, from 0; between two, by the logarithm."""
    sizes, losses, ces = uneven
    drawn = sorted(np.clip(met(sizes, [np.mean([of[i] for i in draw]) for of in losses], np.mean(ces[draw])),
                           2_000, 50_000)
                   for draw in np.random.default_rng(seed).integers(0, 8, (effective_size.DRAWS, 8)))
    found = effective_size.worth(moe(*ces), dense(sizes, losses), seed)
    assert len(drawn) == 1000
    np.testing.assert_allclose(found.low, drawn[99] ** 0.1 * drawn[100] ** 0.9, rtol=1e-10)
    np.testing.assert_allclose(found.high, drawn[899] ** 0.9 * drawn[900] ** 0.1, rtol=1e-10)


@pytest.mark.parametrize(("ces", "low", "high"), [
    # of two seeds a quarter of the draws is the one alone, a quarter the other alone
    ((2.5, 1.75), 1.5, 2.25), ((1.75, 2.5), 1.5, 2.25),
    # of three 1 in 27 draws is the least alone, 3 in 27 are two of it and one of the next: the tenth part is there
    ((3.0, 2.7, 1.5), 1.1, 2.1)])  # places 1, 1.3, 2.5: (1 + 1 + 1.3) / 3 and (1.3 + 2.5 + 2.5) / 3
def test_low_and_high_by_hand(ces, low, high):
    n = len(ces)
    found = effective_size.worth(moe(*ces), family([4.0] * n, [3.0] * n, [2.0] * n, [1.0] * n))
    np.testing.assert_allclose([found.low, found.high], [10 ** (3 + low), 10 ** (3 + high)], rtol=1e-10)
    np.testing.assert_allclose(found.size, 10 ** (3 + 4 - np.mean(ces)), rtol=1e-12)


def test_what_a_seed_does_to_all_models_alike_leaves_no_doubt():
    """Were each model's seeds drawn apart, low and high would be decades apart."""
    shift = np.array([0.0, 0.7, -0.4])
    found = effective_size.worth(moe(*(2.5 + shift)), family(4 + shift, 3 + shift, 2 + shift, 1 + shift))
    np.testing.assert_allclose([found.size, found.low, found.high], 10 ** 4.5, rtol=1e-10)


@pytest.mark.parametrize(("loss", "size"), [(1.9, 1e5), (2.1, 1e3), (0.5, 1e5), (3.5, 1e3)])
def test_where_no_loss_falls_a_better_model_is_worth_the_largest_and_a_worse_one_the_smallest(loss, size):
    found = effective_size.worth(moe(loss), family(1.0, 2.0, 3.0))  # pooled to 2
    np.testing.assert_allclose([found.size, found.low, found.high], size, rtol=1e-12)


@pytest.mark.parametrize(("ces", "size", "low", "high", "flops"), [
    ((4.001, 4.001), 1e3, 1e3, 1e3, 1e9), ((9.0, 9.0), 1e3, 1e3, 1e3, 1e9),
    ((0.999, 0.999), 1e6, 1e6, 1e6, 128e9), ((0.0, 0.0), 1e6, 1e6, 1e6, 128e9),
    ((7.0, 3.0), 1e3, 1e3, 1e4, 1e9),  # of one seed alone inside, of the mean, 5, not
    ((6.0, 0.0), 1e4, 1e3, 1e6, 4e9)])  # the mean, 3, is inside, neither seed alone is
def test_sizes_are_cut_to_those_of_the_family(ces, size, low, high, flops):
    found = effective_size.worth(moe(*ces), family((4.0, 4.0), (3.0, 3.0), (2.0, 2.0), (1.0, 1.0)))
    np.testing.assert_allclose(found, [size, low, high, 1e3, 1e6, flops], rtol=1e-10)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_order_of_the_family_does_not_matter(order):
    models = family((3.0, 2.9), (2.0, 2.3), (1.0, 1.1))
    found, sorted_ = (effective_size.worth(moe(2.4, 1.7), of) for of in ([models[i] for i in order], models))
    np.testing.assert_allclose(found, sorted_, rtol=1e-10)


def test_the_same_seed_gives_the_same_and_another_draws_others(uneven):
    sizes, losses, ces = uneven
    one, same, other = (effective_size.worth(moe(*ces), dense(sizes, losses), *seed) for seed in ((), (0,), (1,)))
    assert one == same
    assert one.size == other.size and one.low != other.low and one.high != other.high


def planted(trials, noise):
    """Worths of a MoE that is worth 150,000, in families of five sizes and three seeds whose losses have noise."""
    rng = np.random.default_rng(11)
    sizes = 10_000 * 3.0 ** np.arange(5)
    for _ in range(trials):
        *losses, ces = 5 - 0.2 * np.log([*sizes, 150_000])[:, None] + rng.normal(0, noise, (6, 3))
        yield effective_size.worth(moe(*ces), dense(sizes, losses))


def test_a_planted_size_is_found_again():
    found = np.median([one.size for one in planted(30, noise=0.05)])
    assert 0.85 < found / 150_000 < 1.15


def test_of_three_seeds_the_range_holds_the_truth_about_six_times_in_ten():
    """The standard deviation of the share of 400 is 0.025."""
    assert 0.55 < np.mean([one.low <= 150_000 <= one.high for one in planted(400, noise=0.03)]) < 0.7


def cells(table):
    """The rows of a table that has two blanks or more between its columns, without the line below the head."""
    head, _, *rows = ([cell.strip() for cell in line.split("  ") if cell.strip()] for line in table.split("\n"))
    return head, rows


def test_the_table_by_hand():
    # 2.0 and 2.2: mean 2.1, sample deviation 0.2 / sqrt(2) = 0.141
    ours = entry("MoE, 2 of 8", 12_345, 2e9, 2.0, 2.2, active=3_000, steps=1_200, seconds=12.4)
    rows = [ours, entry("dense, same total", 12_000, 8e9, 2.5, 2.1, steps=1_200, seconds=20.6),
            entry("dense, same active", 3_000, 2e9, 1.9, 1.9, budget="FLOPs", steps=80)]
    head, (first, second, third) = cells(effective_size.entries_table(rows, ours))
    assert head == ["at equal", "model", "steps", "parameters", "active", "training FLOPs", "seconds",
                    "validation loss", "to the MoE", "in seeds"]
    assert first == ["steps", "MoE, 2 of 8", "1,200", "12.3 k", "3 k", "2 G", "12.4", "2.100 ± 0.141"]
    # 0.5 and -0.1: mean 0.2, and one seed has the sign of the mean
    assert second == ["steps", "dense, same total", "1,200", "12 k", "12 k", "8 G", "20.6", "2.300 ± 0.283", "+0.200",
                      "1 of 2"]
    # -0.1 and -0.3
    assert third == ["FLOPs", "dense, same active", "80", "3 k", "3 k", "2 G", "10", "1.900 ± 0.000", "-0.200",
                     "2 of 2"]


@pytest.mark.parametrize(("ces", "gap", "seeds"), [
    ((2.0, 2.5, 1.5), "+0.000", "0 of 3"),  # 0, 0.5, -0.5: no mean to agree with
    ((2.0, 2.0, 2.0), "+0.000", "0 of 3"),
    ((2.0, 2.0, 2.75), "+0.250", "1 of 3"),  # a tie is no agreement
    ((2.0, 1.0, 1.5), "-0.500", "2 of 3"),
    ((1.0, 1.0, 2.5), "-0.500", "2 of 3"),
    ((3.0, 3.0, 3.0), "+1.000", "3 of 3")])
def test_seeds_count_that_differ_as_their_mean_does(ces, gap, seeds):
    ours = moe(2.0, 2.0, 2.0)
    _, rows = cells(effective_size.entries_table([ours, entry("dense", 1, 1, *ces)], ours))
    assert rows[1][-2:] == [gap, seeds]


def test_a_table_of_one_seed_has_no_spread():
    ours = moe(2.0)
    _, rows = cells(effective_size.entries_table([entry("dense", 1, 1, 2.25), ours], ours))
    assert [row[7:] for row in rows] == [["2.250", "+0.250", "1 of 1"], ["2.000"]]


def test_the_columns_of_the_table_are_aligned():
    ours = moe(2.0)
    head, line, *rows = effective_size.entries_table([entry("dense, a long name", 10 ** 9, 1, 2.25), ours], ours).split("\n")
    for column in ("at equal", "model"):
        assert {row[head.index(column) - 1:head.index(column)].strip() for row in rows} == {""}
    ends = [head.index(column) + len(column) for column in ("steps", "parameters", "active", "seconds")]
    assert all(row[end - 1] != " " and row[end] == " " for row in (head, *rows) for end in ends)
    assert len(line) == max(map(len, (head, *rows)))


FEW, MANY = 1e3, 1e5
"""Sizes of the smallest and the largest of a family."""


def words(size, low, high, seeds=3):
    return effective_size.worth_words(moe(*[2.0] * seeds), effective_size.Worth(size, low, high, FEW, MANY, 1e9))


@pytest.mark.parametrize(("found", "size", "drawn", "of_active", "of_total"), [
    ((6e3, 4e3, 9e3), "6 k", "4 k to 9 k", 2, 0.5),  # 6000 is twice 3000 and half of 12 000
    ((6e3, FEW, 9e3), "6 k", "at most 1 k to 9 k", 2, 0.5),
    ((6e3, 4e3, MANY), "6 k", "4 k to at least 100 k", 2, 0.5),
    ((FEW, FEW, 9e3), "at most 1 k", "at most 1 k to 9 k", 0.33, 0.08),
    ((FEW, FEW, FEW), "at most 1 k", "at most 1 k to at most 1 k", 0.33, 0.08),
    ((MANY, 6e3, MANY), "at least 100 k", "6 k to at least 100 k", 33.33, 8.33),
    ((MANY, MANY, MANY), "at least 100 k", "at least 100 k to at least 100 k", 33.33, 8.33),
    ((1_001, 1_001, 99_900), "1 k", "1 k to 99.9 k", 0.33, 0.08)])  # just inside of the family
def test_the_worth_in_words(found, size, drawn, of_active, of_total):
    assert words(*found) == (
        f"MoE, 2 of 8: worth a dense model of {size} parameters (80 % of draws of the seeds: {drawn}), {of_active:.2f} "
        f"times its active and {of_total:.2f} times its total ones.")


@pytest.mark.parametrize(("found", "size"), [(6e3, "6 k"), (FEW, "at most 1 k"), (MANY, "at least 100 k")])
def test_the_worth_in_words_of_one_seed_has_no_range(found, size):
    assert words(found, found, found, seeds=1).startswith(
        f"MoE, 2 of 8: worth a dense model of {size} parameters (one seed), ")


@pytest.mark.parametrize("size", [6e3, FEW, MANY])
def test_where_draws_reach_from_end_to_end_the_seeds_do_not_tell(size):
    assert words(size, FEW, MANY) == ("MoE, 2 of 8: the seeds do not tell what it is worth: anything from 1 k to 100 k "
                                      "parameters of a dense model.")


@pytest.mark.parametrize(("loss", "size"), [(4.5, "at most 1 k"), (2.5, "31.6 k"), (0.5, "at least 1 M")])
def test_a_worth_found_is_told(loss, size):
    ours = moe(loss, loss)
    found = effective_size.worth(ours, family((4.0, 4.0), (3.0, 3.0), (2.0, 2.0), (1.0, 1.0)))
    assert f"dense model of {size} parameters (80 % of draws of the seeds: {size} to {size})" in effective_size.worth_words(
        ours, found)


def test_the_claim_is_said_and_then_judged_moe_by_moe():
    text = effective_size.claim({"MoE, 2 of 8": {"active": 0.367, "FLOPs": 4.0, "bytes": 0.987, "time": 3.98},
                        "MoE, 2 of 16": {"active": 0.2, "FLOPs": 8.123, "bytes": 4.5, "time": 12.0}})
    said, numbers, main, many = text.split("\n\n")
    assert said == ("The claim: models with 10% to 25% active parameters save 4 to 10 times the compute of a dense "
                    "model of equal size.")
    head, rows = cells(numbers)
    assert head == ["times less than a dense model of its size", "MoE, 2 of 8", "MoE, 2 of 16"]
    assert rows == [["(active parameters)", "37%", "20%"], ["FLOPs", "4.00", "8.12"], ["bytes", "0.99", "4.50"],
                    ["time", "3.98", "12.00"]]
    assert main == ("MoE, 2 of 8, 37% active, outside of the claim. 4 times or more: FLOPs (4.00). Less: bytes (0.99), "
                    "time (3.98).")
    assert many == ("MoE, 2 of 16, 20% active, one that the claim is about. 4 times or more: FLOPs (8.12), bytes "
                    "(4.50), time (12.00).\nLess: nothing.")
    assert all(len(line) <= 118 for line in text.split("\n"))


@pytest.mark.parametrize(("active", "kind"), [
    (0.0999, "outside of the claim"), (0.10, "one that the claim is about"), (0.25, "one that the claim is about"),
    (0.2501, "outside of the claim")])
def test_the_claim_is_about_10_to_25_percent_active(active, kind):
    judged = effective_size.claim({"MoE": {"active": active, "FLOPs": 5.0}}).split("\n\n")[2]
    assert judged == f"MoE, {active:.0%} active, {kind}. 4 times or more: FLOPs (5.00). Less: nothing."


@pytest.mark.parametrize(("times", "told"), [
    (4.0, "4 times or more: FLOPs (4.00). Less: nothing."), (3.99, "4 times or more: nothing. Less: FLOPs (3.99).")])
def test_what_is_four_times_or_more_holds(times, told):
    assert effective_size.claim({"MoE": {"active": 0.2, "FLOPs": times}}).endswith(told)
