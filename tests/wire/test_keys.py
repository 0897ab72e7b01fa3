from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from interlatent_live.cli.keys import app
from interlatent_live.errors import UserError
from interlatent_live.wire.keys import (
    Certificate,
    ClientKeys,
    KeyDirectory,
    KeyRing,
    KeyRole,
    ServerKeys,
    read_private,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def keys(tmp_path):
    return KeyDirectory(tmp_path / "keys")


def mode(path):
    return path.stat().st_mode & 0o777


def test_secrets_are_for_their_owner_only(keys):
    key = keys.create("lander", KeyRole.AGENT)
    assert mode(keys.path) == 0o700
    assert mode(keys.path / "lander.key") == 0o600
    assert key.secret not in repr(key)
    assert key.secret not in (keys.path / "lander.pub").read_text()
    assert keys.private("lander") == key
    assert keys.certificates() == (key.certificate,)


def test_a_secret_that_others_can_read_is_not_used(keys):
    keys.create("lander", KeyRole.AGENT)
    (keys.path / "lander.key").chmod(0o640)
    with pytest.raises(UserError, match="chmod 600"):
        keys.private("lander")


def test_a_ring_knows_who_may_come_in(keys):
    good = keys.create("a", KeyRole.AGENT, days=10, now=NOW).certificate
    forever = keys.create("b", KeyRole.VIEWER, days=None, now=NOW).certificate
    gone = keys.create("c", KeyRole.AGENT, now=NOW).certificate
    keys.revoke("c", now=NOW)
    ring, problems = keys.ring()
    assert problems == ()
    assert ring.check(good.public, NOW).certificate == good
    assert ring.check(good.public, NOW + timedelta(days=10)).reason == "expired"
    assert ring.check(forever.public, NOW + timedelta(days=9999)).certificate == forever
    assert ring.check(gone.public, NOW).reason == "revoked"
    assert ring.check("x" * 40, NOW).reason == "unknown"
    assert ring.allows(good.user_id, NOW)
    assert not ring.allows(gone.user_id, NOW)
    assert not ring.allows("agent/a/0000000000000000", NOW)


def test_rotation_lets_both_keys_in_for_a_while(keys):
    old = keys.create("a", KeyRole.AGENT, now=NOW).certificate
    new = keys.rotate("a", grace=timedelta(hours=2), now=NOW).certificate
    assert new.public != old.public
    assert keys.private("a").certificate == new
    ring, _ = keys.ring()
    for certificate in (old, new):
        assert ring.check(certificate.public, NOW + timedelta(hours=1)).certificate is not None
    later = NOW + timedelta(hours=2)
    assert ring.check(old.public, later).reason == "expired"
    assert ring.check(new.public, later).certificate == new
    keys.revoke("a")
    ring, _ = keys.ring()
    assert {ring.check(c.public, NOW).reason for c in (old, new)} == {"revoked"}


def test_a_revoked_key_stays_out_when_its_certificate_is_put_back(keys):
    certificate = keys.create("a", KeyRole.AGENT).certificate
    text = (keys.path / "a.pub").read_text()
    keys.revoke("a")
    (keys.path / "copy.pub").write_text(text)
    ring, _ = keys.ring()
    assert ring.check(certificate.public, NOW).reason == "revoked"


def test_unreadable_files_let_nobody_in(keys):
    certificate = keys.create("a", KeyRole.AGENT).certificate
    (keys.path / "broken.pub").write_text("name = 3")
    (keys.path / "binary.pub").write_bytes(b"\xff\x00")
    ring, problems = keys.ring()
    assert len(problems) == 2
    assert ring.check(certificate.public, certificate.created).certificate == certificate
    (keys.path / "revoked.toml").write_text("[[revoked]]\nname = 'a'\n")
    ring, problems = keys.ring()
    assert len(problems) == 3
    assert ring.check(certificate.public, certificate.created).reason == "unknown"


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "x" * 65, "a~previous"])
def test_names_stay_file_names(keys, name):
    with pytest.raises(UserError, match="cannot name a key"):
        keys.create(name, KeyRole.AGENT)


def test_sentences_for_what_is_absent(keys, tmp_path):
    keys.create("a", KeyRole.AGENT)
    with pytest.raises(UserError, match="has no key 'b'; it has: a"):
        keys.certificate("b")
    with pytest.raises(UserError, match="already"):
        keys.create("a", KeyRole.AGENT)
    with pytest.raises(UserError, match="there is no key file"):
        read_private(tmp_path / "none.key")
    (tmp_path / "pub.key").write_text((keys.path / "a.pub").read_text())
    (tmp_path / "pub.key").chmod(0o600)
    with pytest.raises(UserError, match=r"not the \.pub file"):
        read_private(tmp_path / "pub.key")


def test_halves_that_do_not_belong_together(keys):
    keys.create("a", KeyRole.AGENT)
    other = keys.create("b", KeyRole.AGENT)
    path = keys.path / "a.key"
    secret = keys.private("a").secret
    path.write_text(path.read_text().replace(secret, other.secret))
    with pytest.raises(UserError, match="do not belong together"):
        keys.private("a")


def test_a_client_needs_a_services_certificate(keys):
    keys.create("service", KeyRole.SERVICE)
    keys.create("a", KeyRole.AGENT)
    client = ClientKeys.load(keys.path / "a.key", keys.path / "service.pub")
    server = ServerKeys.load(keys.path)
    assert client.server == server.public
    assert server.client().server == server.public
    assert client.secret.decode() not in repr(client)
    assert server.secret.decode() not in repr(server)
    with pytest.raises(UserError, match="not of a service"):
        ClientKeys.load(keys.path / "a.key", keys.path / "a.pub")


def test_a_server_needs_one_service_key(keys):
    keys.create("a", KeyRole.AGENT)
    with pytest.raises(UserError, match="no service key"):
        ServerKeys.load(keys.path)
    with pytest.raises(UserError, match="role agent"):
        ServerKeys.load(keys.path, "a")
    keys.create("one", KeyRole.SERVICE)
    keys.create("two", KeyRole.SERVICE)
    with pytest.raises(UserError, match="one, two; name one"):
        ServerKeys.load(keys.path)
    assert ServerKeys.load(keys.path, "two").name == "two"


def test_user_ids_name_role_name_and_key():
    certificate = Certificate("a.b", KeyRole.AGENT, "x" * 40, NOW)
    role, name, fingerprint = certificate.user_id.split("/")
    assert (role, name, len(fingerprint)) == ("agent", "a.b", 16)
    assert KeyRing([certificate]).check("x" * 40, NOW).user_id == certificate.user_id


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_line_goes_through_a_keys_life(tmp_path):
    folder = tmp_path / "keys"
    assert run("new", "service", "--role", "service", "--dir", folder).exit_code == 0
    made = run("new", "lander", "--dir", folder)
    assert made.exit_code == 0
    assert "lander.key" in made.output
    secret = read_private(folder / "lander.key").secret
    assert secret not in made.output
    shown = run("show", "lander", "--dir", folder)
    assert read_private(folder / "lander.key").certificate.public in shown.output
    assert secret not in shown.output
    assert "valid" in run("list", "--dir", folder).output
    assert run("rotate", "lander", "--dir", folder).exit_code == 0
    assert read_private(folder / "lander.key").secret != secret
    assert run("revoke", "lander", "--dir", folder).output.count("revoked") == 2
    assert "revoked" in run("list", "--dir", folder).output


def test_the_command_line_says_what_is_wrong(tmp_path):
    missing = run("list", "--dir", tmp_path / "none")
    assert isinstance(missing.exception, UserError)
    assert "keys new" in str(missing.exception)
    wrong = run("new", "a", "--role", "king", "--dir", tmp_path / "keys")
    assert isinstance(wrong.exception, UserError)
    assert "agent, service or viewer" in str(wrong.exception)
