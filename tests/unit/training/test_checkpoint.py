"""A checkpoint holds the whole run, is whole or refused, and is never lost to a write that fails."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minimoe
from minimoe.config import ModelConfig, TrainConfig
from minimoe.training import checkpoint, corpus, data, loop

CONFIG = ModelConfig(vocab_size=32, d_model=8, n_layers=1, n_heads=2, d_hidden=4, n_experts=3, top_k=2, max_sequence=6,
                     capacity_factor=1.25, drop_order="random", z_coef=0.1)
TRAINING = TrainConfig(batch=2, sequence=6, eval_every=1, eval_batches=1, record_every=2, warmup_steps=2,
                       learning_rate=0.01)

FILL_THE_DISK = """
import resource, sys
from minimoe.training import checkpoint
state = checkpoint.load(sys.argv[1])
state.step += 1
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    checkpoint.save(sys.argv[1], state)
except checkpoint.CheckpointError as error:
    print(error)
"""


def state_after(steps=3):
    """A run with two domains and a history of every kind."""
    texts = corpus.clusters(length=100)
    text = data.build({"é": texts["cluster 0"] + texts["cluster 1"], "b": texts["cluster 2"] + texts["cluster 3"]}, 6)
    state = loop.new_state(CONFIG, dataclasses.replace(TRAINING, n_steps=max(steps, 1)), text)
    return loop.train(state, text) if steps else state


def content(state):
    """Everything in a state, in a form that == compares bit for bit."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    groups = dict(enumerate((fields.pop("params"), *fields.pop("moments"), fields.pop("history"))))
    arrays = {(group, name): np.asarray(array) for group, tree in groups.items() for name, array in tree.items()}
    rng = fields.pop("rng").bit_generator.state
    return fields, rng, {key: (array.dtype, array.shape, array.tobytes()) for key, array in arrays.items()}


def saved(folder, state=None):
    path = folder / "run" / "checkpoint.npz"
    checkpoint.save(path, state or state_after())
    return path


def rewrite(path, header=None, **changed):
    """Put other arrays, or other header fields, into a checkpoint; None takes one out."""
    with np.load(path) as file:
        arrays = dict(file)
    fields = json.loads(arrays["header"].tobytes()) | (header or {})
    arrays["header"] = np.frombuffer(json.dumps(fields).encode(), np.uint8)
    np.savez(path, **{name: array for name, array in (arrays | changed).items() if array is not None})


def refusal_of(path):
    with pytest.raises(checkpoint.CheckpointError) as caught:
        checkpoint.load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def fail_with(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))
    return fail


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path):
    state = state_after()
    assert content(checkpoint.load(saved(tmp_path, state))) == content(state)


def test_a_run_before_its_first_step_is_saved_and_loaded(tmp_path):
    state = state_after(0)
    assert content(checkpoint.load(saved(tmp_path, state))) == content(state)


def test_random_draws_go_on_as_if_nothing_had_happened(tmp_path):
    state = state_after()
    state.rng.integers(0, 9, 3, dtype=np.uint32)  # the generator makes 64 bits, so half a number is left over
    loaded = checkpoint.load(saved(tmp_path, state))
    for draw in (lambda rng: rng.integers(0, 9, 3, dtype=np.uint32), lambda rng: rng.normal(size=5)):
        np.testing.assert_array_equal(draw(loaded.rng), draw(state.rng))


def test_what_was_loaded_is_saved_as_the_same_bytes(tmp_path):
    path = saved(tmp_path)
    before = path.read_bytes()
    checkpoint.save(path, checkpoint.load(path))
    assert path.read_bytes() == before


def test_a_state_is_finished_after_its_last_step():
    state = state_after(3)
    assert [dataclasses.replace(state, step=step).finished for step in (0, 2, 3)] == [False, False, True]


def test_a_missing_checkpoint_is_refused(tmp_path):
    assert refusal_of(tmp_path / "none.npz") == f"there is no checkpoint {tmp_path / 'none.npz'}"


def test_a_folder_is_refused(tmp_path):
    assert refusal_of(tmp_path) == f"the checkpoint {tmp_path} cannot be read: Is a directory"


@pytest.mark.parametrize("content", [b"", b"just some text\n", b"{}", b"PK\3\4 not really"])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "file.npz"
    path.write_bytes(content)
    assert "is not a whole checkpoint, but truncated, damaged or another file" in refusal_of(path)


def test_other_arrays_are_refused(tmp_path):
    path = tmp_path / "file.npz"
    np.savez(path, a=np.arange(3))
    assert "another file" in refusal_of(path)


def test_another_format_is_refused(tmp_path):
    path = saved(tmp_path)
    rewrite(path, {"format": "something else"})
    assert refusal_of(path) == f"{path} is not a minimoe checkpoint"


def test_another_version_is_refused(tmp_path):
    path = saved(tmp_path)
    rewrite(path, {"version": 2})
    assert refusal_of(path) == f"the checkpoint {path} has version 2; this program reads version 1"


@pytest.mark.parametrize("header, reason", [
    ({"model_config": {"n_expert": 4}}, "n_expert"),
    ({"train_config": {"lr": 4}}, "lr"),
    ({"model_config": dataclasses.asdict(CONFIG) | {"top_k": 9}}, "top_k = 9"),
    ({"model_config": dataclasses.asdict(CONFIG) | {"n_layers": 2}}, "missing .*layers.1.moe.w_up_EDF"),
    ({"model_config": dataclasses.asdict(CONFIG) | {"d_hidden": 5}}, "shape"),
    ({"rng": {"bit_generator": "PCG64"}}, "state"),
])
def test_a_header_that_does_not_fit_is_refused(tmp_path, header, reason):
    path = saved(tmp_path)
    rewrite(path, header)
    with pytest.raises(checkpoint.CheckpointError, match=f"does not fit its own configuration: .*{reason}"):
        checkpoint.load(path)


@pytest.mark.parametrize("group", ["params", "mean", "square"])
@pytest.mark.parametrize("array", [np.zeros((31, 8), np.float32), None], ids=["of another shape", "missing"])
def test_arrays_that_do_not_fit_are_refused(tmp_path, group, array):
    path = saved(tmp_path)
    rewrite(path, **{f"{group}/embed.w_VD": array})
    assert "embed.w_VD" in refusal_of(path)


def test_every_truncated_file_is_refused(tmp_path):
    path = saved(tmp_path)
    whole = path.read_bytes()
    for length in np.linspace(0, len(whole) - 1, 60, dtype=int):
        path.write_bytes(whole[:length])
        refusal_of(path)


def test_a_damaged_byte_is_found_or_has_no_effect(tmp_path):
    """The end of the file matters most: there stands the list of what is in it."""
    path = saved(tmp_path)
    whole, before = path.read_bytes(), content(checkpoint.load(path))
    for place in [*np.linspace(0, len(whole) - 1, 60, dtype=int), *range(len(whole) - 150, len(whole))]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1:])
        try:
            after = content(checkpoint.load(path))
        except checkpoint.CheckpointError:
            continue
        assert after == before, place


def test_a_pickled_object_is_refused_and_never_run(tmp_path):
    harm = tmp_path / "harm"

    class Harmful:
        def __reduce__(self):
            return Path.touch, (harm,)

    path = saved(tmp_path)
    rewrite(path, **{"params/embed.w_VD": np.array([Harmful()])})
    refusal_of(path)
    assert not harm.exists()


def test_a_folder_that_can_be_written_is_made_and_left_empty(tmp_path):
    checkpoint.check_folder(tmp_path / "a" / "b" / "checkpoint.npz")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_checking_a_folder_leaves_the_checkpoint_in_it(tmp_path):
    path = saved(tmp_path)
    before = path.read_bytes()
    checkpoint.check_folder(path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_found_before_any_work(tmp_path):
    (tmp_path / "run").write_text("not a folder")
    with pytest.raises(checkpoint.CheckpointError, match="cannot write the checkpoint .*checkpoint.npz: File exists"):
        checkpoint.check_folder(tmp_path / "run" / "checkpoint.npz")


def test_saving_makes_the_folder_and_leaves_no_other_file(tmp_path):
    path = saved(tmp_path / "new")
    assert list(path.parent.iterdir()) == [path]


def test_saving_again_puts_the_new_state_in_place_of_the_old(tmp_path):
    path, later = saved(tmp_path), state_after(4)
    checkpoint.save(path, later)
    assert content(checkpoint.load(path)) == content(later)


@pytest.mark.parametrize("module, function, number", [
    (np, "savez", errno.ENOSPC),
    (os, "fsync", errno.ENOSPC),
    (os, "fsync", errno.EIO),
    (os, "replace", errno.EROFS),
])
def test_a_write_that_fails_leaves_the_checkpoint_before_it(tmp_path, monkeypatch, module, function, number):
    path = saved(tmp_path)
    before = path.read_bytes()
    later = state_after(4)
    with monkeypatch.context() as patch, pytest.raises(checkpoint.CheckpointError) as caught:
        patch.setattr(module, function, fail_with(number))
        checkpoint.save(path, later)
    assert str(caught.value) == (f"cannot write the checkpoint {path}: {os.strerror(number)}; "
                                 "the checkpoint before it is whole")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path):
    """A limit on the size of files stands in for the disk: the system itself refuses the write in its middle."""
    path = saved(tmp_path)
    before = path.read_bytes()
    run = subprocess.run([sys.executable, "-c", FILL_THE_DISK, path], capture_output=True, text=True,
                         cwd=Path(minimoe.__file__).parents[1])
    assert run.stdout == f"cannot write the checkpoint {path}: File too large; the checkpoint before it is whole\n"
    assert run.stderr == ""
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_first_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    state = state_after()
    with monkeypatch.context() as patch, pytest.raises(checkpoint.CheckpointError) as caught:
        patch.setattr(os, "fsync", fail_with(errno.ENOSPC))
        saved(tmp_path, state)
    assert str(caught.value).endswith("No space left on device")
    assert list((tmp_path / "run").iterdir()) == []


def test_a_file_in_place_of_the_folder_is_an_error_that_says_so(tmp_path):
    (tmp_path / "run").write_text("not a folder")
    with pytest.raises(checkpoint.CheckpointError, match="cannot write the checkpoint .*checkpoint.npz: File exists"):
        saved(tmp_path)


def test_ctrl_c_in_the_middle_of_a_write_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    path = saved(tmp_path)
    before = path.read_bytes()

    def interrupt(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "fsync", interrupt)
        checkpoint.save(path, state_after(4))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_the_file_and_then_its_name_are_forced_to_disk(tmp_path, monkeypatch):
    handles, forced, fsync = [], [], os.fsync

    def noted(handle):
        handles.append(handle)
        forced.append(os.fstat(handle))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    path = saved(tmp_path)
    file, folder = forced
    assert file.st_size == path.stat().st_size and os.path.samestat(folder, path.parent.stat())
    for handle in handles:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(handle)


def test_a_system_that_does_not_open_folders_can_save(tmp_path, monkeypatch):
    state = state_after()
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail_with(errno.EACCES))
        path = saved(tmp_path, state)
    assert content(checkpoint.load(path)) == content(state)
