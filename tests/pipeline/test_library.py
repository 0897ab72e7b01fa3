import shutil

import numpy as np
import pytest
import torch

from interlatent_live.encoding.cpu import CpuBackend
from interlatent_live.encoding.prepared import PreparedEncoders
from interlatent_live.errors import CorruptFileError, UserError
from interlatent_live.pipeline.library import FolderLibrary, FolderWatch, LibraryEncode
from interlatent_live.stream import Activations
from interlatent_live.transcoders.encoding import encode_activations
from interlatent_live.transcoders.native import JSON_FILE, TENSORS_FILE, Provenance, save_transcoder
from tests.support.system import D_IN, HOOK, POLICY, transcoder

KEY = (POLICY, HOOK)


def save(path, seed, version=1, **changes):
    one = transcoder(seed)
    values = {"policy_hash": POLICY, "hook_point": HOOK, "version": version} | changes
    save_transcoder(path, one, Provenance(**values))
    return one.identity


def settled(watch, serving):
    """Look until a change has settled."""
    assert watch.look(serving) is None
    assert watch.settling
    return watch.look(serving)


def damage(path):
    tensors = path / TENSORS_FILE
    raw = bytearray(tensors.read_bytes())
    raw[-1] ^= 1
    tensors.write_bytes(raw)


def test_earlier_folders_win_and_an_unreadable_one_gives_way(tmp_path):
    first = save(tmp_path / "mine" / "v1", 1)
    save(tmp_path / "theirs" / "v2", 2, version=2)
    library = FolderLibrary([tmp_path / "mine", tmp_path / "theirs"])
    assert library.find(*KEY).identity == first
    assert library.policies() == {POLICY: (HOOK,)}
    assert library.find(POLICY, "elsewhere") is None
    second = save(tmp_path / "mine" / "v2", 3, version=2)
    damage(tmp_path / "mine" / "v2")
    library = FolderLibrary([tmp_path / "mine"])
    assert library.find(*KEY).identity == first
    library.reject(first)
    with pytest.raises(CorruptFileError, match="safetensors"):
        library.find(*KEY)
    assert second != first


def test_a_new_version_is_read_once_it_has_settled_and_then_adopted(tmp_path):
    old = save(tmp_path / "v1", 1)
    watch, library = FolderWatch([tmp_path]), FolderLibrary([tmp_path])
    serving = {KEY: library.find(*KEY).identity}
    assert watch.look(serving) is None
    assert not watch.settling
    new = save(tmp_path / "v2", 2, version=2)
    scan = settled(watch, serving)
    assert [held.identity for held in scan.loaded.values()] == [new]
    assert scan.refused == ()
    assert library.find(*KEY).identity == old
    library.adopt(scan)
    assert library.find(*KEY) is scan.loaded[KEY]
    assert watch.look({KEY: new}) is None
    # Rolled back by taking it away.
    shutil.rmtree(tmp_path / "v2")
    assert settled(watch, {KEY: new}).loaded[KEY].identity == old


def test_an_agent_that_came_between_two_looks_is_not_forgotten(tmp_path):
    old = save(tmp_path / "v1", 1)
    watch = FolderWatch([tmp_path])
    new = save(tmp_path / "v2", 2, version=2)
    assert settled(watch, {}).loaded == {}
    assert watch.look({KEY: old}).loaded[KEY].identity == new
    assert watch.look({KEY: old}) is None
    assert watch.look({KEY: new}) is None


@pytest.mark.parametrize("what", ["tensors", "description", "identity", "truncated"])
def test_a_corrupt_version_is_one_sentence_once_and_the_old_goes_on(tmp_path, what):
    old = save(tmp_path / "v1", 1)
    watch = FolderWatch([tmp_path])
    new = save(tmp_path / "v2", 2, version=2)
    description = tmp_path / "v2" / JSON_FILE
    if what == "tensors":
        damage(tmp_path / "v2")
    elif what == "description":
        description.write_text("{")
    elif what == "truncated":
        (tmp_path / "v2" / TENSORS_FILE).unlink()
    else:
        description.write_text(
            description.read_text().replace(new, old.replace("a", "b")[:-1] + "0")
        )
    scan = settled(watch, {KEY: old})
    assert scan.loaded == {}
    (sentence,) = scan.refused
    assert str(tmp_path / "v2") in sentence
    assert [entry.identity for entry in scan.entries[KEY]] == [old]
    assert watch.look({KEY: old}) is None
    # Other changes don't repeat it, and saving it again repairs it.
    save(tmp_path / "other", 3, hook_point="other")
    assert settled(watch, {KEY: old}).refused == ()
    save(tmp_path / "v2", 2, version=2)
    assert settled(watch, {KEY: old}).loaded[KEY].identity == new


def test_a_folder_that_vanishes_keeps_what_it_held(tmp_path):
    folder = tmp_path / "folder"
    old = save(folder / "v1", 1)
    watch = FolderWatch([folder])
    folder.rename(tmp_path / "away")
    scan = settled(watch, {KEY: old})
    assert "is no directory" in scan.refused[0]
    assert [entry.identity for entry in scan.entries[KEY]] == [old]


def test_encodes_with_prepared_weights_and_refuses_strangers(tmp_path):
    save(tmp_path / "v1", 1)
    held = FolderLibrary([tmp_path]).find(*KEY)
    prepared = PreparedEncoders(CpuBackend(), limit_bytes=1 << 20)
    encode = LibraryEncode(prepared)
    x = torch.randn(7, D_IN, generator=torch.Generator().manual_seed(0)).numpy()
    seen = Activations(x, x, np.arange(7, dtype=np.uint16))
    codes, alone = encode(held, seen), encode_activations(held.transcoder, seen)
    for name in ("indptr", "index", "value"):
        np.testing.assert_array_equal(getattr(codes, name), getattr(alone, name))
    assert len(prepared) == 1
    with pytest.raises(UserError, match="did not come from a library"):
        encode(held.transcoder, seen)
