"""A checkpoint holds the whole run, is complete or refused, and is never lost when a write fails."""

import contextlib
import dataclasses
import errno
import json
import os
import re
import resource
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import minimoe
from minimoe.training import checkpoint
from tests import small

ROOT = Path(minimoe.__file__).parents[1]
CONFIG = dataclasses.replace(small.RANDOM_DROPS, n_layers=1, z_coef=0.1)


def state_after(n_steps):
    """A run with a history of every kind, whose generator has 32 of 64 bits left over."""
    state = small.trained(CONFIG, n_steps=n_steps) if n_steps else small.new(CONFIG)
    state.rng.integers(0, 9, 3, dtype=np.uint32)
    return dataclasses.replace(state, domains=("é", "b", "c", "d"))


OLD, NEW = state_after(3), state_after(4)


def content(state):
    """Everything in a state, in a form that == compares bit by bit."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    trees = enumerate((fields.pop("params"), *fields.pop("moments"), fields.pop("history")))
    arrays = {(i, name): np.asarray(array) for i, tree in trees for name, array in tree.items()}
    rng = fields.pop("rng").bit_generator.state
    return fields, rng, {key: (array.dtype, array.shape, array.tobytes()) for key, array in arrays.items()}


@pytest.fixture
def path(tmp_path):
    """A checkpoint in its own folder."""
    checkpoint.save(tmp_path / "run" / "checkpoint.npz", OLD)
    return tmp_path / "run" / "checkpoint.npz"


def rewrite(path, header=None, **changed):
    """Replace arrays or header fields in a checkpoint; None removes one."""
    with np.load(path) as file:
        arrays = dict(file)
    fields = json.loads(arrays["header"].tobytes()) | {"sealed": False} | (header or {})
    arrays["header"] = np.frombuffer(json.dumps(fields).encode(), np.uint8)
    np.savez(path, **{name: array for name, array in (arrays | changed).items() if array is not None})


def refusal_of(path):
    with pytest.raises(checkpoint.CheckpointError) as caught:
        checkpoint.load(path)
    return str(caught.value)


@pytest.mark.parametrize("n_steps", [0, 3])
def test_what_is_saved_is_loaded_bit_for_bit_and_saved_as_the_same_bytes(n_steps, tmp_path):
    state, path = state_after(n_steps), tmp_path / "checkpoint.npz"
    checkpoint.save(path, state)
    whole, loaded = path.read_bytes(), checkpoint.load(path)
    assert content(loaded) == content(state) and loaded.finished == (n_steps == 3)
    checkpoint.save(path, loaded)
    assert path.read_bytes() == whole
    checkpoint.save(path, loaded, compressed=True)
    assert content(checkpoint.load(path)) == content(state) and path.stat().st_size < len(whole)


def test_a_checkpoint_of_long_ago_is_loaded():
    state = checkpoint.load(ROOT / "notebooks" / "results" / "moe" / "checkpoint.npz")
    assert state.finished and len(state.history["ce"]) == state.step == state.train_config.n_steps


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "file.npz"
    assert refusal_of(path) == f"there is no checkpoint {path}"
    assert refusal_of(tmp_path) == f"the checkpoint {tmp_path} cannot be read: Is a directory"
    np.savez(path, a=np.arange(3))
    for content in (path.read_bytes(), b"", b"just some text\n", b"{}", b"PK\3\4 not really"):
        path.write_bytes(content)
        assert refusal_of(path).startswith(f"{path} is not a complete checkpoint: truncated, damaged or a different")


@pytest.mark.parametrize("header, message", [
    ({"format": "something else"}, "{} is not a minimoe checkpoint"),
    ({"version": 2}, "the checkpoint {} has version 2; this program reads version 1"),
    ({"model_config": {"n_expert": 4}}, "the checkpoint {} does not fit its own configuration: .*n_expert"),
    ({"train_config": {"lr": 4}}, ".*lr"),
    ({"model_config": dataclasses.asdict(CONFIG) | {"top_k": 9}}, ".* top_k = 9"),
    ({"model_config": dataclasses.asdict(CONFIG) | {"n_layers": 2}}, ".*missing .*layers.1.*w_"),
    ({"model_config": dataclasses.asdict(CONFIG) | {"d_hidden": 5}}, ".*shape"),
    ({"characters": "abc"}, ".* vocab_size = 32, but it knows 3 characters"),
    ({"step": 4}, ".* step = 4 of n_steps = 3"), ({"step": -1}, ".* step = -1"), ({"step": 1.0}, r".* step = 1\.0"),
    ({"rng": {"bit_generator": "PCG64"}}, ".*state")])
def test_a_header_that_does_not_fit_is_refused(path, header, message):
    rewrite(path, header)
    with pytest.raises(checkpoint.CheckpointError, match="^" + message.format(path)):
        checkpoint.load(path)


@pytest.mark.parametrize("name", ["params/embed.w_VD", "mean/embed.w_VD", "square/embed.w_VD"])
def test_arrays_that_do_not_fit_or_would_run_code_are_refused(path, tmp_path, name):
    class Harmful:
        def __reduce__(self):
            return Path.touch, (tmp_path / "harm",)

    for array, words in ((np.zeros((31, 8)), "embed.w_VD"), (None, name), (np.array([Harmful()]), "allow_pickle")):
        checkpoint.save(path, OLD)
        rewrite(path, **{name: array})
        assert words in refusal_of(path)
        assert not (tmp_path / "harm").exists()


def test_a_truncated_file_and_every_byte_that_changed_are_refused(path):
    """The end of the file matters most: it contains the directory and the seal."""
    whole = path.read_bytes()
    for place in np.linspace(0, len(whole) - 1, 20, dtype=int):
        path.write_bytes(whole[:place])
        assert re.search("is not a complete checkpoint|is damaged", refusal_of(path))
    for place in [*np.linspace(0, len(whole) - 1, 30, dtype=int), *range(len(whole) - 40, len(whole))]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:])
        refusal_of(path)
    path.write_bytes(whole + b"\0")
    refusal_of(path)


def test_a_folder_is_checked_before_any_work_and_left_as_it_is(tmp_path, path):
    checkpoint.check_folder(tmp_path / "a" / "b" / "checkpoint.npz")
    checkpoint.check_folder(path)
    assert not list((tmp_path / "a" / "b").iterdir()) and list(path.parent.iterdir()) == [path]
    for refuse in (checkpoint.check_folder, lambda below: checkpoint.save(below, OLD)):
        with pytest.raises(checkpoint.CheckpointError, match=f"cannot write the checkpoint {path}/x.npz: File exists$"):
            refuse(path / "x.npz")


@pytest.mark.parametrize("module, function, error", [
    (np, "savez", OSError(errno.ENOSPC, "No space left on device")), (os, "fsync", OSError(errno.EIO, "I/O error")),
    (os, "replace", OSError(errno.EROFS, "Read-only")), (os, "fsync", KeyboardInterrupt())], ids=str)
def test_a_write_that_fails_leaves_the_checkpoint_before_it_or_nothing(path, monkeypatch, module, function, error):
    whole, kinds = path.read_bytes(), (checkpoint.CheckpointError, KeyboardInterrupt)
    monkeypatch.setattr(module, function, mock.Mock(side_effect=error))
    for attempt, kept in ((path, "; the previous checkpoint is intact"), (path.parent / "a" / "b" / path.name, "")):
        with pytest.raises(kinds) as caught:
            checkpoint.save(attempt, NEW)
        if isinstance(error, OSError):
            assert str(caught.value) == f"cannot write the checkpoint {attempt}: {error.strerror}{kept}"
        assert list(attempt.parent.glob("checkpoint*")) == [attempt] * bool(kept)
    assert path.read_bytes() == whole


def test_a_full_disk_leaves_the_checkpoint_before_it(path):
    """A limit on the size of files stands in for the disk: the system itself refuses the write in its middle."""
    whole, (soft, hard) = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(checkpoint.CheckpointError, match="File too large; the previous checkpoint is intact$"):
            checkpoint.save(path, NEW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == whole and list(path.parent.iterdir()) == [path]


def test_the_new_takes_the_place_of_the_old_and_first_the_file_and_then_its_name_are_forced_to_disk(path, monkeypatch):
    forced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: forced.append((handle, os.fstat(handle))) or fsync(handle))
    checkpoint.save(path, NEW)
    assert content(checkpoint.load(path)) == content(NEW) and list(path.parent.iterdir()) == [path]
    (_, file), (_, folder) = forced
    assert file.st_size == path.stat().st_size and os.path.samestat(folder, path.parent.stat())
    for handle, _ in forced:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(handle)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", mock.Mock(side_effect=PermissionError))  # as where the system opens no folders
        checkpoint.save(path, OLD)
    assert content(checkpoint.load(path)) == content(OLD)


def test_two_processes_do_not_train_in_one_folder(path):
    for _ in range(2):  # what was held is let go of
        with checkpoint.only_trainer(path):
            with pytest.raises(checkpoint.CheckpointError, match="another process is training in"):
                checkpoint.only_trainer(path).__enter__()
            assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("router", "fields", "meant"), [
    ("sigmoid_bias", dict(n_groups=2, top_groups=1), dict(group_score="paper")), ("sigmoid_bias", {}, {}),
    ("gshard", {}, dict(balance_first=False)), ("softmax_topk", {}, {})])
def test_a_checkpoint_from_before_some_fields_means_what_it_meant(path, router, fields, meant):
    state = small.new(dataclasses.replace(small.BY_ROUTER[router], **fields))
    checkpoint.save(path, state)
    assert checkpoint.load(path).model_config == state.model_config
    saved = dataclasses.asdict(state.model_config)
    rewrite(path, {"model_config": {n: v for n, v in saved.items() if n not in ("group_score", "balance_first")}})
    assert checkpoint.load(path).model_config == dataclasses.replace(state.model_config, **meant)


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_is_removed_or_replaced_while_one_trains_is_no_longer_written_to(path, again):
    with checkpoint.only_trainer(path) as lock:
        path.unlink()
        path.parent.rmdir()
        with checkpoint.only_trainer(path) if again else contextlib.nullcontext():
            if again:
                checkpoint.save(path, NEW)
            with pytest.raises(checkpoint.CheckpointError, match=f"the folder {path.parent} was removed or replaced"):
                checkpoint.save(path, OLD, lock=lock)
        assert not again or content(checkpoint.load(path)) == content(NEW)


@pytest.mark.parametrize(("changed", "words"), [
    ({"params/embed.w_VD": OLD.params["embed.w_VD"] * np.nan}, "params/embed.w_VD is not finite: it contains nan"),
    ({"mean/embed.w_VD": OLD.params["embed.w_VD"] + np.inf}, "mean/embed.w_VD is not finite"),
    ({"square/embed.w_VD": OLD.params["embed.w_VD"]}, "square/embed.w_VD contains -.*: must not be negative"),
    ({"params/embed.w_VD": OLD.params["embed.w_VD"] + 0j}, "complex"),
    ({"history/ce": np.zeros(2)}, "history of 'ce' has .*3 entries"), ({"history/ce": np.zeros((3, 1))}, "'ce'"),
    ({"history/ce": np.zeros(())}, "'ce'"), ({"history/ce": np.full(3, "x")}, "'ce'"),
    ({"history/ce": np.full(3, np.nan)}, "'ce' is not finite"), ({"history/eval_step": np.array([4])}, "must increase"),
    ({"history/router_load": np.zeros((2, 1, 5))}, "'router_load' .*entries of shape .1, 4."),
    ({"history/eval_experts": np.zeros((1, 1, 9, 1))}, "'eval_experts' has dtype float64")])
def test_numbers_that_no_run_has_are_refused_by_name(path, changed, words):
    rewrite(path, **changed)
    assert re.search(words, refusal_of(path))


def test_one_without_the_seal_that_it_says_it_has_is_refused_and_one_of_before_has_none(path):
    rewrite(path)
    checkpoint.load(path)
    rewrite(path, {"sealed": True})
    assert "its bytes do not match its checksum" in refusal_of(path)
