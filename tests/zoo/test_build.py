"""Building an entry: what comes out, that it loads, and that a second call has nothing to do."""

import msgspec

from interlatent_live.pipeline.calibration import load_calibration
from interlatent_live.policies.files import load_policy
from interlatent_live.transcoders.dataset import ActivationDataset
from interlatent_live.transcoders.native import load_transcoder
from interlatent_live.transcoders.training.recipe import Recipe
from interlatent_live.zoo.build import TRAINED, build_entry, seeds_of
from interlatent_live.zoo.entry import FirstRound


def test_a_build_gives_the_median_seed_and_a_recording_to_propose_from(small, built):
    made, work, said = built
    policy = load_policy(small.policy)
    (folder,) = made.transcoders
    assert folder == work / "transcoders" / "cartpole" / "hidden.1"
    chosen = load_transcoder(folder, policy_hash=policy.policy_hash)
    (seeds,) = seeds_of(work)
    assert len(seeds) == small.training.seeds
    errors = sorted(one.provenance.evaluation["fvu"] for one in seeds)
    assert chosen.provenance.evaluation["fvu"] == errors[len(errors) // 2]
    (calibration,) = load_calibration(made.recording)
    assert calibration.evidence.n_units == small.calibration.episodes
    assert len(calibration.evidence) == made.rows
    assert calibration.evidence.transcoder_hash == chosen.transcoder.identity
    assert any("training 2 seeds" in text for text in said)


def test_a_second_build_gives_the_same_without_collecting_again(small, built):
    made, work, _ = built
    before = (work / "training" / "dataset.json").stat().st_mtime_ns
    identity = load_transcoder(made.transcoders[0]).transcoder.identity
    again = build_entry(small, work, work)
    assert (work / "training" / "dataset.json").stat().st_mtime_ns == before
    assert load_transcoder(again.transcoders[0]).transcoder.identity == identity


def test_with_a_first_round_the_policy_also_acts_through_it(small, tmp_path):
    first = FirstRound(episodes=12, seed=310_000, recipe=Recipe(steps=30))
    training = msgspec.structs.replace(small.training, first=first, seeds=1)
    entry = msgspec.structs.replace(small, training=training, demo=False)
    made = build_entry(entry, tmp_path, tmp_path)
    assert made.recording is None
    rows = ActivationDataset(tmp_path / "training").load("hidden.1")
    assert rows.own is not None
    assert 0 < rows.own.mean() < 1
    assert (tmp_path / TRAINED).is_dir()
