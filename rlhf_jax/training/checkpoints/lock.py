"""The lock on a workdir: process 0 of a job holds WORKDIR/lock.json, and renews it to show that it is alive.

Two runs in one folder would delete each other's checkpoints. The file says who holds it and is renewed by a thread. A
holder that died leaves it behind: on this machine its process is no longer there, from another one the file no longer
changes. Clocks of machines differ, so what is compared is never a time, only whether the file changes while one looks.
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from rlhf_jax.errors import UserError
from rlhf_jax.training.checkpoints.object_stores import at, is_remote, workdir_name, write_text

FILE = "lock.json"
# Seconds between renewals, on a disk and in an object store, where a write costs money.
_BEAT_S, _REMOTE_BEAT_S = 5.0, 30.0
# A process of which nothing is known but that its number is taken.
_UNSEEN = "there"
# What file systems say that have no hard links: mounted object stores, FAT, some network shares.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES)
# So many renewals missed, and a holder on another machine is taken for dead.
_BEATS = 3
# A store overwrites whatever is there. Two processes that write at the same moment wait this long, and then
# both read what the later one wrote.
_AGREE_S = 1.0

_held: dict[str, _Lock] = {}


def hold(workdir: str | PurePath) -> None:
    """Makes this process the one that writes the folder, until `release` or its end. A second call does nothing.

    Raises UserError when another process has it: who, and since when. Waits, and says so, where it takes a while to
    see whether the holder is still there.
    """
    name = workdir_name(workdir)
    if name in _held:
        return
    path, mine = at(workdir) / FILE, _myself() | {"folder": name}
    found = _read(path)
    if found is not None and _lives(found, path, workdir):
        raise UserError(
            f"workdir: {workdir} is in use by {_who(found)} since {found.get('since', 'an unknown time')}; "
            "wait for it, stop it, or use another --workdir"
        )
    if not _take(path, found, mine):
        raise UserError(f"workdir: {workdir} was taken by another process just now; use another --workdir")
    _held[name] = _Lock(path, mine)
    atexit.register(release, workdir)


@contextmanager
def holding(workdir: str | PurePath) -> Iterator[None]:
    """A context in which a job of one process makes and holds a folder of this machine. UserError as in `hold`."""
    if is_remote(workdir):
        raise UserError(f"workdir: {workdir}: this job writes to a folder of this machine; use one")
    try:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        hold(workdir)
    except OSError as e:
        raise UserError(
            f"workdir: {workdir} cannot be written ({e.strerror or e}); use another --workdir"
        ) from e
    try:
        yield
    finally:
        release(workdir)


def release(workdir: str | PurePath) -> None:
    """Gives the folder back. Does nothing where this process does not hold it."""
    lock = _held.pop(workdir_name(workdir), None)
    if lock is not None:
        lock.end()


class _Lock:
    """A lock file that this process holds, and the thread that renews it."""

    def __init__(self, path: PurePath, mine: dict[str, Any]) -> None:
        self._path, self._mine = path, mine
        self._ending = threading.Event()
        # A daemon: a process that dies of an error takes its thread along, and the file falls silent.
        self._thread = threading.Thread(target=self._beat, name="workdir lock", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ending.set()
        self._thread.join()
        try:
            if _token(_read(self._path)) == self._mine["token"]:
                self._path.unlink()
        # The job's own end, good or bad, is what counts.
        except Exception as error:
            _say(f"workdir: {self._path} could not be given back ({error})")

    def _beat(self) -> None:
        while not self._ending.wait(_beat_s(self._path)):
            try:
                found = _read(self._path)
                if _token(found) not in (None, self._mine["token"]):
                    _lost(found)
                self._mine["beat"] += 1
                write_text(self._path, json.dumps(self._mine))
            # A full disk, or a store that is away for a moment. What stays so, the run itself will meet.
            except Exception as error:
                _say(f"workdir: {self._path} could not be renewed ({error})")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _lost(found: dict[str, Any]) -> None:
    """Ends this process at once: it stood still for so long that another one took its place."""
    # Called in the renewing thread, where an exception would end that thread and not the run.
    _say(
        f"error: workdir: {_who(found)} has taken over, because this one did not answer for a while; "
        "it stops, so that only one of them writes"
    )
    os._exit(1)


def _take(path: PurePath, found: dict[str, Any] | None, mine: dict[str, Any]) -> bool:
    """Writes the lock file, over that of a dead holder if there is one; False when another process was faster."""
    text = json.dumps(mine)
    if is_remote(path):
        path.write_text(text)
        time.sleep(_AGREE_S)
        return _token(_read(path)) == mine["token"]
    own = path.with_name(f".{FILE}.{mine['token']}")
    if path.exists():
        # Only one of several renames the dead holder's file; whoever renames a newer one puts it back.
        try:
            path.rename(own)
        except FileNotFoundError:
            return False
        if _token(_read(own)) != _token(found):
            _put(own, path)
            return False
    try:
        own.write_text(text, encoding="utf-8")
    except OSError:
        own.unlink(missing_ok=True)
        raise
    return _put(own, path)


def _put(own: PurePath, path: PurePath) -> bool:
    """Gives a file its name; False where that is taken."""
    try:
        # A hard link fails where the name is taken, on NFS too, where exclusive creation may not.
        os.link(own, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _create(path, own.read_text(encoding="utf-8"))
    finally:
        own.unlink()
    return True


def _create(path: PurePath, text: str) -> bool:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def _lives(found: dict[str, Any], path: PurePath, workdir: str | PurePath) -> bool:
    # On this machine the process table knows; elsewhere one can only watch the file.
    if found.get("machine") == _machine():
        if not _same(str(found.get("folder")), workdir):
            return False
        started = _started(found.get("process"))
        if started != _UNSEEN:
            return started is not None and started == found.get("started")
    print(
        f"workdir: {workdir} is held by {_who(found)}; looking for {_BEATS * _beat_s(path):.0f} s whether it lives",
        flush=True,
    )
    # Five looks per renewal: a living holder is noticed soon, not only when all the time is over.
    for _ in range(_BEATS * 5):
        time.sleep(_beat_s(path) / 5)
        if (now := _read(path)) != found:
            return now is not None
    return False


def _same(folder: str, workdir: str | PurePath) -> bool:
    """Whether a holder of this machine holds this very folder, and the file is not that of a folder that was copied."""
    if is_remote(folder) or is_remote(workdir):
        return folder == workdir_name(workdir)
    return os.path.exists(folder) and os.path.samefile(folder, workdir)


def _beat_s(path: PurePath) -> float:
    return _REMOTE_BEAT_S if is_remote(path) else _BEAT_S


def _read(path: PurePath) -> dict[str, Any] | None:
    """Reads the lock file: None where there is none, {} where it is broken."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    # A broken file counts as that of a holder of which nothing is known: it is watched, then replaced.
    except (ValueError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def _token(found: dict[str, Any] | None) -> str | None:
    token = None if found is None else found.get("token")
    return token if isinstance(token, str) else None


def _who(found: dict[str, Any]) -> str:
    return f"process {found.get('process', '?')} on {found.get('host', 'an unknown machine')}"


def _myself() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "machine": _machine(),
        "started": _started(os.getpid()),
        "token": uuid.uuid4().hex,
        "beat": 0,
    }


def _machine() -> str:
    """The machine as far as process numbers mean the same: its name, its start, and the container."""
    parts = [socket.gethostname()]
    for read in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        lambda: os.readlink("/proc/self/ns/pid"),
    ):
        try:
            parts.append(read())
        # Not Linux: the name has to do.
        except OSError:
            parts.append("-")
    return " ".join(parts)


def _started(process: Any) -> str | None:
    """When a process of this machine began, as its number may have been given again; None where it is gone."""
    # A file that somebody wrote by hand may say anything; 0 and below would be process groups to os.kill.
    if not isinstance(process, int) or process < 1:
        return None
    try:
        # The name in brackets may itself hold blanks and brackets. Behind it stand the state and, as field 22
        # of the line, the time at which the process started.
        state, *rest = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else rest[18]
    except OSError:
        pass
    # Not Linux, or another user's process, which /proc may hide. Signal 0 only asks whether there is one.
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except (PermissionError, OverflowError):
        return _UNSEEN
    return _UNSEEN
