"""``sdkit licence``: answers with their clauses, and exit codes."""

from __future__ import annotations

import pytest

import sdkit
from sdkit import Component, Licence, Registry, Term, hookimpl
from sdkit.cli import licence as command
from sdkit.cli import main
from sdkit.cli.licence import judge
from tests.toys import toy_model

CEILING = Term("revenue-ceiling", "More than a million needs another licence.", 1_000_000)
BELOW = Term("revenue-below", "From ten millions on it costs.", 10_000_000)
NO_COMMERCE = Term("non-commercial", "Not for commercial purposes.")
RESEARCH = Term("research-only", "For research only.")
UNREAD = Term("unverified", "Nobody read it.")
USES = Term("use-restrictions", "Bind your users.")


def with_terms(*terms: Term) -> Licence:
    return Licence("x", "X licence", "The summary.", "https://x.example", ("Say thanks.",), ("By somebody",), terms)


LICENCES = {
    "free": with_terms(USES),
    "ceiling": with_terms(CEILING, USES),
    "below": with_terms(BELOW),
    "nc": with_terms(NO_COMMERCE),
    "research": with_terms(RESEARCH),
    "unread": with_terms(NO_COMMERCE, UNREAD),
    "odd": with_terms(Term("only-on-sundays", "Only on Sundays.")),
    "unknown": sdkit.ModelSpec("a", "b", sdkit.LatentSpec(1, 1, (8, 8))).licence,
}
RULES = [
    ("free", True, 1e12, "yes", "The summary."),
    ("free", False, None, "yes", "The summary."),
    ("ceiling", True, 999_999, "yes", "The summary."),
    ("ceiling", True, 1_000_000, "yes", "The summary."),  # "more than"
    ("ceiling", True, 1_000_001, "no", "More than a million"),
    ("ceiling", True, None, "ask", "Say --revenue"),
    ("ceiling", False, None, "yes", "The summary."),
    ("below", True, 9_999_999, "yes", "The summary."),
    ("below", True, 10_000_000, "no", "it costs"),  # "at least"
    ("nc", True, 0, "no", "Not for commercial"),
    ("nc", False, None, "yes", "The summary."),
    ("research", True, 0, "no", "research only"),
    ("research", False, None, "ask", "research only"),
    ("unread", True, 0, "ask", "Not for commercial purposes. Nobody read it."),
    ("unread", False, None, "ask", "Nobody read it."),
    ("odd", False, None, "ask", "Only on Sundays."),
    ("unknown", True, 0, "ask", "not known"),
    ("unknown", False, None, "ask", "not known"),
]


@pytest.mark.parametrize(("name", "commercial", "revenue", "answer", "clause"), RULES)
def test_the_answer_follows_from_the_terms(
    name: str, commercial: bool, revenue: float | None, answer: str, clause: str
) -> None:
    found, reason = judge(LICENCES[name], commercial=commercial, revenue=revenue)
    assert found == answer
    assert clause in reason


class Family:
    """A model family that knows licences."""

    def licences(self) -> dict[str, Licence]:
        return LICENCES


class Plugin:
    @staticmethod
    @hookimpl
    def sdkit_components() -> list[Component]:
        return [
            Component("model", "toy", "tests.toys:toy_model", "closed forms"),
            Component("model-family", "known", "tests.test_cli_licence:Family", "knows licences"),
            Component("model-family", "missing", "tests.nowhere:Nothing", "cannot be imported"),
        ]


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Registry.of({"toys": Plugin()})
    for module in (command, __import__("sdkit.loading", fromlist=["registry"])):
        monkeypatch.setattr(module, "registry", lambda: known)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["licence", *arguments])
    captured = capsys.readouterr()
    return int(str(ended.value.code)), captured.out, captured.err


@pytest.mark.usefixtures("toys")
def test_check_answers_in_words_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "check", "--commercial", "--revenue", "2000000", "ceiling")
    assert (code, out) == (1, "no: ceiling, X licence. More than a million needs another licence.\n")
    code, out, _ = run(capsys, "check", "--commercial", "--revenue", "5", "ceiling")
    assert (code, out) == (0, "yes: ceiling, X licence. The summary.\n  duty: Say thanks.\n")
    code, out, _ = run(capsys, "check", "--commercial", "ceiling")
    assert code == 2
    assert out.startswith("ask: ceiling, ")


@pytest.mark.usefixtures("toys")
def test_of_several_all_must_allow_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "check", "--commercial", "free", "free")[0] == 0
    code, out, _ = run(capsys, "check", "--commercial", "free", "unknown")
    assert code == 2
    assert out.endswith("ask: together\n")
    assert run(capsys, "check", "--commercial", "free", "unknown", "nc")[0] == 1


@pytest.mark.usefixtures("toys")
def test_a_registered_model_is_asked_for_its_licence(capsys: pytest.CaptureFixture[str]) -> None:
    assert toy_model().spec.licence.id == "unknown"
    code, out, _ = run(capsys, "check", "toy")
    assert code == 2
    assert out.startswith("ask: toy, unknown licence. ")


@pytest.mark.usefixtures("toys")
def test_show_prints_all_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "show", "ceiling")
    assert code == 0
    for line in ("X licence (x)", "The summary.", "revenue-ceiling: More", "duty: Say thanks.", "by: By somebody"):
        assert line in out
    assert "text: https://x.example" in out


@pytest.mark.usefixtures("toys")
def test_what_does_not_exist_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (("check", "cieling"), ("show", "cieling")):
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, "")
        assert err == "Error: There is no model and no family 'cieling', and no such file; did you mean ceiling?\n"
    code, _, err = run(capsys, "show", "./nowhere.safetensors")
    assert code == 2
    assert err.startswith("Error: There is no model './nowhere.safetensors'")
    assert run(capsys, "check", "--revenue", "-1", "free")[0] == 2


@pytest.mark.usefixtures("toys")
def test_terms_are_said_once_at_the_first_load(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    from sdkit import loading

    loading._tell.cache_clear()
    for _ in range(2):
        sdkit.load("toy").close()
    said = [record.getMessage() for record in caplog.records if record.name == "sdkit"]
    assert len(said) == 1
    assert said[0].startswith("Licence: unknown licence. The terms of this model are not known")
    assert capsys.readouterr().out == ""
