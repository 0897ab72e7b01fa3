"""Control under CURVE keys: agent, service and operator as they run, and who is not heard."""

import time

import pytest
import torch

from interlatent_live.agent.attach import attach
from interlatent_live.agent.control import ControlOptions
from interlatent_live.control.client import ControlClient
from interlatent_live.control.commands import Operation
from interlatent_live.control.machine import Mode
from interlatent_live.control.wire import Role
from interlatent_live.errors import UserError
from interlatent_live.wire.keys import ClientKeys, KeyDirectory, KeyRole, ServerKeys
from tests.support.control_kit import HOOK, METRICS, SteppingAgent, loaded, steer
from tests.support.control_service import ControlService

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def service(folder):
    directory = KeyDirectory(folder / "keys")
    directory.create("services", KeyRole.SERVICE)
    for name in ("walker", "runner"):
        directory.create(name, KeyRole.AGENT)
    with ControlService(folder / "state", **{"security.keys": str(folder / "keys")}) as made:
        yield made


def keys_of(folder, name):
    return ClientKeys.load(folder / "keys" / f"{name}.key", folder / "keys" / "services.pub")


def agent_with(keys, folder, service):
    """Named walker, whatever key it holds."""

    def open_tap(policy):
        options = ControlOptions(
            endpoint=service.settings.endpoints.control, safe_action=torch.zeros(1, 2),
            transcoders={HOOK: loaded(policy)}, max_norm={HOOK: 5.0}, state=folder, lease_s=1.0,
        )  # fmt: skip
        return attach(
            policy, [HOOK], METRICS, endpoint=None, agent="walker", env_count=1,
            autoreset="disabled", control=options, strict=True, keys=keys,
        )  # fmt: skip

    return SteppingAgent(open_tap)


def operator(folder, service, keys=None, **more):
    return ControlClient(
        service.settings.endpoints.control_requests, None, actor="ada", role=Role.OPERATOR,
        keys=keys or ServerKeys.load(folder / "keys").client(), **more,
    )  # fmt: skip


def until(condition, timeout_s=15.0):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("not in time")


def test_an_agent_with_its_key_is_steered_stopped_and_resumed(tmp_path, folder, service):
    agent = agent_with(keys_of(folder, "walker"), tmp_path, service)
    try:
        with operator(folder, service) as client:

            def seen(condition=lambda one: True):
                return next(
                    (
                        one
                        for one in client.look(follow=True).agents
                        if one.hello.boot_id == agent.tap.boot_id
                        and one.state is not None
                        and condition(one.state)
                    ),
                    None,
                )

            shown = until(seen)
            assert client.renew("walker").accepted
            change = steer(policy=agent.policy)
            result = client.command(
                Operation.INTERVENE, shown, reason="to see", ttl_s=5.0, changes=(change,)
            )
            assert result.accepted, result.reason
            until(lambda: seen(lambda state: any(one.applied_steps for one in state.active)))
            assert client.command(Operation.STOP, "walker", reason="enough").accepted
            until(lambda: seen(lambda state: state.mode is Mode.STOPPED and state.obeyed))
            stopped = time.monotonic()
            time.sleep(0.2)
            assert agent.moved_at < stopped
            shown = until(lambda: seen(lambda state: state.obeyed))
            assert client.command(Operation.RESUME, shown, reason="go on").accepted
            until(lambda: agent.moved_at > stopped)
    finally:
        agent.close()


def test_a_key_of_another_agent_does_not_speak_for_this_one(tmp_path, folder, service):
    agent = agent_with(keys_of(folder, "runner"), tmp_path, service)
    try:
        with operator(folder, service) as client:
            for _ in range(10):
                boots = [one.hello.boot_id for one in client.look().agents]
                assert agent.tap.boot_id not in boots
                time.sleep(0.1)
    finally:
        agent.close()


def test_strangers_and_agents_command_nothing(tmp_path, folder, service):
    stranger = KeyDirectory(tmp_path / "elsewhere")
    stranger.create("services", KeyRole.SERVICE)
    unknown = ClientKeys.load(
        tmp_path / "elsewhere" / "services.key", folder / "keys" / "services.pub"
    )
    for keys in (unknown, keys_of(folder, "walker")):
        with (
            operator(folder, service, keys, timeout_s=1.0) as client,
            pytest.raises(UserError, match="control service"),
        ):
            client.look()
