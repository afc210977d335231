"""Reads Hugging Face `config.json` files as Architectures.  Totals are those of the models that transformers builds.

So layers for multi-token prediction (`num_nextn_predict_layers`, `num_mtp_layers`) are left out, as in papers.
A key that affects a count must be one that the family reads, or be off: null, false, 0 or empty.  Keys that affect no
count are listed; any other key is refused by name.  `families.json` follows the classes of the library, version 5.24;
the code of "deepseek" and "kimi_k2" came with their checkpoints.
"""

import difflib
import fnmatch
import json
import re
from importlib import resources
from typing import NamedTuple

from minimoe.cost.architecture import Architecture, Latent, check, did_you_mean

TABLE = json.loads(resources.files(__package__).joinpath("families.json").read_text("utf-8"))
"""names: field of an Architecture -> its key in every family.  activations: name -> `ffn_type`.  layer_types: name ->
attention.  aliases: key of some families -> its name here.  defaults: key -> value if the file and its family have
none; keys that are not in it are required.  families: see Family.  off: keys that affect counts but that no family
reads.  ignored: keys, with * for any letters, that affect no count."""

PUBLISHED = [model["key"] for model in json.loads(
    resources.files(__package__).joinpath("published.json").read_text("utf-8"))["models"]]
"""Names of models that are counted without a file: see `published`."""

BY_LAYER = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "n_shared_experts")
"""Keys that may have one number per layer, if all are the same."""
LATENT = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


class Family(NamedTuple):
    """How the code of a `model_type` reads its keys.

    reads: keys that affect counts, besides "names" and those below.
    biases: key -> which parts have biases if it is true, in the words of `architecture.BIASED`; "" -> which always do.
    layers: a cycle of `architecture.ATTENTIONS`; or "late", "early": windows from a layer on, or in some before it.
    fixed: fields of the Architecture that do not depend on a key.
    defaults: key -> the default of the family's class.
    must: key -> the only supported value.
    """

    reads: tuple = ()
    biases: dict = {}
    layers: tuple | str = ("full",)
    fixed: dict = {}
    defaults: dict = {}
    must: dict = {}

    @property
    def keys(self):
        """All keys that the family reads."""
        windows = "window" in self.layers or isinstance(self.layers, str)
        more = ["sliding_window"] * windows + ["layer_types"] * (windows or "linear" in self.layers)
        return {*TABLE["names"].values(), *self.reads, *self.biases, *self.must, *more}

    @property
    def of_experts(self):
        """Field of an Architecture -> its key, for fields that only models with experts have."""
        width = "moe_intermediate_size" if "moe_intermediate_size" in self.reads else "intermediate_size"
        return {"n_routed_experts": "num_experts", "top_k": "num_experts_per_tok", "expert_hidden": width}


def _family(record):
    like = record.get("like")
    own = {name: tuple(value.split()) if name == "reads" else tuple(value) if isinstance(value, list) else value
           for name, value in record.items() if name != "like"}
    return (_family(TABLE["families"][like]) if like else Family())._replace(**own)


FAMILIES = {name: _family(record) for name, record in TABLE["families"].items()}
_NOTHING = re.compile("|".join(map(fnmatch.translate, TABLE["ignored"])))
_COUNTS = set().union(*(each.keys for each in FAMILIES.values()), TABLE["off"]) - {""}


def read(record, path):
    """Name and Architecture from the record of a `config.json`.  path: its file, whose name is used if it has none.

    Raises ValueError with the key and its value if it is missing, wrong or not supported.
    """
    kind = record.get("model_type")
    parts = [key for key in ("text_config", "vision_config", "audio_config") if record.get(key)]
    check(not parts, parts and parts[0], "{...}", "this model has several parts; put the record of its language "
          "model, such as text_config, into a separate file")
    check(kind is not None, "model_type", None, f"is required: one of {', '.join(FAMILIES)}")
    known = difflib.get_close_matches(str(kind), PUBLISHED, n=1)
    way_out = f"; `cost --model {known[0]}` counts a published one" if known else ""
    check(isinstance(kind, str) and kind in FAMILIES, "model_type", kind,
          f"must be one of {', '.join(FAMILIES)}{did_you_mean(kind, FAMILIES)}{way_out}")
    heads = record.get("architectures") or []
    check(isinstance(heads, list) and all(str(head).endswith("ForCausalLM") for head in heads), "architectures", heads,
          "must be a language model, ...ForCausalLM")
    family = FAMILIES[kind]
    given, spelled = _flat(record)
    _check_keys(given, spelled, family)
    try:
        arch = Architecture(**_fields(given, family))
    except ValueError as error:
        names = TABLE["names"] | family.of_experts | {"window": "sliding_window", "attention": "layer_types"}
        theirs = spelled | {ours: spelled.get(key, key) for ours, key in names.items()}
        words = str(error).removeprefix("mla.")
        named = re.sub(r"\b\w+(?= = | is required)", lambda word: theirs.get(word[0], word[0]), words)
        raise ValueError(named) from None
    name = record.get("_name_or_path")
    return name if isinstance(name, str) and name.strip() and name.isprintable() else str(path), arch


def remark(record):
    """What of a `config.json` is left out that its reader may expect to count, in words; empty if there is nothing."""
    found = record.get("quantization_config")
    if not isinstance(found, dict):
        return ""
    method = f" ({found['quant_method']})" if isinstance(found.get("quant_method"), str) else ""
    return f"quantization_config{method} is not read: --format and --expert-format say how many bytes a number takes"


def _flat(record):
    """The keys, also of nested records, under the names that they have here; and name -> original spelling."""
    nested = [record[key] for key in ("attn_config", "ffn_config") if isinstance(record.get(key), dict)]
    pairs = [(key, value) for each in (record, *nested) for key, value in each.items()
             if value is not None and value not in nested and not (each is not record and _NOTHING.match(key))]
    given, spelled = {key: None for key in record if record[key] is None}, {}
    for key, value in pairs:
        name = TABLE["aliases"].get(key, key)
        if name in BY_LAYER and isinstance(value, list) and value and all(one == value[0] for one in value):
            value = value[0]
        twice = given.get(name)
        check(twice in (None, value), key, value, f"does not agree with {spelled.get(name)} = {twice!r}")
        given[name], spelled[name] = value, key
    return given, spelled


def _check_keys(given, spelled, family):
    for name, value in given.items():
        key = spelled.get(name, name)
        if name in family.must:
            fits = all(one == family.must[name] for one in (value if isinstance(value, list) else [value]))
            check(fits or value is None, key, value, f"is not supported: must be {family.must[name]!r}")
        same = name == "moe_intermediate_size" and value == given.get("intermediate_size")
        latent = name in LATENT and given.get("use_mla") is False
        if name in family.keys or same or latent or value is None or _NOTHING.fullmatch(name):
            continue
        check(name in _COUNTS, key, value, f"is unknown{did_you_mean(key, _COUNTS | TABLE['aliases'].keys())}")
        check(not value, key, value, "changes the count, but is not supported for this model_type")


def _fields(given, family):
    """The fields of the Architecture."""
    def value(key):
        found = given[key] if key in given else family.defaults.get(key, TABLE["defaults"].get(key, ...))
        check(found is not ..., key, None, "is required")
        return found

    def flag(key):
        check(isinstance(value(key), bool), key, value(key), "must be true or false")
        return value(key)

    found, activations = {ours: value(key) for ours, key in TABLE["names"].items()}, TABLE["activations"]
    n = found["n_layers"]
    check(type(n) is int and 1 <= n <= 10_000, "n_layers", n, "must be a whole number from 1 to 10,000")
    if found["head_dim"] is None and all(type(found[key]) is int and found[key] > 0 for key in ("d_model", "n_heads")):
        found["head_dim"] = max(found["d_model"] // found["n_heads"], 1)  # as in the library, which rounds down
    activation = given.get("hidden_activation") or given.get("ffn_act_fn") or value("hidden_act")
    activation = activation.get("name") if isinstance(activation, dict) else activation
    check(activation in list(activations), "hidden_act", activation, f"must be one of {', '.join(activations)}")
    found |= {"ffn_type": activations[activation], **family.fixed, **_attention(given, family, value, flag, n)}
    if "use_qk_norm" in family.reads and flag("use_qk_norm"):
        found["qk_norm"] = "per head"
    dense = _dense_layers(family.keys, value, n) if "num_experts" in family.keys and value("num_experts") else range(n)
    words = {word for key, words in family.biases.items() if not key or flag(key) for word in words.split("+")}
    if len(dense) < n:
        found |= _experts(family, value, "shared" in words) | {"dense_layers": tuple(dense)}
    else:
        found.pop("shared_gate", None)
    absent = {"dense": not dense, "shared": not found.get("n_shared_experts"), "experts": len(dense) == n,
              "router": len(dense) == n}
    return found | {"biases": "+".join(sorted(word for word in words if not absent.get(word))) or None}


def _attention(given, family, value, flag, n):
    """Its fields for what a layer attends to, and how."""
    found, cycle = {}, family.layers
    if "kv_lora_rank" in family.reads:
        found = {"mla": Latent(**{key: value(key) for key in LATENT}), "head_dim": None}
        check(found["mla"].q_lora_rank or not flag("attention_bias"), "attention_bias", True,
              "is not supported without q_lora_rank")
    window = None
    if "sliding_window" in family.keys and ("use_sliding_window" not in family.keys or flag("use_sliding_window")):
        window = value("sliding_window")
    if value("layer_types") is not None and "layer_types" in family.keys:
        types, known = value("layer_types"), TABLE["layer_types"]
        allowed = [name for name, kind in known.items() if kind != "linear" or "linear" in cycle]
        fits = isinstance(types, list) and len(types) == n and all(one in allowed for one in types)
        check(fits, "layer_types", types, f"must be {n} of {', '.join(allowed)}")
        cycle = tuple(known[name] for name in types)
    elif not window:
        cycle = tuple("full" if kind == "window" else kind for kind in cycle) if isinstance(cycle, tuple) else None
    elif isinstance(cycle, str):
        turn = value("max_window_layers")
        check(type(turn) is int, "max_window_layers", turn, "must be a whole number")
        inside = [i >= turn if cycle == "late" else i < turn and i % 2 == 0 for i in range(n)]
        cycle = tuple("window" if one else "full" for one in inside)
    elif value("sliding_window_pattern") is not None and "sliding_window_pattern" in family.keys:
        every = value("sliding_window_pattern")
        check(type(every) is int and every >= 1, "sliding_window_pattern", every, "must be a whole number from 1")
        cycle = ("window",) * min(every - 1, n) + ("full",)
    cycle = cycle and cycle[:n]
    return found | {"attention": cycle, "window": window if "window" in (cycle or ()) else None}


def _dense_layers(keys, value, n):
    """Indices of the layers without experts."""
    def of(key, otherwise):
        return otherwise if key not in keys or value(key) is None else value(key)

    def whole(key, least):
        number = of(key, least)
        check(type(number) is int and number >= least, key, number, f"must be a whole number from {least}")
        return number

    first, step, interval = (whole(*each) for each in (
        ("first_k_dense_replace", 0), ("decoder_sparse_step", 1), ("moe_layer_interval", 1)))
    start, end = whole("moe_layer_start_index", 0), whole("moe_layer_end_index", -1)
    named, freq = of("mlp_only_layers", []), of("moe_layer_freq", 1)
    check(isinstance(named, list) and all(type(i) is int for i in named), "mlp_only_layers", named,
          "must be a list of layers")
    fits = len(freq) == n if isinstance(freq, list) else type(freq) is int and freq > 0
    check(fits, "moe_layer_freq", freq, f"must be a whole number from 1, or {n} of 0 and 1")
    end, named = n - 1 if end == -1 else end, set(named)
    return [i for i in range(n) if i < first or i in named or (i + 1) % step or (i + 1) % interval
            or not start <= i <= end or (not freq[i] if isinstance(freq, list) else i % freq)]


def _experts(family, value, merged):
    """Its fields about experts.  merged: whether the shared experts are one network with one bias."""
    found = {ours: value(key) for ours, key in family.of_experts.items()}
    for wide in {"shared_expert_intermediate_size", "shared_intermediate_size"}.intersection(family.reads):
        return found | ({"n_shared_experts": 1, "shared_hidden": value(wide)} if value(wide) else {})
    shared = (value("n_shared_experts") or 0) if "n_shared_experts" in family.reads else 0
    if merged and type(shared) is type(found["expert_hidden"]) is int and shared > 0:
        return found | {"n_shared_experts": 1, "shared_hidden": shared * found["expert_hidden"]}
    return found | {"n_shared_experts": shared}
