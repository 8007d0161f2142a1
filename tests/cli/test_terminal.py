"""What commands show: sizes and times in words, tables that fit, bars and colours on terminals only, names made harmless."""

from __future__ import annotations

import argparse
import io
import sys

import pytest

from lmlite.cli import terminal
from lmlite.cli.terminal import Bar, binary_size, choose, confirm, cut, decimal_size, duration, escaped, style, table
from tests.cli.conftest import Terminal


def on_terminal(monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8") -> Terminal:
    """Both outputs are one terminal. No fixture: pytest puts its own in place when a test begins."""
    shown = Terminal(encoding)
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return shown


# ---- words -----------------------------------------------------------------------------------------------------------


def test_sizes_are_told_with_two_decimals_in_the_unit_that_fits() -> None:
    assert decimal_size(0) == "0 B"
    assert decimal_size(999) == "999 B"
    assert decimal_size(1000) == "1.00 KB"
    assert decimal_size(4_368_439_296) == "4.37 GB"
    assert decimal_size(999_999_999) == "1.00 GB"
    assert binary_size(4_368_439_296) == "4.07 GiB"
    assert binary_size(1023) == "1023 B"


def test_durations_have_their_two_largest_units() -> None:
    told = {0: "0s", 45: "45s", 60: "1m", 61: "1m 1s", 3599: "59m", 3600: "1h", 3900: "1h 5m", 90_061: "1d 1h", -3: "0s"}
    assert {seconds: duration(seconds) for seconds in told} == told


def test_names_from_outside_cannot_break_lines_or_reach_the_terminal() -> None:
    assert escaped("a\nb\x1b[31mc\x9bd\u202ee") == "a\\nb\\x1b[31mc\\x9bd\\u202ee"
    assert escaped("bad\udcff") == "bad\\udcff"
    assert escaped("grün 🦙") == "grün 🦙"


def test_cut_text_ends_in_an_ellipsis_and_counts_wide_characters_twice() -> None:
    assert cut("falcon", 6) == "falcon"
    assert cut("falcons", 6) == "falco…"
    assert cut("猫猫猫", 5) == "猫猫…"


# ---- tables ----------------------------------------------------------------------------------------------------------


def test_columns_stand_below_each_other_without_trailing_blanks() -> None:
    shown = table(("NAME", "SIZE", ""), [("falcon", "4 GB", ("✓ LOADED", "green")), ("猫", "1 GB", "")])
    assert shown == "NAME     SIZE\nfalcon   4 GB   ✓ LOADED\n猫       1 GB"


def test_narrow_terminal_gets_less_room_between_columns_first() -> None:
    rows = [("falcon", "4 GB", "x")]
    assert table(("NAME", "SIZE", "C"), rows, limit=15).split("\n")[1] == "falcon  4 GB  x"
    assert table(("NAME", "SIZE", "C"), rows, limit=13).split("\n")[1] == "falcon 4 GB x"


def test_narrow_terminal_cuts_the_widest_column_and_the_first_one_last() -> None:
    head, rows = ("NAME", "MODEL", "SIZE"), [("a-rather-long-name", "a-model-with-a-long-name", "4 GB")]
    assert table(head, rows, limit=40).split("\n")[1] == "a-rather-long-name a-model-with-a-… 4 GB"
    assert table(head, rows, limit=28).split("\n")[1] == "a-rather-long-name a-model… 4 GB"  # which wraps


def test_columns_are_never_cut_to_nothing() -> None:
    assert "abcdefghijkl abcdefg…" in table(("A", "B"), [("abcdefghijkl", "abcdefghijkl")], limit=3)


# ---- colours ---------------------------------------------------------------------------------------------------------


def test_colours_are_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    on_terminal(monkeypatch)
    assert style("yes", "green", "bold") == "\x1b[32;1myes\x1b[0m"
    assert style("yes", "green", stream=io.StringIO()) == "yes"
    monkeypatch.setenv("NO_COLOR", "1")
    assert style("yes", "green") == "yes"
    monkeypatch.setenv("NO_COLOR", "")
    assert style("yes", "green") != "yes"
    monkeypatch.setenv("TERM", "dumb")
    assert style("yes", "green") == "yes"


def test_what_the_encoding_cannot_tell_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = on_terminal(monkeypatch, "ascii")
    terminal.put("✓ LOADED")
    assert screen.text == "\\u2713 LOADED\n"


@pytest.mark.parametrize(
    ("flags", "levels"),
    [
        ({}, ["info", "warn"]),
        ({"quiet": True}, []),
        ({"verbose": True}, ["debug", "info", "warn"]),
        ({"log_level": "warn"}, ["warn"]),
        ({"log_level": "none"}, []),
        ({"log_level": "warning"}, ["warn"]),
        ({"log_level": None, "quiet": None}, ["info", "warn"]),
    ],
)
def test_flags_choose_which_messages_are_said(
    flags: dict[str, object], levels: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = argparse.Namespace(**{"quiet": False, "verbose": False, "log_level": "info", **flags})
    for level in ("debug", "info", "warn"):
        terminal.say(arguments, level, level)
    out, err = capsys.readouterr()
    assert (out, err.split()) == ("", levels)


# ---- progress --------------------------------------------------------------------------------------------------------


def test_bar_is_drawn_over_itself_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = on_terminal(monkeypatch)
    with Bar(200.0, "falcon", clock=lambda: 0.0) as bar:
        bar.update(50.0, "12 MB/s")
        assert screen.text == f"\rfalcon [{'█' * 7}{'░' * 23}]  25% 12 MB/s\x1b[K"
    assert screen.text.endswith("\r\x1b[K")


def test_bar_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = on_terminal(monkeypatch)
    with Bar(1.0, "x" * 70) as bar:
        bar.update(0.5, "a note that has no room")
    drawn = screen.text.split("\x1b[K")[0].lstrip("\r")
    assert len(drawn) == 79
    assert drawn.endswith("…")


def test_bar_of_unknown_length_shows_its_note(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = on_terminal(monkeypatch)
    with Bar(None, "falcon") as bar:
        bar.update(5.0, "5 MB")
    assert screen.text.startswith("\rfalcon 5 MB\x1b[K")


def test_bar_is_redrawn_ten_times_a_second_at_most_and_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = on_terminal(monkeypatch)
    times = iter((1.0, 1.05, 1.06))
    with Bar(10.0, "f", clock=lambda: next(times)) as bar:
        for done in (1.0, 2.0, 10.0):
            bar.update(done)
    assert ("10%" in screen.text, "20%" in screen.text, "100%" in screen.text) == (True, False, True)


def test_no_bar_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar(10.0, "falcon") as bar:
        bar.update(5.0)
    assert capsys.readouterr() == ("", "")


def test_bar_is_ascii_where_the_encoding_is(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = on_terminal(monkeypatch, "ascii")
    with Bar(1.0, "falcon") as bar:
        bar.update(0.5)
    assert f"[{'#' * 15}{'.' * 15}]" in screen.text


# ---- questions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("typed", "index"), [("2\n", 1), ("9\nx\n1\n", 0), ("\n", None), ("", None)])
def test_choice_is_asked_for_until_it_is_one(
    typed: str, index: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    assert choose("Which model?", ["a", "b"]) == index
    out, err = capsys.readouterr()
    assert out == ""
    assert "  1. a\n  2. b\nWhich model? [1-2, empty: none]" in err


@pytest.mark.parametrize(("typed", "answer"), [("y\n", True), ("\n", True), ("Yes\n", True), ("n\n", False), ("", False)])
def test_end_of_input_is_no_consent(typed: str, answer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    assert confirm("Download?") is answer
