"""What a MoE is worth, by arithmetic on made-up losses; and the tables and words say what the numbers say."""

import itertools

import numpy as np
import pytest

from minimoe.analysis import cost, worth


def entry(name, total, flops, *ces, active=None, budget="steps", steps=100, seconds=10.0):
    return worth.Entry(name, budget, steps, cost.Parameters(total, active or total, 0, 0), flops, seconds,
                       np.array(ces))


def family(*losses):
    """Dense models of 1, 10 and 100 thousand parameters; losses: of each, a number or one number a seed."""
    sizes, flops = (1_000, 10_000, 100_000, 1_000_000), (1e9, 4e9, 64e9, 128e9)
    return [entry(f"dense {size}", size, work, *np.atleast_1d(of_seeds))
            for size, work, of_seeds in zip(sizes, flops, losses, strict=False)]


def moe(*ces, flops=2e9):
    return entry("MoE, 2 of 8", 12_000, flops, *ces, active=3_000)


@pytest.mark.parametrize(("loss", "size", "flops"), [
    (2.5, 1_000 * 10 ** 0.5, 2e9),  # halfway from 3 to 2: sqrt(1e3 * 1e4) parameters, sqrt(1e9 * 4e9) FLOPs
    (1.25, 10_000 * 10 ** 0.75, 32e9),  # three quarters of the way from 2 to 1: 4e9 * 16^(3/4) = 4e9 * 8
    (2.75, 1_000 * 10 ** 0.25, 2 ** 0.5 * 1e9),  # a quarter: 1e9 * 4^(1/4)
    (3.0, 1_000, 1e9), (2.0, 10_000, 4e9), (1.0, 100_000, 64e9)])
def test_between_two_dense_models_a_loss_is_worth_a_size_between_theirs(loss, size, flops):
    found = worth.worth(moe(loss), family(3.0, 2.0, 1.0))
    np.testing.assert_allclose(found.size, [size])
    np.testing.assert_allclose(found.flops, [flops])


@pytest.mark.parametrize("loss", [3.001, 0.999])
def test_a_loss_outside_of_the_family_is_worth_no_size(loss):
    found = worth.worth(moe(loss), family(3.0, 2.0, 1.0))
    assert np.isnan(found.size).all() and np.isnan(found.flops).all()


@pytest.mark.parametrize(("losses", "loss", "place"), [
    ((3.0, 2.0, 2.5, 1.5), 2.2, 0.8),  # met from 3 to 2, on the way up, and from 2.5 to 1.5: the first counts
    ((2.0, 2.5, 1.0), 2.2, 1.2),  # on the way up it does not count
    ((3.0, 2.0, 2.0, 1.0), 2.0, 1.0), ((2.0, 2.0, 1.0), 2.0, 1.0),  # as good as two: where the fall begins or ends
    ((3.0, 2.0, 2.5), 2.5, 0.5),
    ((1.0, 2.0, 3.0), 2.5, None), ((2.0, 2.0, 2.0), 2.0, None)])
def test_of_losses_that_rise_on_the_way_the_first_fall_counts(losses, loss, place):
    # sizes are powers of ten, so that a place p in the list is 10^(3 + p) parameters
    found = worth.worth(moe(loss), family(*losses))
    np.testing.assert_allclose(found.size, [np.nan if place is None else 10 ** (3 + place)])
    assert np.isnan(found.flops[0]) == (place is None)


def test_each_seed_has_a_worth_of_its_own_among_the_losses_of_that_seed():
    # 2.5: halfway from 3 to 2;  2.5: a quarter of the way from 2.6 to 2.2;  0.5 is below all
    of_seeds = family((3.0, 2.6, 3.0), (2.0, 2.2, 2.0), (1.0, 1.0, 1.0))
    found = worth.worth(moe(2.5, 2.5, 0.5), of_seeds)
    np.testing.assert_allclose(found.size, [10 ** 3.5, 10 ** 3.25, np.nan])
    np.testing.assert_allclose(found.flops, [2e9, 2 ** 0.5 * 1e9, np.nan])


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_order_of_the_family_does_not_matter(order):
    models = family((3.0, 2.9), (2.0, 2.3), (1.0, 1.1))
    found, sorted_ = (worth.worth(moe(2.4, 1.7), of) for of in ([models[i] for i in order], models))
    np.testing.assert_array_equal(found, sorted_)


def test_a_family_of_one_has_nothing_between():
    assert np.isnan(worth.worth(moe(3.0), family(3.0)).size).all()


def cells(table):
    """The rows of a table that has two blanks or more between its columns, without the line below the head."""
    head, _, *rows = ([cell.strip() for cell in line.split("  ") if cell.strip()] for line in table.split("\n"))
    return head, rows


def test_the_table_by_hand():
    # 2.0 and 2.2: mean 2.1, sample deviation 0.2 / sqrt(2) = 0.141
    ours = entry("MoE, 2 of 8", 12_345, 2e9, 2.0, 2.2, active=3_000, steps=1_200, seconds=12.4)
    rows = [ours, entry("dense, same total", 12_000, 8e9, 2.5, 2.1, steps=1_200, seconds=20.6),
            entry("dense, same active", 3_000, 2e9, 1.9, 1.9, budget="FLOPs", steps=80)]
    head, (first, second, third) = cells(worth.entries_table(rows, ours))
    assert head == ["at equal", "model", "steps", "parameters", "active", "training FLOPs", "seconds",
                    "validation loss", "to the MoE", "in seeds"]
    assert first == ["steps", "MoE, 2 of 8", "1,200", "12.3 k", "3 k", "2 G", "12", "2.100 ± 0.141"]
    # 0.5 and -0.1: mean 0.2, and one seed has the sign of the mean
    assert second == ["steps", "dense, same total", "1,200", "12 k", "12 k", "8 G", "21", "2.300 ± 0.283", "+0.200",
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
    _, rows = cells(worth.entries_table([ours, entry("dense", 1, 1, *ces)], ours))
    assert rows[1][-2:] == [gap, seeds]


def test_a_table_of_one_seed_has_no_spread():
    ours = moe(2.0)
    _, rows = cells(worth.entries_table([entry("dense", 1, 1, 2.25), ours], ours))
    assert [row[7:] for row in rows] == [["2.250", "+0.250", "1 of 1"], ["2.000"]]


def test_the_columns_of_the_table_are_aligned():
    ours = moe(2.0)
    head, line, *rows = worth.entries_table([entry("dense, a long name", 10 ** 9, 1, 2.25), ours], ours).split("\n")
    for column in ("at equal", "model"):
        assert {row[head.index(column) - 1:head.index(column)].strip() for row in rows} == {""}
    ends = [head.index(column) + len(column) for column in ("steps", "parameters", "active", "seconds")]
    assert all(row[end - 1] != " " and row[end] == " " for row in (head, *rows) for end in ends)
    assert len(line) == max(map(len, (head, *rows)))


def words(sizes, flops):
    return worth.worth_words(moe(*[2.0] * len(sizes)), worth.Worth(np.array(sizes), np.array(flops)))


def test_the_worth_in_words_when_all_seeds_have_one():
    # sqrt(4000 * 9000) = 6000 is twice 3000 and half of 12 000;  sqrt(2e9 * 8e9) = 4e9 is twice the MoE's 2e9
    assert words([9e3, 4e3], [8e9, 2e9]) == (
        "MoE, 2 of 8: worth a dense model of 6 k parameters (4 k to 9 k): 2.00 times its active, 0.50 times its total "
        "ones; that dense model takes 2.00 times the training FLOPs.")


def test_the_worth_in_words_when_some_seeds_have_one():
    assert words([4e3, np.nan, 9e3], [2e9, np.nan, 8e9]) == (
        "MoE, 2 of 8: worth a dense model of 6 k parameters (4 k to 9 k) in 2 of 3 seeds; outside of the family in the "
        "others: 2.00 times its active, 0.50 times its total ones; that dense model takes 2.00 times the training "
        "FLOPs.")


def test_the_worth_in_words_when_one_of_three_seeds_has_one():
    assert words([np.nan, 6e3, np.nan], [np.nan, 1e9, np.nan]) == (
        "MoE, 2 of 8: worth a dense model of 6 k parameters in 1 of 3 seeds; outside of the family in the others: "
        "2.00 times its active, 0.50 times its total ones; that dense model takes 0.50 times the training FLOPs.")


def test_the_worth_in_words_of_one_seed():
    assert words([6e3], [4e9]) == (
        "MoE, 2 of 8: worth a dense model of 6 k parameters: 2.00 times its active, 0.50 times its total ones; that "
        "dense model takes 2.00 times the training FLOPs.")


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_worth_in_words_when_no_seed_has_one(seeds):
    said = words([np.nan] * seeds, [np.nan] * seeds)
    assert said.startswith("MoE, 2 of 8: no dense model of the family meets its loss")
    assert "nan" not in said


def test_the_claim_is_said_and_then_answered_point_by_point():
    *said, one, two = worth.claim({"FLOPs of the experts": 4.0, "bytes": 0.987}).split("\n")
    assert one == "  FLOPs of the experts    4.00"
    assert two == "  bytes                   0.99"
    assert "10 to 25 % active parameters takes 4 to 10 times less" in " ".join(said)
    assert all(len(line) <= 118 for line in said)
