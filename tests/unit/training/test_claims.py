"""What a checkpoint claims is accepted only if it is possible for a run."""

import dataclasses

import numpy as np
import pytest

from minimoe import model
from minimoe.training import claims
from tests import small

STATE = np.random.default_rng(0).bit_generator.state
HEADER = {"model_config": dataclasses.asdict(dataclasses.replace(small.MODEL, vocab_size=3)), "characters": "abc",
          "train_config": dataclasses.asdict(small.TRAINING), "domains": ["a", "b"], "step": 6,
          "data_digest": "0123456789abcdef", "rng": STATE}


def test_a_header_of_a_run_is_believed():
    header = claims.Header(HEADER)
    assert header.step == 6 and header.domains == ("a", "b")
    assert header.rng.random() == np.random.default_rng(0).random()


@pytest.mark.parametrize(("name", "values"), [
    ("model_config", [None, [], 1]), ("train_config", ["x"]), ("step", [True, 6.0, -1, 7, None, "x" * 10**6, 10**5000]),
    ("characters", [["a", "b", "c"], "aab", "cba", None, {}, 5]),
    ("domains", [None, [], "ab", [1], ["a", "a"], {"a": 1}]),
    ("data_digest", [None, 1, "", "0" * 15]),
    ("rng", [None, [], {}, {"bit_generator": "MT19937"}, STATE | {"uinteger": -1}, STATE | {"uinteger": 2**32},
             STATE | {"has_uint32": 7}, STATE | {"state": {"state": -1, "inc": 1}},
             STATE | {"state": {"state": 2**128, "inc": 1}}, STATE | {"state": {"state": 1, "inc": 2}},
             STATE | {"state": {"state": 1.5, "inc": 1}}, STATE | {"state": None}])])
def test_a_field_of_another_type_or_out_of_range_is_refused_by_name_in_few_words(name, values):
    for value in values:
        with pytest.raises(ValueError, match=name) as caught:
            claims.Header(HEADER | {name: value})
        assert len(str(caught.value)) < 400


def test_a_number_of_layers_that_the_file_has_no_arrays_for_is_refused_before_they_are_listed():
    names = [f"params/{name}" for name in model.weights(small.MODEL)]
    for n in (10**5, 10**7, 10**9):
        with pytest.raises(ValueError, match=f"n_layers = {n}: the file has {len(names)} arrays"):
            claims.shapes(dataclasses.replace(small.MODEL, n_layers=n), names, ("params", "history"))
    assert claims.shapes(small.MODEL, names, ("params", "history")).keys() == model.weights(small.MODEL).keys()
    with pytest.raises(ValueError, match="params do not fit the config: missing .*unknown .'more'"):
        claims.shapes(small.MODEL, [*names[1:], "params/more"], ("params", "history"))
    with pytest.raises(ValueError, match="unknown arrays: more"):
        claims.shapes(small.MODEL, [*names, "more"], ("params", "history"))


@pytest.mark.parametrize(("array", "least", "words"), [
    (np.array([1, np.nan]), False, "x is not finite: it contains nan"), (np.array([-np.inf]), False, "contains -inf"),
    (np.array([1j]), False, "x has dtype complex128"), (np.array([1]), False, "int64"), (np.array([-1.0]), True, "-1")])
def test_numbers_that_no_run_has_are_refused(array, least, words):
    with pytest.raises(ValueError, match=words):
        claims.real("x", array, least)
    assert claims.real("x", np.array([-1.0, 0]), False).size == 2 and claims.real("x", np.zeros(0), True).size == 0
