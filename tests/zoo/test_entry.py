"""Every entry is what its file says, and a file that is no entry is refused."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest

from interlatent_live.environments.disturbance import disturbed
from interlatent_live.environments.metric_packs import FAMILIES, StepMetrics, metric_pack_for
from interlatent_live.errors import CorruptFileError, UserError
from interlatent_live.policies.files import load_policy
from interlatent_live.probes.targets import TERMINATED, parse_target
from interlatent_live.transcoders.acting import acting_policy
from interlatent_live.transcoders.native import load_transcoder
from interlatent_live.zoo.entry import ENTRIES, entries, find_entry, read_entry
from interlatent_live.zoo.judge import later_episodes

EVERY = pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.name)


@EVERY
def test_an_entry_fits_its_policy_and_its_metrics(entry):
    loaded = load_policy(entry.policy)
    assert loaded.environment == entry.environment
    assert loaded.provenance.licence
    assert loaded.provenance.source
    known = loaded.module.spec.hook_points()
    for hook in (*entry.hook_points, *entry.training.also_collect):
        assert set(hook.split("..")) <= set(known)
    assert entry.environment in FAMILIES
    names = {spec.name for spec in metric_pack_for(entry.environment).specs}
    for question in entry.questions:
        assert parse_target(question.target).metric in names | {TERMINATED}


@EVERY
def test_an_entry_acts_in_its_environment(entry):
    if not entry.installed:
        pytest.skip(f"{entry.name} needs the extra {entry.extra}, which is not installed")
    policy = acting_policy(entry.policy, environment=entry.environment)
    env = disturbed(gymnasium.make(entry.environment), entry.disturbance)
    measure = StepMetrics(metric_pack_for(entry.environment), policy.output_kind)
    obs, _ = env.reset(seed=entry.live.seed)
    for t in range(3):
        batch = np.asarray(obs)[None]
        outputs = policy.outputs(batch)
        actions = policy.actions(outputs)
        assert env.action_space.contains(actions[0])
        rows = measure.rows(batch, np.array([t]), actions, np.zeros(1), outputs.numpy())
        assert rows.shape == (1, len(measure.specs))
        obs, *_ = env.step(actions[0])
    env.close()


@EVERY
def test_no_two_sets_of_episodes_of_an_entry_share_a_seed(entry):
    sets = [entry.training, entry.calibration, entry.evaluation, later_episodes(entry)]
    if entry.training.first is not None:
        sets.append(entry.training.first)
    if entry.precursors is not None:
        sets.append(entry.precursors)
        names = {spec.name for spec in metric_pack_for(entry.environment).specs}
        assert {*entry.precursors.metrics, entry.precursors.danger} <= names
    seeds = [set(range(one.seed, one.seed + one.episodes)) for one in sets]
    seeds.append(set(range(entry.live.seed, entry.live.seed + 1000)))
    assert sum(len(one) for one in seeds) == len(set().union(*seeds))


@EVERY
def test_shipped_transcoders_belong_to_the_policy(entry):
    policy = load_policy(entry.policy)
    for hook, folder in entry.shipped.items():
        loaded = load_transcoder(folder, policy_hash=policy.policy_hash, hook_point=hook)
        assert loaded.transcoder.config.n_features == entry.training.n_features
        assert loaded.transcoder.config.k == entry.training.k


def test_the_demo_finds_its_entries_by_environment():
    assert find_entry("CartPole-v1").name == "cartpole"
    assert find_entry("LunarLander-v3").name == "lunarlander"
    assert find_entry("lunarlander-dqn").policy == "lunarlander-dqn"
    for environment in ("CartPole-v1", "LunarLander-v3"):
        assert find_entry(environment).recording.exists()


def test_an_unknown_entry_is_refused_with_those_there_are():
    with pytest.raises(UserError, match="no entry 'acrobot'; it has cartpole"):
        find_entry("acrobot")


def test_a_misspelt_key_and_a_wrong_name_are_refused(tmp_path):
    text = (ENTRIES / "cartpole.toml").read_text(encoding="utf-8")
    file = tmp_path / "cartpole.toml"
    file.write_text(text.replace("n_features", "n_feature"), encoding="utf-8")
    with pytest.raises(CorruptFileError, match="n_feature"):
        read_entry(file)
    other = tmp_path / "other.toml"
    other.write_text(text, encoding="utf-8")
    with pytest.raises(CorruptFileError, match="calls its entry 'cartpole'"):
        read_entry(other)


def test_reading_the_zoo_does_not_import_torch():
    code = "import sys, interlatent_live.zoo.entry as z; z.entries(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
