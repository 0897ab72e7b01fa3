"""The query endpoint under CURVE: those with a viewer's key or the service's are answered."""

import pytest
from typer.testing import CliRunner

from interlatent_live.cli.main import app
from interlatent_live.errors import UserError
from interlatent_live.queries import StatisticsClient
from interlatent_live.wire.keys import ClientKeys, KeyDirectory, KeyRole, ServerKeys
from tests.support.correlator_service import CorrelatorProcess


def test_strangers_and_agents_are_refused_and_viewers_answered(tmp_path):
    keys, others = KeyDirectory(tmp_path / "keys"), KeyDirectory(tmp_path / "others")
    keys.create("service", KeyRole.SERVICE)
    for directory, name, role in (
        (keys, "eve", KeyRole.VIEWER),
        (keys, "walker", KeyRole.AGENT),
        (others, "stranger", KeyRole.VIEWER),
    ):
        directory.create(name, role)
    server = ServerKeys.load(keys.path).public

    def client(directory, name):
        private = directory.private(name)
        public = private.certificate.public.encode()
        return ClientKeys(name, public, private.secret.encode(), server)

    with CorrelatorProcess(**{"security.keys": str(keys.path)}) as one:
        endpoint = one.settings.endpoints.correlator_queries
        with StatisticsClient(endpoint, keys=client(keys, "eve")) as ask:
            assert ask.runs().matched == 0
        for directory, name in ((others, "stranger"), (keys, "walker")):
            with (
                StatisticsClient(endpoint, keys=client(directory, name), timeout_s=0.5) as ask,
                pytest.raises(UserError, match="no correlator answered"),
            ):
                ask.runs()
        with (
            StatisticsClient(endpoint, timeout_s=0.5) as ask,
            pytest.raises(UserError, match="no correlator answered"),
        ):
            ask.runs()
        said = CliRunner().invoke(
            app,
            ["query", "runs", "--json", "-s", f"endpoints.correlator_queries={endpoint}",
             "-s", f"security.keys={keys.path}"],
        )  # fmt: skip
        assert said.exit_code == 0, said.output
        assert '"matched": 0' in said.output
