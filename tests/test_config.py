from __future__ import annotations

import json
import socket
import string
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from interlatent_live.config import (
    CONFIG_VARIABLE,
    Buffer,
    BufferBudget,
    EndpointSettings,
    ServiceName,
    Settings,
    describe,
    human_bytes,
    is_loopback,
    leaves,
    load_settings,
    on_free_ports,
    parse_flag,
    resolve,
    split_address,
    variable,
)
from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

EVERY = dict(leaves(Settings()))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        file = tmp_path / "interlatent.toml"
        file.write_text(text, encoding="utf-8")
        return file

    return write


def test_without_anything_the_defaults_hold_and_say_so() -> None:
    resolved = resolve(environment={CONFIG_VARIABLE: ""})
    assert resolved.settings == Settings()
    assert set(resolved.origin) == set(EVERY)
    assert set(resolved.origin.values()) == {"default"}
    assert resolved.file is None


def test_everything_listens_on_this_machine_by_default_and_no_port_is_used_twice() -> None:
    endpoints = dict(Settings().endpoints)
    assert len(set(endpoints.values())) == len(endpoints)
    assert all("127.0.0.1:" in value for value in endpoints.values())


def test_flags_beat_the_environment_which_beats_the_file(write: Callable[[str], Path]) -> None:
    file = write('[encoder]\ndevice = "cpu"\nthreads = 2\nbatch_rows = 64\n')
    environment = {"INTERLATENT_ENCODER__THREADS": "3", "INTERLATENT_ENCODER__BATCH_ROWS": "128"}
    resolved = resolve(file, {"encoder.batch_rows": 256, "encoder.device": None}, environment)
    encoder = resolved.settings.encoder
    assert (encoder.device, encoder.threads, encoder.batch_rows) == ("cpu", 3, 256)
    assert resolved.origin["encoder.device"] == str(file)
    assert resolved.origin["encoder.threads"] == "INTERLATENT_ENCODER__THREADS"
    assert resolved.origin["encoder.batch_rows"] == "flag"
    assert resolved.origin["encoder.batch_delay_ms"] == "default"


def test_the_file_is_found_beside_the_user_or_by_variable(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write("[encoder]\nthreads = 2\n")
    monkeypatch.chdir(file.parent)
    assert load_settings(environment={}).encoder.threads == 2
    assert load_settings(environment={CONFIG_VARIABLE: ""}).encoder.threads == 1
    named = resolve(environment={CONFIG_VARIABLE: str(file)})
    assert named.file == file
    with pytest.raises(UserError, match=r"no configuration file elsewhere\.toml"):
        load_settings(Path("elsewhere.toml"), environment={})


def test_paths_in_a_file_are_relative_to_it_and_elsewhere_to_the_user(
    write: Callable[[str], Path],
) -> None:
    file = write('[encoder]\ntranscoders = ["mine", "/abs"]\n[security]\nkeys = "keys"\n')
    settings = load_settings(file, environment={})
    assert settings.encoder.transcoders == (file.parent / "mine", Path("/abs"))
    assert settings.security.keys == file.parent / "keys"
    flagged = load_settings(file, {"encoder.transcoders": ["here"]}, {})
    assert flagged.encoder.transcoders == (Path("here"),)


@pytest.mark.parametrize(
    ("text", "values"),
    [("a,b", ("a", "b")), (" a ", ("a",)), ("", ()), ('["a,b"]', ("a,b",))],
)
def test_several_values_in_one_variable(text: str, values: tuple[str, ...]) -> None:
    settings = load_settings(
        environment={"INTERLATENT_ENCODER__TRANSCODERS": text, CONFIG_VARIABLE: ""}
    )
    assert settings.encoder.transcoders == tuple(map(Path, values))


def refusal(environment: dict[str, str] | None = None, **flags: Any) -> str:
    named = {name.replace("__", "."): value for name, value in flags.items()}
    with pytest.raises(UserError) as refused:
        resolve(flags=named, environment={CONFIG_VARIABLE: "", **(environment or {})})
    sentence = str(refused.value)
    assert "\n" not in sentence
    return sentence


def test_an_unknown_key_is_named_with_its_source_and_its_neighbour(
    write: Callable[[str], Path],
) -> None:
    assert (
        refusal({"INTERLATENT_ENCODER__DEVISE": "cpu"})
        == "INTERLATENT_ENCODER__DEVISE: there is no setting encoder.devise; "
        "did you mean encoder.device?"
    )
    file = write("[encoder]\nqqqq = 1\n")
    with pytest.raises(UserError, match=r"interlatent\.toml: there is no setting encoder\.qqqq"):
        load_settings(file, environment={})
    file = write("threads = 1\n")
    with pytest.raises(UserError, match="there is no setting threads"):
        load_settings(file, environment={})


def test_another_products_variable_with_our_prefix_is_left_alone() -> None:
    environment = {"INTERLATENT_API_KEY": "x", "INTERLATENT_SOMETHING": "y", CONFIG_VARIABLE: ""}
    assert load_settings(environment=environment) == Settings()


def test_a_wrong_value_is_named_with_its_source_and_what_would_be_right() -> None:
    assert refusal({"INTERLATENT_ENCODER__DEVICE": "tpu"}) == (
        "encoder.device is 'tpu' (INTERLATENT_ENCODER__DEVICE): must be auto, cpu, cuda or cuda:N"
    )
    assert refusal(encoder__threads=0).startswith("encoder.threads is 0 (flag): ")
    assert "http://HOST:PORT" in refusal(explainer__base_url="localhost:8000")
    assert "tcp://HOST:PORT or ipc:///PATH" in refusal(endpoints__agents="127.0.0.1:1")
    assert "HOST:PORT" in refusal(endpoints__encoder_health="http://127.0.0.1:1")
    assert "no list" in refusal({"INTERLATENT_CORRELATOR__SLIDING": "[1"})
    assert "encoder is 3" in refusal(encoder=3) or "no setting encoder" in refusal(encoder=3)
    assert refusal(encoder__threads="x", encoder__batch_rows=-1).count("(flag)") == 2


@pytest.mark.parametrize("text", ["[encoder", "= 3", "\x00", "encoder = 3"])
def test_a_broken_file_is_refused_in_one_sentence(write: Callable[[str], Path], text: str) -> None:
    file = write(text)
    with pytest.raises(UserError, match=r"interlatent\.toml"):
        load_settings(file, environment={})
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not a TOML file"):
        load_settings(file, environment={})


def test_beyond_this_machine_needs_keys(tmp_path: Path) -> None:
    sentence = refusal(endpoints__agents="tcp://0.0.0.0:28410")
    assert "endpoints.agents (tcp://0.0.0.0:28410) is open to other machines" in sentence
    assert "security.keys" in sentence
    settings = load_settings(
        flags={"endpoints.agents": "tcp://0.0.0.0:28410", "security.keys": str(tmp_path)},
        environment={CONFIG_VARIABLE: ""},
    )
    assert settings.endpoints.agents == "tcp://0.0.0.0:28410"


def test_health_beyond_this_machine_is_a_choice_of_its_own(tmp_path: Path) -> None:
    flags = {"endpoints.encoder_health": "0.0.0.0:1", "security.keys": str(tmp_path)}
    with pytest.raises(UserError, match=r"has no login: .* security\.remote_health"):
        load_settings(flags=flags, environment={CONFIG_VARIABLE: ""})
    chosen = load_settings(
        flags={**flags, "security.remote_health": True}, environment={CONFIG_VARIABLE: ""}
    )
    assert chosen.endpoints.encoder_health == "0.0.0.0:1"


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),  # noqa: S104 - a text to be judged
        ("*", False),
        ("192.168.0.1", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_what_counts_as_this_machine(host: str, is_ours: bool) -> None:
    assert is_loopback(host) is is_ours


@given(st.sampled_from(["127.0.0.1", "localhost", "host-1.lan", "*"]), st.integers(0, 65_535))
def test_addresses_round_trip(host: str, port: int) -> None:
    assert split_address(f"{host}:{port}") == (host, port)


@given(st.text(alphabet=string.printable))
def test_no_text_breaks_the_parsing_of_addresses(text: str) -> None:
    host, port = split_address(text)
    assert (host == "") == (port == -1)
    assert split_address("[::1]:8") == ("::1", 8)
    assert split_address("::1:8") == ("", -1)


NUMBERS = st.floats(0.01, 1e6, allow_nan=False)


@given(
    threads=st.integers(1, 512),
    delay=st.floats(0, 1000),
    half_lives=st.lists(NUMBERS, max_size=4),
    model=st.text(alphabet=string.ascii_letters + "/-.:", min_size=5),
    level=st.sampled_from(["debug", "info", "warning", "error"]),
    folders=st.lists(st.text(alphabet=string.ascii_letters + ", []\"'", min_size=1), max_size=3),
)
def test_a_child_resolves_to_the_very_same_settings(
    threads: int,
    delay: float,
    half_lives: list[float],
    model: str,
    level: str,
    folders: list[str],
) -> None:
    settings = load_settings(
        flags={
            "encoder.threads": threads,
            "encoder.batch_delay_ms": delay,
            "encoder.transcoders": ["/x/" + name for name in folders],
            "correlator.half_lives": half_lives,
            "explainer.model": model,
            "explainer.base_url": "http://127.0.0.1:8000/v1",
            "logging.level": level,
        },
        environment={CONFIG_VARIABLE: ""},
    )
    assert load_settings(environment=settings.environment()) == settings


def test_a_child_is_not_led_astray_by_a_file(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write("[encoder]\nthreads = 7\n").parent)
    assert load_settings(environment=Settings().environment()).encoder.threads == 1


def test_settings_are_frozen() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.encoder.threads = 2
    with pytest.raises(ValidationError, match="frozen"):
        settings.encoder = settings.encoder


def test_the_defaults_ignore_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERLATENT_ENCODER__THREADS", "9")
    assert Settings().encoder.threads == 1
    assert load_settings().encoder.threads == 9


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("encoder.threads=2", 2),
        ("encoder.device=cpu", "cpu"),
        ("security.remote_health=true", True),
        ('encoder.transcoders=["a"]', ["a"]),
        ("explainer.base_url=http://h:1/v1?a=b", "http://h:1/v1?a=b"),
        ("explainer.model=", ""),
    ],
)
def test_flags_are_toml_values_or_plain_text(text: str, value: object) -> None:
    assert parse_flag(text)[1] == value


@pytest.mark.parametrize("text", ["encoder.threads", "=3", ""])
def test_a_flag_without_name_or_value_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="NAME=VALUE"):
        parse_flag(text)


def test_free_ports_are_free_and_distinct() -> None:
    endpoints = on_free_ports(Settings()).endpoints
    ports = [int(value.rpartition(":")[2]) for _, value in endpoints]
    assert len(set(ports)) == len(ports)
    for port in ports:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
    assert endpoints.health("encoder").startswith("127.0.0.1:")
    assert set(endpoints.feeds()) < {value for _, value in endpoints}


def test_every_setting_is_documented() -> None:
    documented = dict(describe())
    assert set(EVERY) < set(documented)
    sections = [name for name in documented if "." not in name]
    assert all(documented[name] for name in sections)


def test_variables_are_named_after_settings() -> None:
    assert variable("encoder.batch_rows") == "INTERLATENT_ENCODER__BATCH_ROWS"
    assert json.loads(Settings().environment()["INTERLATENT_CORRELATOR__SLIDING"]) == [16_384]


def test_the_sum_of_the_buffers_is_computed_from_the_settings() -> None:
    settings = load_settings(
        flags={"limits.agents": 3, "limits.agent_bytes": 2048, "limits.consumers": 2},
        environment={CONFIG_VARIABLE: ""},
    )
    limits, budget = settings.limits, settings.buffers("encoder")
    assert budget.total == (
        3 * 2048 + 2 * limits.consumer_bytes + limits.message_bytes + limits.feed_bytes
    )
    assert "2 KiB × 3" in str(budget)
    assert all(settings.buffers(name).total > 0 for name in get_args(ServiceName))


def test_bytes_in_words() -> None:
    assert [human_bytes(n) for n in (1, 1024, 1536, 5 << 20, 1 << 42)] == [
        "1 B",
        "1 KiB",
        "1.5 KiB",
        "5 MiB",
        "4 TiB",
    ]
    assert str(BufferBudget((Buffer("a", 1024, 2),))) == "2 KiB at most (a 1 KiB × 2)"


def test_the_address_of_every_endpoint_is_checked() -> None:
    for name in EndpointSettings.model_fields:
        assert f"endpoints.{name}" in refusal(None, **{f"endpoints__{name}": "nonsense"})
