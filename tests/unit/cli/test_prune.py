"""`prune`: each kind once, what it prints and leaves, and what it refuses.  The model has 4 experts in 2 layers."""

import pytest

from minimoe.training import checkpoint

KINDS = {  # options -> what is said first, and what the configuration has then
    "--method magnitude_global --sparsity 0.5": (
        "magnitude_global: 50.0% of the 30,720 weights of attention and experts are zero, which is ", {}),
    "--method sparsegpt --pattern 2:4": ("sparsegpt: 50.0% of the 30,720 weights of attention and experts", {}),
    "--method wanda --sparsity 0.5 --names head.w_DV": ("wanda: 50.0% of the 544 weights of head are zero", {}),
    "--method neurons --sparsity 0.75": ("neurons: 8 of 32 stay ", dict(d_hidden=8)),
    "--method heads --keep 1": ("heads: 1 of 2 stay ", dict(n_heads=2, n_kv_heads=1)),
    "--method layers --keep 1": ("layers: 1 of 2 stay ", dict(n_layers=1)),
    "--method experts --keep 3 --score subset": ("experts: 3 of 4 stay ", dict(n_experts=3)),
}


@pytest.mark.parametrize("options", KINDS)
def test_a_pruned_run_is_a_run_that_begins_with_its_loss(run, options):
    words, fields = KINDS[options]
    status, out, err = run(f"prune --run runs/done --text words.txt --output new {options}")
    state = checkpoint.load("new/checkpoint.npz")
    assert (status, err) == (0, "") and " ".join(out.split()).startswith(words)
    assert {name: getattr(state.model_config, name) for name in fields} == fields and bool(state.masks) == (not fields)
    masked = sum(mask.size for mask in state.masks.values())
    assert sum(int((~mask).sum()) for mask in state.masks.values()) == masked // 2  # 4 and 17 divide all of them
    assert (state.step, state.history["eval_step"]) == (0, [0])
    assert f" {state.history['eval_ce'][0]:.4f} after, " in out and "--run new --text words.txt" in out
    _, out, err = run("doctor new")
    assert "Too early: this run begins with the weights of a trained model" in " ".join(out.split())
    assert "new has not been trained since it was made from another run" in " ".join(err.split())


def test_a_pruned_run_is_known_to_all_commands_and_keeps_its_masks_while_it_recovers(run):
    line = "prune --run runs/done --text words.txt --method magnitude --sparsity 0.5 --output new --recover 2"
    status, out, _ = run(f"{line} --learning-rate 0.5")
    state = checkpoint.load("new/checkpoint.npz")
    assert status == 0 and f"{state.history['eval_ce'][-1]:.4f} after 2 steps of recovery" in " ".join(out.split())
    assert (state.step, state.train_config.learning_rate) == (2, 0.5)
    assert all(not state.params[name][~mask].any() for name, mask in state.masks.items())
    before = checkpoint.load("runs/done/checkpoint.npz")
    assert all((state.params[name] != before.params[name])[mask].any() for name, mask in state.masks.items())
    for command in ("doctor new", "route cat --run new", "generate --run new --n-tokens 3", "explore new --text cat",
                    "cost --run new --text words.txt", "train --resume --run new --text words.txt"):
        assert run(command)[::2] == (0, ""), command
    assert "15,360" in run("cost --run new --text words.txt")[1]
    status, out, _ = run("prune --run new --text words.txt --method layers --keep 1 --output one")
    one = checkpoint.load("one/checkpoint.npz")
    assert status == 0 and sum(int((~mask).sum()) for mask in one.masks.values()) == 7_680  # those of one layer
    status, out, _ = run("prune --run new --text words.txt --method wanda --sparsity 0.75 --output two")
    assert "Before, 50.0% of the 30,720 weights of attention and experts were zero." in " ".join(out.split())
    two = checkpoint.load("two/checkpoint.npz")
    assert all(not (two.masks[name] & ~mask).any() for name, mask in state.masks.items())
    err = run("prune --run new --text words.txt --method wanda --sparsity 0.25 --output three")[2]
    err = " ".join(err.split())
    assert "it is a share of all 30,720 weights, and 15,360 of them (50.0%) are already zero" in err


REFUSED = {
    "--method wanda --sparsity 0": "--sparsity 0: nothing would be removed",
    "--method wanda --sparsity 0.001": "wanda: nothing would be removed: 0.0% of the 30,720 weights of attention",
    "--method wanda --sparsity 50%": "'50%': must be a number: 0.5",
    "--method wanda --pattern 4:4": "'4:4' would keep 4 of 4: must be N:M with N below M",
    "--method heads --sparsity 0.5 --names head": "names = ['head']: heads are removed as a whole, in all layers; it",
    "--method wanda --pattern 2": "--pattern: '2': must be N:M, such as 2:4",
    "--method magic --sparsity 0.5": "invalid choice: 'magic'", "--method wanda": "--sparsity --pattern --keep",
    "--method wanda --keep 3": "keep = 3: has no use with wanda, which prunes single",
    "--method magnitude --sparsity 0.5 --score norm":
        "score = 'norm': has no use with magnitude, which prunes single weights; it is",
    "--method heads --pattern 2:4": "pattern = (2, 4): heads are removed as a whole",
    "--method heads --sparsity 0.25": "sparsity = 0.25: would remove none of 2 heads",
    "--method experts --keep 4": "keep = 4: there are 4 experts: must be at least 1 and fewer",
    "--method layers --keep 1 --score taylor": "score = 'taylor': must be one of influence for layers",
    "--method layers --keep 1 --calibration 0": "calibration = 0: must be a whole number, 1 or more",
    "--method wanda --sparsity 0.5 --calibration 99999": "3,199,968 tokens are too many at once; 1,000,000 is",
    "--method wanda --sparsity 0.5 --recover 0": "--recover 0: must be 1 or more",
    "--method wanda --sparsity 0.5 --output runs/half": "exists: name a different folder with --output",
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_a_method_cannot_do_is_refused(refused, options):
    assert REFUSED[options] in refused(f"prune --run runs/done --text words.txt --output new {options}")
