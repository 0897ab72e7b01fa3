import pytest
from typer.testing import CliRunner

from interlatent_live.alerts.rulefile import parse_rules
from interlatent_live.cli.main import app
from interlatent_live.errors import UserError

GOOD = """
[[rule]]
name = "fvu_high"
when = ["fvu > 0.1 clear 0.08"]
for_s = 5
keep_s = 10
severity = "critical"
labels = { team = "robots" }

[[rule]]
name = "leaning"
agent = "walker"
when = [
  "metric:lean > 1",
  "r:3:lean > 0.5",
]

[[rule]]
name = "odd"
predicate = "`density:3` > 0.4 and (not lean > 5 deg or `fvu` > 0.1)"
clear = "`density:3` < 0.3"
"""


def test_rules_are_read():
    first, second, third = parse_rules(GOOD, "rules.toml")
    assert first.rule.for_s == 5
    assert first.rule.labels == {"team": "robots"}
    assert first.rule.conditions[0].clear == 0.08
    assert (second.agent, second.hook_point) == ("walker", "")
    assert [one.name for one in second.rule.conditions] == ["metric:lean", "r:3:lean"]
    assert set(third.rule.names) == {"density:3", "metric:lean", "fvu"}


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ('"metric:lean > 1"', '"metric:lean ~ 1"', 14, "is not a condition"),
        ('"r:3:lean > 0.5"', '"r:lean > 0.5"', 15, "no value 'r:lean'"),
        ("for_s = 5", "for_s = true", 5, "wrong kind"),
        ("for_s = 5", "four_s = 5", 5, "a rule has no 'four_s'"),
        ("for_s = 5", "for_s = -5", 2, "durations must be"),
        ('name = "leaning"', 'name = "fvu_high"', 11, "two rules"),
        ('name = "leaning"', "", 10, "has no name"),
        ("(not lean", "(nor lean", 20, "wrong at character 28"),
        ("lean > 5 deg", "mean(lean, 5) > 1", 20, "looks back"),
        ("`density:3` <", "`density:x` <", 21, "no value 'density:x'"),
        ("predicate =", "summary =", 18, "no when and no predicate"),
        ("clear 0.08", "clear 0.2", 4, "firing side"),
        ('[[rule]]\nname = "fvu', 'x = 1\n[[rule]]\nname = "fvu', 2, "there is no 'x'"),
    ],
)
def test_mistakes_are_named_with_their_line(old, new, line, words):
    assert old in GOOD
    with pytest.raises(UserError, match=rf"rules\.toml:{line}: .*{words}"):
        parse_rules(GOOD.replace(old, new, 1), "rules.toml")


def test_broken_toml_is_named_with_its_place():
    with pytest.raises(UserError, match="line 2, column"):
        parse_rules('[[rule]]\nname = "x\n', "rules.toml")


def test_the_command_checks_a_file(tmp_path):
    file = tmp_path / "rules.toml"
    file.write_text(GOOD)
    result = CliRunner().invoke(app, ["alerts", "check", str(file)])
    assert result.exit_code == 0
    assert "3 rules" in result.stdout
    assert "until `density:3` < 0.3" in result.stdout
    file.write_text(GOOD.partition('\n[[rule]]\nname = "odd"')[0])
    prometheus = CliRunner().invoke(app, ["alerts", "check", str(file), "--prometheus"])
    assert "alert: fvu_high" in prometheus.stdout
    file.write_text(GOOD.replace("for_s", "four_s", 1))
    failed = CliRunner().invoke(app, ["alerts", "check", str(file)])
    assert isinstance(failed.exception, UserError)
