"""Parameters of our own models: of the description, against the arrays that there are, and by hand."""

from collections import Counter
from dataclasses import replace

import pytest

from minimoe import cost, model
from minimoe.config import ModelConfig
from minimoe.cost import ours, parts
from minimoe.moe import experts
from minimoe.moe.routers import ROUTERS

CONFIG = ModelConfig(vocab_size=13, d_model=12, n_layers=3, n_heads=2, d_hidden=10, n_experts=6, top_k=2,
                     max_sequence=9)
TINY = ModelConfig(vocab_size=5, d_model=4, n_layers=1, n_heads=2, n_kv_heads=1, d_hidden=3, n_experts=2, top_k=1)
SHAPES = {
    "as it is": dict(),
    "grouped heads": dict(n_kv_heads=1),
    "tied": dict(tie_embeddings=True),
    "one layer": dict(n_layers=1),
    "one expert": dict(n_experts=1, top_k=1),
    "one expert a token": dict(top_k=1),
    "all experts": dict(top_k=6),
    "shared experts": dict(n_shared_experts=3),
    "first layer dense": dict(first_dense_layers=1, d_dense=7),
    "every second layer": dict(moe_every=2, n_shared_experts=1),
    "no layer so late": dict(moe_every=4),
    "all layers dense": dict(first_dense_layers=3),
    "all layers dense, as wide as shared experts": dict(first_dense_layers=3, n_shared_experts=1),
    "many experts": dict(n_experts=20),
    "long texts": dict(max_sequence=100),
    "padded": dict(pad_experts=True, capacity_factor=0.5),
}
NOT_SOFT = {"pad_experts", "n_shared_experts"}
CASES = {f"{name}, {case}": replace(CONFIG, **dict(router=name, top_k=router.FACTS.top_k or 2) | fields)
         for name, router in ROUTERS.items() for case, fields in SHAPES.items()
         if not (router.FACTS.soft and fields.keys() & NOT_SOFT) and (not router.FACTS.top_k or "top_k" not in fields)}
CASES["sigmoid_bias, groups"] = replace(CONFIG, router="sigmoid_bias", n_groups=3, top_groups=2)

each_case = pytest.mark.parametrize("config", CASES.values(), ids=CASES)


@each_case
def test_parameters_are_as_many_as_the_numbers_in_the_arrays(config):
    sizes = {name: array.size for name, array in model.init_params(config).items()}
    found = parts.parameters(ours.architecture(config))
    assert found.total == sum(sizes.values())
    own = sum(size for name, size in sizes.items() if name.rpartition(".")[2] in experts.NAMES)
    assert found.active * config.n_experts == found.total * config.n_experts - own * (config.n_experts - config.top_k)
    embedding, head = sizes["embed.w_VD"], sizes.get("head.w_DV", 0)
    assert found.active_without_embeddings == found.active - embedding - head
    assert found.active_without_input_embedding == found.active - (0 if config.tie_embeddings else embedding)
    assert found == cost.count_parameters(config)


PART_OF = {"embed": "embedding", "final": "norms", "head": "head", "attention": "attention", "dense": "dense"}


def part_of(name):
    """(layer, part) of the array of this name."""
    words = name.split(".")
    layer = int(words[1]) if words[0] == "layers" else None
    if words[-1] == "gain_D":
        return layer, "norms"
    if "shared" in words:
        return layer, "shared experts"
    if words[-1] in experts.NAMES:
        return layer, "experts"
    return layer, PART_OF.get(words[0 if layer is None else 2], "router")


@each_case
def test_every_part_has_the_numbers_of_its_arrays(config):
    expected, found = Counter(), Counter()
    for name, array in model.init_params(config).items():
        expected[part_of(name)] += array.size
    for part in parts.parts(ours.architecture(config)):
        found[part.layer, part.name] += part.total
    assert {at: n for at, n in found.items() if n} == expected


def test_parameters_of_a_tiny_model_by_hand():
    # embedding and head 5*4 each;  q and o 4*2*2, k and v 4*1*2;  three gains of 4;  router 4*2
    # experts 2 * 3 * 4*3 = 72, of which a token uses half
    total = 2 * 20 + 2 * 16 + 2 * 8 + 3 * 4 + 8 + 72
    active = total - 36
    assert cost.count_parameters(TINY) == (total, active, active - 20, active - 40)


def test_parameters_of_a_tied_model_by_hand():
    # one table: it is the head as well, so leaving out the input embedding leaves it in
    total = 20 + 2 * 16 + 2 * 8 + 3 * 4 + 8 + 72
    active = total - 36
    assert cost.count_parameters(replace(TINY, tie_embeddings=True)) == (total, active, active, active - 20)


@pytest.mark.parametrize("fields, router", [
    (dict(), 4 * 2), (dict(router="noisy_topk"), 2 * 4 * 2), (dict(router="sigmoid_bias"), 4 * 2 + 2),
    (dict(router="hash"), 0), (dict(router="soft", max_sequence=6), 4 * 6 + 1),  # 3 slots an expert, and a scale
    (dict(n_shared_experts=2), 4 * 2)])
def test_parameters_of_a_layer_by_hand(fields, router):
    listed = parts.parts(ours.architecture(replace(TINY, **fields)))
    found = {part.name: (part.total, part.active) for part in listed if part.layer == 0}
    assert found["experts"] == (72, 36)
    assert found.get("router", (0, 0)) == (router, router)
    assert found["attention"] == (48, 48) and found["norms"] == (8, 8)
    shared = 2 * 36 if "n_shared_experts" in fields else 0
    assert found.get("shared experts", (0, 0)) == (shared, shared)


@pytest.mark.parametrize("name", ["one expert", "all experts", "no layer so late", "all layers dense"])
def test_where_every_expert_works_all_parameters_are_active(name):
    counted = cost.count_parameters(CASES[f"softmax_topk, {name}"])
    assert counted.active == counted.total


def test_what_is_not_of_the_shape_changes_no_count():
    same = replace(CONFIG, capacity_factor=0.5, pad_experts=True, drop_order="rank", renormalize=False, rope_theta=9.0,
                   z_coef=0.0)
    assert ours.architecture(same) == ours.architecture(CONFIG)


@pytest.mark.parametrize("router", ROUTERS)
def test_the_layers_of_a_description_are_of_our_kinds(router):
    for fields in (dict(), dict(first_dense_layers=1), dict(moe_every=2), dict(first_dense_layers=1, moe_every=2),
                   dict(first_dense_layers=5)):
        config = replace(CONFIG, n_layers=5, router=router, top_k=ROUTERS[router].FACTS.top_k or 2, **fields)
        kinds = tuple("dense" if kind == "dense" else "moe" for kind in config.layer_kinds)
        assert ours.architecture(config).kinds == kinds
