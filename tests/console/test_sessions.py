"""Sessions: two halves, their end, restarts, one-time codes, and limits."""

import asyncio
import stat

import pytest

from interlatent_live.console import sessions as module
from interlatent_live.console import users as users_module
from interlatent_live.console.access import Access, DeniedError, RateLimit
from interlatent_live.console.session_routes import Login, LoginDesk
from interlatent_live.console.sessions import (
    CODE_LASTS_S,
    LASTS_S,
    Sessions,
    matches,
    one_time_code,
)
from interlatent_live.console.users import Users
from interlatent_live.control.wire import Role
from interlatent_live.errors import UserError

TOKEN = "t" * 43
WORDS = "correct horse battery"


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    """A full hash takes seconds on a busy machine."""
    monkeypatch.setattr(users_module, "_LOG_N", 8)


class Clock:
    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def users(tmp_path):
    made = Users(tmp_path)
    made.add("ada", Role.OPERATOR, WORDS)
    return made


@pytest.fixture
def sessions(tmp_path, users, clock):
    return Sessions(tmp_path, TOKEN, users, clock)


def test_the_token_makes_an_admin_and_a_password_a_user(sessions):
    admin = sessions.by_token(TOKEN).session
    assert (admin.role, admin.actor.endswith("(token)")) == (Role.ADMIN, True)
    ada = sessions.by_password("ada", WORDS)
    assert (ada.session.actor, ada.session.role) == ("ada", Role.OPERATOR)
    assert sessions.find(ada.cookie) == ada.session
    assert matches(ada.session, ada.csrf)
    assert not matches(ada.session, ada.cookie)
    assert not matches(ada.session, "")
    assert sessions.by_token("u" * 43) is None
    assert sessions.by_password("ada", "another password") is None
    for wrong in ("", "x", ada.session.id, ada.csrf):
        assert sessions.find(wrong) is None


def test_neither_half_is_on_the_disk_and_a_restart_logs_nobody_out(
    tmp_path, users, sessions, clock
):
    begun = sessions.by_password("ada", WORDS)
    file = tmp_path / "sessions.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert begun.cookie not in file.read_text()
    assert begun.csrf not in file.read_text()
    again = Sessions(tmp_path, TOKEN, users, clock)
    assert again.find(begun.cookie) == begun.session
    again.end(begun.session)
    assert again.find(begun.cookie) is None
    assert Sessions(tmp_path, TOKEN, users, clock).find(begun.cookie) is None


def test_what_ends_a_session(tmp_path, users, sessions, clock):
    first = sessions.by_password("ada", WORDS)
    users.set_password("ada", WORDS * 2)
    assert sessions.find(first.cookie) is None
    second = sessions.by_password("ada", WORDS * 2)
    users.remove("ada")
    assert sessions.find(second.cookie) is None
    third = sessions.by_token(TOKEN)
    assert Sessions(tmp_path, "another token", users, clock).find(third.cookie) is None
    clock.now += LASTS_S
    assert sessions.find(third.cookie) is None


def test_there_are_only_so_many(sessions, monkeypatch):
    monkeypatch.setattr(module, "MOST_SESSIONS", 3)
    oldest = sessions.by_token(TOKEN)
    for _ in range(3):
        newest = sessions.by_token(TOKEN)
    assert sessions.find(oldest.cookie) is None
    assert sessions.find(newest.cookie) is not None


def test_a_code_is_good_once_for_a_while_and_only_made_with_the_token(
    tmp_path, users, sessions, clock
):
    code = one_time_code(TOKEN, clock.now)
    assert sessions.by_token(code).session.role is Role.ADMIN
    assert sessions.by_token(code) is None
    # Nor after a restart.
    assert Sessions(tmp_path, TOKEN, users, clock).by_token(code) is None
    assert sessions.by_token(one_time_code("another token", clock.now)) is None
    late = one_time_code(TOKEN, clock.now)
    until, _, rest = late.partition(".")
    assert sessions.by_token(f"{int(until) + 60}.{rest}") is None
    clock.now += CODE_LASTS_S
    assert sessions.by_token(late) is None
    for nonsense in ("..", "1.2.3", "x" * 10_000, "ä.ö", "9" * 400 + ".a.b"):
        assert sessions.by_token(nonsense) is None


def test_a_file_that_is_none_is_refused(tmp_path, users):
    file = tmp_path / "sessions.json"
    file.write_text('{"open": [{"id": 1}], "used": {}}')
    file.chmod(0o600)
    with pytest.raises(UserError, match="no file of sessions"):
        Sessions(tmp_path, TOKEN, users)
    file.chmod(0o644)
    with pytest.raises(UserError, match="readable by nobody else"):
        Sessions(tmp_path, TOKEN, users)


def test_guessing_a_password_is_slowed_and_the_token_never_locked_out(sessions, clock):
    desk = LoginDesk(Access(TOKEN, sessions), clock)

    async def attempts():
        said = []
        for _ in range(7):
            try:
                await desk.login(Login(name="ada", password=WORDS[1:]))
            except DeniedError as error:
                said.append((error.status, error.why))
        right = None
        try:
            await desk.login(Login(name="ada", password=WORDS))
        except DeniedError as error:
            right = error
        return said, right, await desk.login(Login(token=TOKEN))

    said, right, admin = asyncio.run(attempts())
    assert said == [(401, "login")] * 5 + [(429, "rate")] * 2
    assert right.status == 429
    assert int(right.headers["Retry-After"]) >= 1
    assert admin.session.role is Role.ADMIN


def test_a_rate_limit_fills_again():
    clock = Clock()
    limit = RateLimit(2.0, 3, clock)
    assert [limit.take("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert limit.take("b") == 0.0
    clock.now += 0.5
    assert limit.take("a") == 0.0
    assert limit.take("a") > 0
    clock.now += 1000
    assert [limit.take("a") == 0.0 for _ in range(4)] == [True, True, True, False]
