"""What an attacker tries, each against real sockets: the console, the control service, an agent.

A stolen cookie is only one half; a page elsewhere has neither half; a viewer has no rights; another
user of this machine reaches the port and lacks the key.
"""

import base64
import http.client
import json
import os
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import pytest
import torch
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from interlatent_live.audit.log import LOG
from interlatent_live.console import users as users_module
from interlatent_live.console.access import RateLimit
from interlatent_live.console.audit_view import AuditView
from interlatent_live.console.control_link import ControlLink
from interlatent_live.console.guard import LARGEST_BODY
from interlatent_live.console.sessions import Sessions
from interlatent_live.console.users import Users
from interlatent_live.control.wire import Role
from interlatent_live.feed.documents import Topic
from tests.support.console import TOKEN, RunningConsole
from tests.support.control_kit import HOOK, agent_of
from tests.support.control_service import ControlService
from tests.support.feeds import narration_document

torch.set_num_threads(1)
WORDS = "correct horse battery"
MARKUP = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with ControlService(tmp_path_factory.mktemp("control")) as made:
        yield made


@pytest.fixture(scope="module")
def users(tmp_path_factory):
    with pytest.MonkeyPatch.context() as cheap:
        # A full hash takes seconds on a busy machine.
        cheap.setattr(users_module, "_LOG_N", 8)
        return some_users(Users(tmp_path_factory.mktemp("users")))


def some_users(made):
    made.add("vera", Role.VIEWER, WORDS)
    made.add("olga", Role.OPERATOR, WORDS)
    return made


@pytest.fixture(scope="module")
def console(service, users, tmp_path_factory):
    folder = tmp_path_factory.mktemp("console")
    link = ControlLink(service.settings.endpoints.control_requests, service.key)
    sessions = Sessions(folder, TOKEN, users)
    audit = AuditView(service.audit)
    with RunningConsole(folder, control=link, sessions=sessions, audit=audit) as made:
        yield made


@pytest.fixture(scope="module")
def agent(service, console, tmp_path_factory):
    made = agent_of(service, tmp_path_factory.mktemp("agent"), lease_s=2.0)
    with httpx.Client(base_url=console.url) as http:
        shown(http, made)
    yield made
    made.close()


def shown(http, agent):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for one in http.get("/api/v1/control").json()["agents"]:
            if one["boot_id"] == agent.tap.boot_id and one["state"] is not None:
                return one
        time.sleep(0.05)
    raise AssertionError("the agent is not shown")


class Page(httpx.Client):
    """A logged-in page of the console."""

    def __init__(self, console, **login):
        super().__init__(base_url=console.url, timeout=20)
        self.headers["Origin"] = console.url
        self.login = login

    def __enter__(self):
        super().__enter__()
        answer = self.post("/api/v1/session", json=self.login)
        assert answer.status_code == 200, answer.text
        self.who = answer.json()
        self.headers["X-CSRF-Token"] = self.who["csrf"]
        self.set_cookie = answer.headers["set-cookie"]
        return self

    def command(self, **body):
        return self.post("/api/v1/control/agents/walker/commands", json=body)


@pytest.fixture
def operator(console):
    with Page(console, name="olga", password=WORDS) as page:
        yield page


def running(console, agent):
    with httpx.Client(base_url=console.url) as http:
        return shown(http, agent)["state"]["mode"] == "running"


# --------------------------------------------------------------------------------- who may command


def test_the_cookie_is_closed_to_scripts_and_to_other_sites(operator):
    assert "HttpOnly" in operator.set_cookie
    assert "samesite=strict" in operator.set_cookie.lower()
    assert "Path=/" in operator.set_cookie


def test_an_operator_commands_and_the_audit_names_them(operator, console, agent, service):
    word = uuid.uuid4().hex
    assert operator.command(operation="revert", reason=word).json()["accepted"]
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        lines = (service.audit / LOG).read_text().splitlines()
        rows = [json.loads(line) for line in lines if word in line]
        if rows:
            break
        time.sleep(0.05)
    assert (rows[0]["body"]["actor"], rows[0]["body"]["role"]) == ("olga", "operator")


@pytest.mark.parametrize("operation", ["stop", "hold", "revert", "resume"])
def test_a_viewer_commands_nothing(console, agent, operation):
    with Page(console, name="vera", password=WORDS) as page:
        answer = page.command(operation=operation)
        assert (answer.status_code, answer.json()["why"]) == (403, "role")
        answer = page.post("/api/v1/control/lease", json={"agent": "walker"})
        assert answer.status_code == 403
        answer = page.post("/api/v1/control/commands/x/second")
        assert answer.status_code == 403
        correction = {"claim_id": "c", "kind": "accept", "person": "olga"}
        assert page.post("/api/v1/corrections", json=correction).status_code == 403
    assert running(console, agent)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer " + "u" * 43},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic " + base64.b64encode(b"olga:" + WORDS.encode()).decode()},
        {"Cookie": "interlatent=" + "A" * 43},
        {"Cookie": "interlatent=" + "A" * 8000},
        {"Cookie": "interlatent="},
    ],
    ids=["none", "forged", "empty", "basic", "forged-cookie", "long-cookie", "empty-cookie"],
)
def test_without_a_token_or_with_a_forged_one_nothing_happens(console, agent, headers):
    with httpx.Client(base_url=console.url, headers=headers) as http:
        for path in ("agents/walker/commands", "commands/x/second", "lease"):
            body = {"operation": "stop"} if "agents" in path else {"agent": "walker"}
            answer = http.post(f"/api/v1/control/{path}", json=body)
            assert (answer.status_code, answer.json()["why"]) == (401, "login")
    assert running(console, agent)


def test_a_stolen_cookie_is_one_half_only(console, operator, agent):
    """Another server on this machine gets the cookie from the browser; it has no port."""
    stolen = {"Cookie": f"interlatent={operator.cookies['interlatent']}"}
    with httpx.Client(base_url=console.url, headers=stolen) as thief:
        answer = thief.get("/api/v1/session")
        assert answer.json()["csrf"] is None
        assert operator.who["csrf"] not in answer.text
        for headers in (
            {},
            {"Origin": console.url},
            {"Origin": console.url, "X-CSRF-Token": "x"},
            {"Origin": console.url, "X-CSRF-Token": operator.cookies["interlatent"]},
        ):
            answer = thief.post(
                "/api/v1/control/agents/walker/commands",
                json={"operation": "stop"}, headers=headers,
            )  # fmt: skip
            assert answer.status_code == 403
            assert answer.json()["why"] in {"csrf", "origin"}
            assert thief.delete("/api/v1/session", headers=headers).status_code == 403
    with Page(console, name="olga", password=WORDS) as other:
        answer = operator.post(
            "/api/v1/control/agents/walker/commands", json={"operation": "stop"},
            headers={"X-CSRF-Token": other.who["csrf"]},
        )  # fmt: skip
        assert (answer.status_code, answer.json()["why"]) == (403, "csrf")
    assert running(console, agent)


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "http://127.0.0.1:1",
        "https://{host}",
        "http://{host}.evil.example",
    ],
)
def test_a_page_elsewhere_commands_nothing_even_with_both_halves(console, operator, agent, origin):
    origin = origin.format(host=console.address)
    answer = operator.post(
        "/api/v1/control/agents/walker/commands", json={"operation": "stop"},
        headers={"Origin": origin},
    )  # fmt: skip
    assert answer.status_code == 403
    token = {"Authorization": f"Bearer {TOKEN}", "Origin": origin}
    answer = httpx.post(
        f"{console.url}/api/v1/control/agents/walker/commands", json={"operation": "stop"},
        headers=token,
    )  # fmt: skip
    assert answer.status_code == 403
    assert running(console, agent)


def test_a_form_of_another_site_is_no_command(console, operator, agent):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = operator.post(
            "/api/v1/control/agents/walker/commands", content=b'{"operation": "stop"}',
            headers={"Content-Type": kind},
        )  # fmt: skip
        assert answer.status_code == 422
    assert running(console, agent)


@pytest.mark.parametrize("path", ["control/ws", "feed/ws", "live?run_id=r&hook_point=h"])
@pytest.mark.parametrize("origin", ["http://evil.example", "null"])
def test_a_socket_of_another_origin_is_not_opened(console, path, origin):
    url = console.url.replace("http", "ws", 1) + f"/api/v1/{path}"
    with pytest.raises(InvalidStatus, match="403"), connect(url, origin=origin):
        pass
    with connect(url, origin=console.url):
        pass


def test_a_session_that_ended_commands_nothing(console, agent):
    with Page(console, name="olga", password=WORDS) as page:
        cookie = page.cookies["interlatent"]
        assert page.delete("/api/v1/session").status_code == 204
        page.cookies.set("interlatent", cookie)
        answer = page.command(operation="stop")
        assert (answer.status_code, answer.json()["why"]) == (401, "login")


# ----------------------------------------------------------------------------- what is in a request


def test_a_replayed_command_has_one_effect(console, operator, agent, service):
    with httpx.Client(base_url=console.url) as http:
        seen = shown(http, agent)
    body = {
        "operation": "intervene", "command_id": uuid.uuid4().hex, "ttl_s": 20, "lease": "page",
        "boot_id": seen["boot_id"], "base_version": seen["state"]["version"],
        "changes": [{"hook_point": HOOK, "feature": 1, "kind": "steer", "value": 0.5}],
    }  # fmt: skip
    first = operator.command(**body).json()
    assert first["accepted"], first
    assert operator.command(operation="revert").json()["accepted"]
    # Recorded and sent again, by the same person and by another.
    again = operator.command(**body).json()
    assert again == first
    with Page(console, token=TOKEN) as admin:
        assert not admin.command(**body).json()["accepted"]
    with httpx.Client(base_url=console.url) as http:
        assert shown(http, agent)["state"]["active"] == []
    lines = (service.audit / LOG).read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == "permitted"]
    assert sum(row["body"]["command_id"] == body["command_id"] for row in rows) == 1


@pytest.mark.parametrize("path", ["session", "control/lease", "control/agents/walker/commands"])
def test_an_oversize_body_is_refused_before_it_is_read(console, path):
    for headers in ({"Content-Length": str(2**40)}, {"Transfer-Encoding": "chunked"}):
        connection = http.client.HTTPConnection(console.address, timeout=10)
        connection.putrequest("POST", f"/api/v1/{path}")
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        if "Transfer-Encoding" in headers:
            block = b"1000\r\n" + b" " * 0x1000 + b"\r\n"
            try:
                for _ in range(LARGEST_BODY // 0x1000 + 2):
                    connection.send(block)
            except OSError:
                pass  # refused while we were sending
        with connection.getresponse() as answer:
            assert answer.status == 413
        connection.close()


@pytest.mark.parametrize("depth", [1000])
def test_a_body_that_is_nested_deeply_is_one_sentence(console, operator, depth):
    answer = operator.post(
        "/api/v1/control/agents/walker/commands", content=b"[" * depth + b"]" * depth,
        headers={"Content-Type": "application/json"},
    )  # fmt: skip
    assert answer.status_code in {400, 422}
    assert answer.headers["content-type"] == "application/json"


def test_markup_in_texts_stays_text(console, operator, agent):
    """Whatever an agent, a metric, a claim or a person is called, no answer is a page."""
    console.broadcast.publish(Topic.NARRATION, 9, narration_document(MARKUP))
    reason = operator.command(operation="revert", reason=MARKUP)
    assert reason.status_code == 200
    answers = [
        operator.get("/api/v1/control"),
        operator.get("/api/v1/control/audit"),
        operator.get(f"/api/v1/runs/{MARKUP}"),
        operator.get("/api/v1/claims", params={"run_id": MARKUP}),
        operator.get("/api/v1/feed", params={"topics": MARKUP}),
        operator.post(f"/api/v1/control/agents/{MARKUP}/commands", json={"operation": "stop"}),
        operator.post("/api/v1/session", json={"name": MARKUP, "password": MARKUP}),
    ]
    for answer in answers:
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    page = operator.get("/")
    policy = page.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe-inline" not in policy


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/recordings/../../../etc/passwd",
        "/api/v1/recordings/..%2f..%2f..%2fetc%2fpasswd",
        "/api/v1/recordings/%2e%2e/%2e%2e/etc/passwd",
        "/api/v1/recordings//etc/passwd",
        "/assets/../../../etc/passwd",
        "/assets/..%2f..%2fconsole.token",
        "/..%5c..%5cconsole.token",
        "/%00/etc/passwd",
        "/api/v1/control/comparison/..%2f..%2fconsole.token",
        "/api/v1/agents/..%2f..%2fconsole.token/picture",
    ],
)
def test_no_path_leads_out_of_what_is_served(console, path):
    connection = http.client.HTTPConnection(console.address, timeout=10)
    connection.putrequest("GET", path, skip_host=False)  # sent as it is, not normalised
    connection.endheaders()
    with connection.getresponse() as answer:
        body = answer.read()
    assert answer.status in {404, 400, 422}
    assert b"root:" not in body
    assert TOKEN.encode() not in body
    connection.close()


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:28480", ""]
)
@pytest.mark.parametrize("path", ["control", "control/audit", "session", "health"])
def test_a_name_that_was_rebound_to_this_machine_reads_nothing(console, host, path):
    connection = http.client.HTTPConnection(console.address, timeout=10)
    connection.putrequest("GET", f"/api/v1/{path}", skip_host=True)
    if host:
        connection.putheader("Host", host)
    connection.endheaders()
    with connection.getresponse() as answer:
        assert b"walker" not in answer.read()
    assert answer.status in {421, 400}
    connection.close()


def test_commands_are_limited_and_stops_never(console, agent):
    def statuses(operation, page, many):
        def ask(_):
            return page.command(operation=operation, lease="none").status_code

        with ThreadPoolExecutor(12) as crowd:
            return list(crowd.map(ask, range(many)))

    with Page(console, token=TOKEN) as page:
        assert 429 in statuses("release", page, 100)
        assert set(statuses("revert", page, 30)) == {200}


def test_rate_limits_keep_no_more_keys_than_they_may():
    limit = RateLimit(1.0, 1)
    for number in range(5000):
        limit.take(str(number))
    assert len(limit._buckets) <= 1024


# ------------------------------------------------------------------------------- behind the console

STRANGER = """
import os, sys
from interlatent_live.control.client import ControlClient
from interlatent_live.control.commands import Operation
from interlatent_live.control.wire import Role, control_key
from interlatent_live.errors import UserError

endpoint, folder, user = sys.argv[1:]
if user:
    # Another user, who may have no right to read this checkout: all is imported by now.
    os.setgroups([])
    os.setgid(int(user))
    os.setuid(int(user))
try:
    open(folder + "/console.token").read()
    print("READ THE TOKEN")
except OSError:
    print("no token")
for key in (b"guess", control_key("guess")):
    with ControlClient(endpoint, key, actor="eve", role=Role.ADMIN, timeout_s=1.0) as client:
        for ask in (client.look, lambda: client.command(Operation.STOP, "walker", reason="eve")):
            try:
                ask()
                print("HEARD")
            except UserError as error:
                print("not heard")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_of_this_machine_is_not_heard_at_the_control_port(console, agent, service):
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, service.settings.endpoints.control_requests,
         str(service.settings.console.state), "65534"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["no token", *["not heard"] * 4], done.stderr
    assert running(console, agent)
    assert '"eve"' not in (service.audit / LOG).read_text()


def test_a_process_without_the_key_is_not_heard(console, agent, service, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, service.settings.endpoints.control_requests,
         str(tmp_path / "nowhere"), ""],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["no token", *["not heard"] * 4], done.stderr
    assert running(console, agent)
