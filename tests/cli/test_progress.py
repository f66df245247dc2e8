"""What a running job looks like."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from scarcity_ray.cli.progress import JsonLines, LiveLine, PlainLines, watcher
from scarcity_ray.federation.training_round import TrainingProgress
from scarcity_ray.workloads.records import RoundRecord

RECORD = RoundRecord(
    *(3, {"accuracy": 0.846, "loss": 0.5}, 1.5, 8.5, 260, 250),
    *({"not_finite": 8, "too_stale": 2}, 400, False, 1.0, {}, 12.34),
    waits_for="A release waits.",
)
PROGRESS = TrainingProgress(3, 130, 260, 4.2, "hospital_3")


def _console(terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=120, color_system=None), out


@pytest.mark.parametrize(
    ("form", "terminal", "kind"),
    [("text", True, LiveLine), ("text", False, PlainLines), ("json", True, JsonLines)],
)
def test_the_display_fits_the_place(form, terminal, kind):
    assert isinstance(watcher(form, _console(terminal)[0], 60), kind)


def test_a_terminal_gets_one_line_with_the_figures():
    console, out = _console(True)
    with LiveLine(console, 60) as display:
        display.phase("Training")
        display.round(RECORD)
        display.round(RECORD)
    shown = out.getvalue()
    assert "accuracy 84.6 %  ε left 8.50  rejected 20" in shown
    assert "3/60" in shown
    assert "Done" in shown


def test_a_failed_run_is_not_shown_as_done():
    console, out = _console(True)
    display = LiveLine(console, 60)
    display.__enter__()
    display.phase("Training")
    display.__exit__(RuntimeError, RuntimeError(), None)
    assert "Stopped" in out.getvalue()
    assert "Done" not in out.getvalue()


def test_a_round_without_a_release_says_what_it_waited_for():
    console, out = _console(False)
    with PlainLines(console, 60) as display:
        display.round(replace(RECORD, waits_for="A release waits.\n- a: have ann submit."))
    assert out.getvalue().splitlines()[-2:] == ["A release waits.", "- a: have ann submit."]


def test_elsewhere_each_round_is_a_plain_line():
    console, out = _console(False)
    with PlainLines(console, 60) as display:
        display.phase("Training")
        display.round(RECORD)
    assert out.getvalue() == (
        "Training ...\nround 3/60  accuracy 84.6 %  epsilon left 8.50  rejected 10  12.3 s  no release\n"
        "A release waits.\n"
    )


def test_json_lines_are_json(capsys):
    with JsonLines() as display:
        display.round(RECORD)
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["event"] == "round"
    assert json.loads(line)["rejected"] == {"not_finite": 8, "too_stale": 2}


def test_progress_within_a_round_is_told_now_and_then():
    now = [0.0]
    console, out = _console(False)
    with PlainLines(console, 60, clock=lambda: now[0]) as display:
        for now[0] in (1.0, 9.0, 11.0, 12.0, 22.0):
            display.progress(PROGRESS)
    assert out.getvalue().splitlines() == ["  130 of 260 clients, 4 s left, slowest hospital_3"] * 2


def test_progress_is_an_event_and_is_on_the_live_line(capsys):
    now = [0.0]
    display = JsonLines(clock=lambda: now[0])
    for now[0] in (0.5, 1.5):
        display.progress(PROGRESS)
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {
        "event": "progress",
        "round_id": 3,
        "num_done": 130,
        "num_due": 260,
        "seconds_left": 4.2,
        "slowest_client": "hospital_3",
    }
    console, out = _console(True)
    with LiveLine(console, 60) as live:
        live.phase("Training")
        live.progress(PROGRESS)
    assert "130 of 260 clients, 4 s left, slowest hospital_3" in " ".join(out.getvalue().split())
