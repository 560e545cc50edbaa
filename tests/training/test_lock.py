"""One writer for a workdir: the second one hears who the first is, and takes over where that one is dead."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.training.checkpoints import lock

HOLD = """
import sys, time
from rlhf_jax.training.checkpoints import lock
lock._BEAT_S = 0.1
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


def elsewhere(where, **changes):
    """The file of a holder on another machine."""
    found = lock._myself() | {"host": "far", "machine": "far 1 2", "process": 77, "token": "theirs"} | changes
    (where / lock.FILE).write_text(json.dumps(found))
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


def test_a_killed_holder_is_followed_at_once(folder, other, monkeypatch):
    other.send_signal(signal.SIGKILL)
    other.wait()
    waited = []
    monkeypatch.setattr(lock.time, "sleep", waited.append)
    lock.hold(folder)
    assert not waited
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


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"machine": "far"}', b'{"token": [1], "beat": "x"}']
)
def test_a_broken_file_is_a_dead_holder(folder, content):
    (folder / lock.FILE).write_bytes(content)
    lock.hold(folder)
    assert there(folder)["process"] == os.getpid()


@pytest.mark.parametrize("process", [None, "7", 0, -1, 2**70, 2**22 + 1])
def test_a_file_that_names_no_process_of_this_machine_is_a_dead_holders(folder, process):
    found = {"machine": lock._machine(), "folder": str(folder), "process": process, "started": "1"}
    (folder / lock.FILE).write_text(json.dumps(found))
    lock.hold(folder)
    assert there(folder)["process"] == os.getpid()


@pytest.mark.parametrize("lives", [True, False])
def test_a_process_that_cannot_be_looked_at_is_watched(folder, monkeypatch, lives):
    """Another user's, which /proc may hide; or any where there is no /proc."""
    started = lock._started
    monkeypatch.setattr(lock, "_started", lambda p: "there" if p == os.getppid() else started(p))
    mine = {"machine": lock._machine(), "folder": str(folder), "process": os.getppid(), "started": "1"}
    elsewhere(folder, **mine)
    beats = threading.Timer(0.1, lambda: elsewhere(folder, **mine, beat=1))
    if lives:
        beats.start()
        with pytest.raises(UserError, match=f"in use by process {os.getppid()} on far since"):
            lock.hold(folder)
        beats.join()
    else:
        lock.hold(folder)


def test_another_users_process_is_one_that_cannot_be_looked_at(monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert lock._started(2**22 + 1) == "there"


@pytest.mark.parametrize("old", [None, "silent"])
def test_a_file_system_without_hard_links(folder, monkeypatch, old):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    if old:
        elsewhere(folder)
    lock.hold(folder)
    assert [path.name for path in folder.iterdir()] == [lock.FILE]
    assert not lock._take(
        folder / lock.FILE, None, lock._myself()
    )  # who comes a moment later does not get it
    assert there(folder)["process"] == os.getpid()
    lock.release(folder)
    assert list(folder.iterdir()) == []


def test_a_store_that_fails_for_a_moment_does_not_end_the_beats(folder, monkeypatch, capfd):
    write, failures = lock.write_text, iter([RuntimeError("503 from the store")])

    def sometimes(*given):
        for error in failures:
            raise error
        write(*given)

    monkeypatch.setattr(lock, "write_text", sometimes)
    lock.hold(folder)
    time.sleep(0.35)
    assert there(folder)["beat"] > 1
    assert "could not be renewed (503 from the store)" in capfd.readouterr().err
    monkeypatch.setattr(lock, "_read", lambda _: 1 / 0)
    lock.release(folder)  # the job's own end is what counts
    assert "could not be given back (division by zero)" in capfd.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    def refused(folder):
        with pytest.raises(UserError) as error, lock.holding(folder):
            pass
        return str(error.value)

    (tmp_path / "file").write_text("")
    assert refused(tmp_path / "file/run").endswith(
        "file/run cannot be written (Not a directory); use another --workdir"
    )
    monkeypatch.setattr(Path, "write_text", full)
    assert "run cannot be written (Read-only file system); use another --workdir" in refused(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    assert "this job writes to a folder of this machine" in refused("gs://bucket/run")


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
