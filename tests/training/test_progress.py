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
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def test_rate_and_time_left(clock):
    out = Terminal()
    line = Progress(100, stream=out, done=10)
    for i in range(1, 11):
        clock.now += 2.0
        line.update(10 + i, {"loss": 0.123456, "perf/tokens_per_s": 12345.6})
    line.close()
    last = out.getvalue().split("\r\x1b[K")[-1]
    assert last == "step 20/100  0.5/s  left 2:40  loss 0.1235  perf/tokens_per_s 12,346\n"
    assert line.done == 20


def test_work_that_began_before_its_first_word_has_a_true_rate(clock):
    """A model's largest tensor is read when the number of parameters is first heard."""
    out = Terminal()
    began, clock.now = clock.now, clock.now + 4.0
    Progress(100, stream=out, began=began).update(50)
    assert "50/100  12.5/s  left 0:04" in out.getvalue()


def test_the_rate_forgets_a_slow_start(clock):
    out = Terminal()
    line = Progress(1000, stream=out)
    clock.now += 100.0  # compiling
    line.update(1)
    for i in range(2, 102):
        clock.now += 1.0
        line.update(i)
    assert "  1/s  left 14:59" in out.getvalue().split("\r")[-1]


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
        "responses 1/60",
        "responses 21/60",
        "responses 41/60",
        "responses 60/60",
    ]
    assert "\r" not in out.getvalue()


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
    screen = [part.split("\r\x1b[K")[-1] for part in out.getvalue().split("\n")]
    assert screen == ["saved", "step 2/10  1/s  left 0:08", "the end", ""]


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
