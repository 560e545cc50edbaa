"""One writer for a workdir: the second one hears who the first is, and takes over where that one is dead."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.training import lock

HOLD = """
import sys, time
from rlhf_jax.training import lock
lock.hold(sys.argv[1])
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lock, "_BEAT_S", 0.1)


@pytest.fixture
def folder(tmp_path):
    yield tmp_path
    lock.release(tmp_path)


@pytest.fixture
def other(folder):
    """Another process of this machine that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def there(folder):
    return json.loads((folder / lock.FILE).read_text())


def elsewhere(folder, **changes):
    """The file of a holder on another machine."""
    found = lock._myself() | {"host": "far", "machine": "far 1 2", "process": 77, "token": "theirs"} | changes
    (folder / lock.FILE).write_text(json.dumps(found))
    return found


def test_a_second_run_hears_who_holds_it_and_since_when(folder, other):
    since = there(folder)["since"]
    with pytest.raises(UserError) as refused:
        lock.hold(folder)
    assert str(refused.value) == (
        f"workdir: {folder} is in use by process {other.pid} on {os.uname().nodename} since {since}; "
        "wait for it, stop it, or use another --workdir"
    )
    assert there(folder)["process"] == other.pid


def test_a_killed_holder_is_followed_at_once(folder, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    began = time.monotonic()
    lock.hold(folder)
    assert time.monotonic() - began < 0.3
    assert there(folder)["process"] == os.getpid()


def test_a_number_that_was_given_again_is_another_process(folder, other):
    found = there(folder)
    other.send_signal(signal.SIGKILL)
    other.wait()
    (folder / lock.FILE).write_text(json.dumps(found | {"process": os.getpid(), "started": "0"}))
    lock.hold(folder)
    assert there(folder)["started"] != "0"


def test_the_copy_of_a_folder_in_use_is_free(folder, other, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy")
    (copy / lock.FILE).write_text((folder / lock.FILE).read_text())
    lock.hold(copy)
    lock.release(copy)
    (copy / "link").symlink_to(folder)
    with pytest.raises(UserError, match="is in use by process"):
        lock.hold(copy / "link")


def test_it_can_be_held_again_and_leaves_nothing(folder):
    lock.hold(folder)
    lock.hold(folder)
    lock.release(folder)
    lock.release(folder)
    assert list(folder.iterdir()) == []
    lock.hold(folder)


def test_the_holder_shows_that_it_lives(folder):
    lock.hold(folder)
    first = there(folder)["beat"]
    time.sleep(0.35)
    assert there(folder)["beat"] > first


def test_a_silent_holder_on_another_machine_is_followed(folder, capsys):
    elsewhere(folder)
    lock.hold(folder)
    assert there(folder)["process"] == os.getpid()
    assert "is held by process 77 on far; looking for 0 s whether it lives" in capsys.readouterr().out


def test_a_holder_on_another_machine_that_shows_life_keeps_it(folder):
    def beat():
        for i in range(10):
            time.sleep(0.05)
            elsewhere(folder, beat=i)

    elsewhere(folder)
    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(UserError, match="in use by process 77 on far since"):
        lock.hold(folder)
    thread.join()


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_broken_file_is_a_dead_holder(folder, text):
    (folder / lock.FILE).write_text(text)
    lock.hold(folder)
    assert there(folder)["process"] == os.getpid()


def _race(folder, start, won):
    start.wait()
    try:
        lock.hold(folder)
        won.put(os.getpid())
    except UserError:
        won.put(None)
    time.sleep(1.5)


@pytest.mark.parametrize("dead", [False, True])
def test_of_several_at_the_same_moment_one_has_it(tmp_path, dead):
    if dead:
        elsewhere(tmp_path)
    context = multiprocessing.get_context("fork")
    start, won = context.Event(), context.Queue()
    racers = [context.Process(target=_race, args=(tmp_path, start, won)) for _ in range(6)]
    for racer in racers:
        racer.start()
    start.set()
    found = [won.get(timeout=30) for _ in racers]
    for racer in racers:
        racer.join()
    assert sum(x is not None for x in found) == 1


def test_a_holder_whose_place_was_taken_stops(folder, other):
    """It stood still (a suspended machine) while another one took over; when it wakes it must not write."""
    other.send_signal(signal.SIGSTOP)
    elsewhere(folder)
    other.send_signal(signal.SIGCONT)
    assert other.wait(30) == 1
    assert there(folder)["token"] == "theirs"
