"""The live table of a sweep as a terminal shows it, its lines in a pipe, and the final table."""

import contextlib
import io
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sweep_records import grid, record

from cxrjax import log
from cxrjax.sweep import table
from cxrjax.sweep.table import Table, duration, rows

FIELDS = {"train.learning_rate": [1e-3, 1e-4], "train.optimizer": ["adam", "sgd"], "a.b": [1, 2, 3]}


class Terminal(io.StringIO):
    """Standard error as a terminal: what was written, and the screen it makes."""

    columns, rows = 80, 24

    def isatty(self):
        return True

    def screen(self):
        """The lines, without the empty ones at the end, of a screen that is as long as it needs."""
        lines, row, column = [[]], 0, 0
        for part in re.findall(r"\x1b\[A|[^\x1b]", self.getvalue()):
            if part == "\x1b[A":
                row = max(0, row - 1)
            elif part == "\r":
                column = 0
            elif part == "\n":
                row, column = row + 1, 0
            else:
                if column == self.columns:
                    row, column = row + 1, 0
                while len(lines) <= row:
                    lines.append([])
                lines[row] += " " * (column + 1 - len(lines[row]))
                lines[row][column] = part
                column += 1
            while len(lines) <= row:
                lines.append([])
        text = ["".join(line).rstrip() for line in lines]
        while text and not text[-1]:
            text.pop()
        return text


@pytest.fixture
def terminal(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(table, "_size", lambda: os.terminal_size((stream.columns, stream.rows)))
    return stream


@contextlib.contextmanager
def live_table(terminal, *arguments):
    """A table on the terminal."""
    # Not in the fixture: pytest puts its own in place between a fixture and its test.
    with contextlib.redirect_stderr(terminal), Table(*arguments) as live:
        yield live


def test_the_terminal_shows_counts_and_the_five_best_and_lines_in_between_go_above(
    terminal, monkeypatch
):
    records = grid(FIELDS, seeds=2, diverged=(3, 11))
    with live_table(terminal, 24, records[:3]) as live:
        for number, each in enumerate(records[3:], 4):
            if number == 7:
                log.say("a line by log.say")
            live.add(each, 250.0 - number)
            if number == 20:
                log.say("another line")
        lines = terminal.screen()
        live.tick(1.0)  # too soon after the last drawing
        assert terminal.screen() == lines
        monkeypatch.setattr(table, "_PAUSE", -1)
        live.tick(None)
        assert "left" not in terminal.screen()[2]
    assert lines[:2] == ["a line by log.say", "another line"]
    assert re.fullmatch(
        r"24 of 24 trials, 2 diverged, 22 finished, [\d.]+ trials/s, 3 min 46 s left", lines[2]
    )
    assert " ".join(lines[3].split()) == "accuracy loss best epoch learning rate optimizer b seed"
    done = [trial for trial in records if trial["validation"]]
    best = sorted(done, key=lambda t: -t["validation"]["accuracy"]["value"])[:5]
    assert len(lines) == 9
    for place, (line, trial) in enumerate(zip(lines[4:], best, strict=True), 1):
        value = trial["validation"]["accuracy"]["value"]
        assert line.startswith(f"{place}  .{round(value * 1000)} [.")
        assert line.split()[-2:] == [str(trial["values"]["a.b"]), str(trial["seed"])]
    assert terminal.screen() == lines[:2]  # closed: nothing stays but what was said


@pytest.mark.parametrize(("columns", "height"), [(30, 24), (9, 5), (1, 1), (200, 6)])
def test_small_terminals_get_what_fits(terminal, columns, height):
    terminal.columns, terminal.rows = columns, height
    with live_table(terminal, 24) as live:
        for each in grid(FIELDS):
            live.add(each, 9.0)
        lines = terminal.screen()
    # No line wraps and none leaves the screen, so the table is redrawn in its place.
    assert len(lines) <= max(1, height - 2) and all(len(line) < max(2, columns) for line in lines)
    assert len(lines) == min(7, max(1, height - 2)) or columns == 1
    assert columns == 1 or lines[0].startswith("12 of 24"[: columns - 2])
    assert terminal.screen() == []


def test_a_table_left_by_an_error_is_taken_away_and_bars_go_below_it(terminal):
    with pytest.raises(RuntimeError), live_table(terminal, 4) as live:
        live.add(record(0))
        with log.progress_bar(total=3, what="epochs", unit="epochs") as bar:
            bar.update(1)
            live.add(record(1, accuracy=0.9))
            lines = terminal.screen()
        raise RuntimeError
    assert lines[2].startswith("1  .900") and lines[3].startswith("2  .800")
    assert lines[6].startswith("epochs:")
    assert terminal.screen() == []


def test_in_a_pipe_each_trial_is_one_plain_line(capsys):
    with Table(4, [record(0)]) as live:
        assert capsys.readouterr().err == ""
        live.tick(3.0)
        live.add(record(1, accuracy=0.8125), 4000.0)
        live.add(record(2, status="diverged", best_epoch=1))
        live.add(record(3, status="out_of_memory"))
    assert capsys.readouterr().err.splitlines() == [
        "trial 2 of 4: learning rate 0.001, seed 0: accuracy .812 [.772, .853], loss 0.500, "
        "best epoch 7 of 12, 12.3 s; 1 h 6 min left",
        "trial 3 of 4: learning rate 0.001, seed 0: diverged in epoch 6",
        "trial 4 of 4: learning rate 0.001, seed 0: out of memory in epoch 12",
    ]


def test_a_trial_repeated_for_want_of_memory_counts_once(capsys):
    live = Table(2, [record(0, status="out_of_memory")])
    live.add(record(0))
    live.add(record(1))
    assert [line[:12] for line in capsys.readouterr().err.splitlines()] == [
        "trial 1 of 2",
        "trial 2 of 2",
    ]


def test_rows_hold_every_point_the_best_first_and_the_lost_ones_last():
    records = [
        record(0, {"a.lr": 0.1, "b.fixed": 1}, accuracy=0.7, loss=0.61, best_epoch=3),
        record(1, {"a.lr": 1e-4, "b.fixed": 1}, accuracy=1.0 - 0.04, loss=0.25),
        record(2, {"a.lr": 10.0, "b.fixed": 1}, status="diverged"),
    ]
    assert rows(records) == [
        "   lr    accuracy            loss   best epoch  seconds",
        "1  1e-4  .960 [.920, 1.000]  0.250  7           12.3",
        "2  0.1   .700 [.660, .740]   0.610  3           12.3",
        "-  10    diverged                               12.3",
    ]
    assert rows(records, 1)[1:] == [
        rows(records)[1],
        "and 2 more",
    ]


def test_rows_over_seeds_are_of_means_and_tell_how_many_came_through():
    a, b, c = ({"lr": value} for value in (1, 2, 3))
    records = [
        *(record(k, a, accuracy=0.8, seed=k) for k in range(2)),
        record(2, b, accuracy=0.9, seed=0),
        record(3, b, status="diverged", seed=1),
        record(4, c, status="diverged", seed=0),
        record(5, c, status="out_of_memory", seed=1),
    ]
    head, *found = (re.split(r"\s{2,}", line) for line in rows(records))
    assert head[1:4] == ["lr", "seeds", "accuracy"]
    assert [line[:4] for line in found] == [
        ["1", "1", "2 of 2", ".800 [.760, .840]"],
        ["2", "2", "1 of 2", ".900 [.860, .940]"],
        ["-", "3", "0 of 2", "diverged, out of memory"],
    ]
    assert [line[-1] for line in found] == ["24.6"] * 3


def test_rows_of_one_trial_or_of_none():
    assert len(rows([record(0, {})])) == 2
    assert len(rows([])) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.6, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (90061, "1 d 1 h"),
        (-3, "0 s"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@given(st.floats(0, 1e7))
def test_durations_are_right_to_their_smaller_unit(seconds):
    sizes = {"s": 1, "min": 60, "h": 3600, "d": 86400}
    number = re.findall(r"(\d+) (\w+)", duration(seconds))
    told = sum(int(count) * sizes[unit] for count, unit in number)
    assert 0 <= round(seconds) - told < sizes[number[-1][1]]
