import io

import pytest

from rlhf_jax.training import progress
from rlhf_jax.training.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def __call__(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    monkeypatch.setattr(progress.time, "time", clock)
    return clock


def screen(out):
    """The lines that a terminal shows after all that was written."""
    lines = []
    for written in out.getvalue().split("\n"):
        line = []
        for part in written.split("\r"):
            line[: len(part)] = part
        lines.append("".join(line).rstrip())
    return lines


def test_rate_and_time_left(clock):
    out = Terminal()
    line = Progress(100, stream=out, done=10)
    for i in range(1, 11):
        clock.now += 2.0
        line.update(10 + i, {"loss": 0.123456, "perf/tokens_per_s": 12345.6})
    line.close()
    assert screen(out) == ["step 20/100  0.5/s  left 02:40, loss 0.1235  perf/tokens_per_s 12,346", ""]
    assert line.done == 20


def test_work_that_began_before_its_first_word_has_a_true_rate(clock):
    """A model's largest tensor is read when the number of parameters is first heard."""
    out = Terminal()
    began, clock.now = clock.now, clock.now + 4.0
    Progress(100, stream=out, began=began).update(50)
    assert "50/100  12.5/s  left 00:04" in out.getvalue()


def test_the_rate_forgets_a_slow_start(clock):
    out = Terminal()
    line = Progress(1000, stream=out)
    clock.now += 100.0  # compiling
    line.update(1)
    for i in range(2, 102):
        clock.now += 1.0
        line.update(i)
    assert "  1/s  left 14:59" in screen(out)[-1]


def test_a_file_gets_a_line_every_ten_seconds_and_the_last_one(clock):
    out = io.StringIO()
    line = Progress(60, stream=out, unit="responses")
    for i in range(1, 61):
        clock.now += 0.5
        line.update(i)
    line.close()
    line.close()
    lines = out.getvalue().splitlines()
    assert [text.split("  ")[0] for text in lines] == [
        "responses 20/60",
        "responses 40/60",
        "responses 60/60",
    ]
    assert "\r" not in out.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_nothing_is_shown_of_work_that_never_moved(clock, stream):
    out = stream()
    line = Progress(60, stream=out)
    clock.now += 60
    line.close()
    assert out.getvalue().strip() == ""


def test_a_job_of_no_time_is_one_line_of_a_file(clock):
    out = io.StringIO()
    line = Progress(0, stream=out, unit="million parameters")
    line.update(0, {"loss": 1.5})
    line.close()
    assert out.getvalue() == "million parameters 0/0  0/s  left ?, loss 1.5\n"


def test_a_note_stands_on_a_line_of_its_own(clock):
    out = Terminal()
    line = Progress(10, stream=out)
    clock.now += 1
    line.update(1)
    line.note("saved")
    clock.now += 1
    line.update(2)
    line.close()
    line.note("the end")
    assert screen(out) == ["saved", "step 2/10  1/s  left 00:08", "the end", ""]


def test_hours(clock):
    out = Terminal()
    line = Progress(10_000, stream=out)
    clock.now += 1
    line.update(1)
    assert "left 2:46:39" in out.getvalue()


def test_other_processes_are_silent(monkeypatch):
    monkeypatch.setattr(progress.startup, "is_main", lambda: False)
    out = io.StringIO()
    line = Progress(2, stream=out)
    line.update(1)
    line.note("x")
    line.close()
    assert out.getvalue() == ""
    assert line.done == 1
