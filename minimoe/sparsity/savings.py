"""What masks really save: parameters, FLOPs on a machine that skips zeros and in NumPy, bytes."""

import numpy as np

from minimoe import model, require, terminal
from minimoe.config import ModelConfig
from minimoe.moe import soft
from minimoe.sparsity import encodings, masks, matrices

PATTERNS = ((1, 4), (2, 4), (4, 8))
"""N:M patterns, (kept, group), for which masks are tested."""


def record(mask_of, config, forward_flops, itemsize=4):
    """What the masks of a model save, as a JSON record.

    Args:
        mask_of: name -> bool array, True = kept; parameters without a mask are dense.
        config: ModelConfig.
        forward_flops: FLOPs of the dense model per token, see `minimoe.cost`.
        itemsize: bytes per number.

    The record has
        parameters: the number of all parameters, and of kept ones.
        masked: the number of parameters with a mask, and how many of these are kept.
        forward_flops_per_token: "ideal", on a machine that skips every zero, with even routing; and "numpy", which
            also multiplies by zeros.
        bytes: encoding -> bytes of the weights, where masked matrices are encoded and the others are dense; "N:M" for
            each of PATTERNS that fits all masks.
    Raises ValueError if a mask has no parameter or does not fit it.
    """
    weights = model.weights(require.record("config", config, ModelConfig))
    require.number("forward_flops", forward_flops)
    require.whole("itemsize", itemsize, 1)
    masks.check(mask_of, {name: np.empty(weight.shape, bool) for name, weight in weights.items()})
    sizes = {name: int(np.prod(weight.shape)) for name, weight in weights.items()}
    kept = {name: int(mask.sum()) for name, mask in mask_of.items()}
    total, masked = sum(sizes.values()), sum(sizes[name] for name in mask_of)
    rest = itemsize * (total - masked)
    seen = {name: matrices.stack(name, mask) for name, mask in mask_of.items()}
    known = {name: (name, None) for name in ("dense", "bitmask", "csr")} | {
        f"{n}:{m}": ("n_of_m", (n, m)) for n, m in PATTERNS
        if all(encodings.fits_pattern(mask, (n, m)) for mask in seen.values())}
    return {
        "parameters": {"total": total, "kept": total - masked + sum(kept.values())},
        "masked": {"total": masked, "kept": sum(kept.values()), "matrices": len(mask_of)},
        "forward_flops_per_token": {"ideal": forward_flops - skipped_flops(mask_of, config), "numpy": forward_flops},
        "bytes": {words: rest + sum(encodings.n_bytes(name, mask.shape, kept[own], itemsize, pattern)
                                    for own, mask in seen.items()) for words, (name, pattern) in known.items()},
    }


def skipped_flops(mask_of, config):
    """Forward FLOPs per token of masked weights: two for each, times the share of tokens that use it."""
    return sum(2 * float(uses(name, config)) * int((~mask).sum()) for name, mask in mask_of.items())


def uses(name, config):
    """How often a token is multiplied by each weight of a parameter, on average over tokens, with even routing."""
    letters = name.rpartition("_")[2]
    if len(letters) < 2 or (name == "embed.w_VD" and not config.tie_embeddings):
        return 0.0  # gains and look-ups are not matrix products
    if not letters.startswith("E"):
        return 1.0
    if ".soft." in name:
        return soft.slots_per_expert(config) / config.max_sequence
    return config.top_k / config.n_experts


def words(found):
    """A record as text: what is saved, a table, and what it means."""
    parameters, masked, work = found["parameters"], found["masked"], found["forward_flops_per_token"]
    name, fewest = min(found["bytes"].items(), key=lambda pair: pair[1])
    lead = (f"The masks save {1 - fewest / found['bytes']['dense']:.0%} of the bytes, if matrices are stored as {name},"
            f" and {1 - work['ideal'] / work['numpy']:.0%} of the FLOPs, on hardware that skips zeros.")
    rows = [("sparse weights", "dense", "sparse", "ratio"),
            ("parameters, not masked", *_pair(parameters["total"], parameters["kept"])),
            (f"  in {masked['matrices']} masked matrices", *_pair(masked["total"], masked["kept"])),
            ("FLOPs/token, zeros skipped", *_pair(work["numpy"], work["ideal"])),
            ("FLOPs/token, as NumPy runs", *_pair(work["numpy"], work["numpy"])),
            *((f"bytes of float32, {name}", *_pair(found["bytes"]["dense"], n)) for name, n in found["bytes"].items()
              if name != "dense")]
    return "\n".join([terminal.fill(lead), terminal.table(rows), *_patterns(found), terminal.fill(
        "A mask alone saves no time: NumPy multiplies by zeros as by any other number.  Only hardware that skips zeros "
        "saves time, or a smaller model without the masked heads, neurons or experts.")])


def change(before, after):
    """What pruning has saved, as a table.  before, after: records."""
    work, sizes = "forward_flops_per_token", after["bytes"] if after["masked"]["matrices"] else {"dense": 0}
    counts = [("parameters", "total"), *[("  not masked", "kept")] * bool(after["masked"]["matrices"])]
    rows = [("", "before", "after", "ratio"),
            *((words, *_pair(before["parameters"][name], after["parameters"][name])) for words, name in counts),
            ("FLOPs/token, zeros skipped", *_pair(before[work]["ideal"], after[work]["ideal"])),
            ("FLOPs/token, as NumPy runs", *_pair(before[work]["numpy"], after[work]["numpy"])),
            *((f"bytes of float32, {name}", *_pair(before["bytes"].get(name, before["bytes"]["dense"]),
                                                   after["bytes"][name])) for name in sizes)]
    return "\n".join([terminal.table(rows), *_patterns(after)])


def _patterns(found):
    """A list of one line on the N:M patterns that all masks fit, or of none."""
    patterns = [name for name in found["bytes"] if ":" in name] if found["masked"]["matrices"] else []
    sentence = f"{', '.join(patterns)}: all masks fit, so each weight is stored with its place in its group"
    return [terminal.fill(sentence)] * bool(patterns)


def _pair(dense, sparse):
    return f"{dense:,.0f}", f"{sparse:,.0f}", f"{sparse / dense:.1%}" if dense else "-"
