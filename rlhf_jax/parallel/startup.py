"""Joins the processes of a run, and lets them wait for and agree with each other outside of compiled code.

Waits go through the coordination service of `jax.distributed`, so each has a limit: a process that died
or never came makes the others stop with a message instead of hanging.
"""

import atexit
import importlib.util
import io
import json
import os
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from typing import Any, NamedTuple, NoReturn

import jax

from rlhf_jax.errors import UserError

_OURS = ("RLHF_JAX_COORDINATOR", "RLHF_JAX_NUM_PROCESSES", "RLHF_JAX_PROCESS_ID")
# SLURM_STEP_NODELIST exists only inside srun: a batch script run by sbatch alone is one process.
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")

# Waits after work that takes machines differently long: compiling, reading weights. They stand before
# collectives, which do not wait that long for each other (30 s to connect, on CPU).
SLOW_S = 3600.0

# How long a process waits for others without a word.
_QUIET_S = 5.0
# How long the name of process 0's machine may be unknown: a cluster that has just started needs a moment.
_NAME_S = 60.0

# The key under which a process says that it has failed, and how often the others look.
_FAILED = "rlhf_jax/failed"
_WATCH_S = 1.0
# Set when this process ends by itself.
_leaving = threading.Event()
# Set in process 0 when another one has failed, and process 0 only waits for the rest to hear of it.
_outlived = threading.Event()

# How often each barrier or agreement name was used. The service takes a key once, so the count is part of it.
_calls: Counter[str] = Counter()


class Processes(NamedTuple):
    """This process's index, the number of processes, and the numbers of devices here and in all."""

    index: int
    count: int
    local_devices: int
    devices: int


def join_processes(distributed: str = "auto", *, timeout_s: int = 300) -> Processes:
    """Joins the other processes of this run, if there are any. Call before anything touches a device.

    distributed:
        "auto": joins when the environment says there are several processes: RLHF_JAX_COORDINATOR
            (host:port), RLHF_JAX_NUM_PROCESSES and RLHF_JAX_PROCESS_ID; or srun with several tasks;
            or a Cloud TPU machine.
        "on":   joins, also by any other cluster `jax.distributed.initialize` can detect; UserError when none.
        "off":  stays alone.
    timeout_s: how long to wait for the others.
    A second call does nothing more.
    """
    if distributed != "off" and not jax.distributed.is_initialized():
        ours = _from_environment()
        if ours is not None:
            _initialize(timeout_s, *ours)
        elif distributed == "on" or _slurm_tasks() > 1 or _on_cloud_tpu():
            _initialize(timeout_s)
    return Processes(jax.process_index(), jax.process_count(), jax.local_device_count(), jax.device_count())


@contextmanager
def join_after_checks(distributed: str) -> Iterator[None]:
    """A context for what a process checks by itself; leaving it calls `join_processes`, also after a failed check.

    Only a process that has joined can tell the others that it failed, so that they do not wait for it.
    """
    try:
        yield
    finally:
        join_processes(distributed)


def process_index() -> int:
    """This process's number, 0 to process_count() - 1."""
    return jax.process_index()


def process_count() -> int:
    """How many processes run together."""
    return jax.process_count()


def is_main() -> bool:
    """True in the one process that writes files and prints."""
    return jax.process_index() == 0


def barrier(name: str, timeout_s: float = 600) -> None:
    """Waits until every process has come here. UserError when they have not within `timeout_s` seconds."""
    client = _client()
    if client is None:
        return
    try:
        # The service's barrier has a time limit; a collective would wait for a dead process for ever.
        client.wait_at_barrier(_unique("barrier", name), _milliseconds(timeout_s))
    except jax.errors.JaxRuntimeError as e:
        raise UserError(
            f"barrier {name!r}: not all {jax.process_count()} processes came within {timeout_s:g} s; "
            f"read the log of the one that is missing ({_first_line(e)})"
        ) from e


def agree(name: str, value: Any, timeout_s: float = 600) -> None:
    """Checks that all processes have the same `value` (anything JSON can write); UserError on each if not.

    For what must be equal or the run is wrong or hangs: the workdir, the config, the program's version.
    """
    # Through the coordination service and not through the devices: processes that disagree may not even run
    # the same programs, and a collective would hang instead of failing.
    client = _client()
    if client is None:
        return
    key = _unique("agree", name)
    mine = json.dumps(value, sort_keys=True, default=str)
    client.key_value_set(f"{key}/{jax.process_index()}", mine)
    for other in range(jax.process_count()):
        try:
            with _telling(f"process {other} to say its {name}"):
                theirs = client.blocking_key_value_get(f"{key}/{other}", _milliseconds(timeout_s))
        except jax.errors.JaxRuntimeError as e:
            raise UserError(
                f"{name}: process {other} said nothing within {timeout_s:g} s; read its log "
                f"({_first_line(e)})"
            ) from e
        if other == 0:
            expected = theirs
        elif theirs != expected:
            raise UserError(
                f"{name}: process 0 has {_short(expected)}, process {other} has {_short(theirs)}; "
                "start every process with the same command, files and version"
            )


def from_main(name: str, value: Any, timeout_s: float = 600) -> Any:
    """Process 0's `value` (anything JSON can write), on every process."""
    client = _client()
    if client is None:
        return value
    key = _unique("from_main", name)
    if jax.process_index() == 0:
        client.key_value_set(key, json.dumps(value))
        return value
    try:
        with _telling(f"process 0 to say {name}"):
            return json.loads(client.blocking_key_value_get(key, _milliseconds(timeout_s)))
    except jax.errors.JaxRuntimeError as e:
        raise UserError(
            f"{name}: process 0 said nothing within {timeout_s:g} s; read its log ({_first_line(e)})"
        ) from e


def leave(status: int, reason: str = "see its log") -> NoReturn:
    """Ends a failed process with this exit status, and with it the others of the run.

    A plain exit would first wait up to five minutes for the others to say goodbye, while they wait for this
    one in a barrier or a collective. So it tells them why it goes, and they leave within two seconds.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    client = _client() if jax.distributed.is_initialized() else None
    if client is None:
        sys.exit(status)
    # The watch ends this process soon, with the reason that came first.
    if _outlived.is_set():
        time.sleep(60)
    _leaving.set()
    try:
        client.key_value_set(_FAILED, f"process {jax.process_index()} failed: {_short(reason)}", True)
        # Process 0 runs the service that the others ask, so it goes last.
        if jax.process_index() == 0:
            time.sleep(2 * _WATCH_S)
    # Process 0 is gone already, and the others notice that by themselves.
    except jax.errors.JaxRuntimeError:
        pass
    # Not sys.exit, which would run jax's exit handler: it waits for the others.
    os._exit(status)


def _watch() -> None:
    """Ends this process when another one has failed; runs in a thread beside the work."""
    client = _client()

    def watch() -> None:
        while not _leaving.wait(_WATCH_S):
            try:
                failed = client.key_value_try_get(_FAILED)
            # Nobody has failed; or process 0 is gone, and then jax ends this process.
            except jax.errors.JaxRuntimeError:
                continue
            if _leaving.is_set():
                return
            sys.stdout.flush()
            print(f"error: {failed}", file=sys.stderr, flush=True)
            # As in `leave`: the service that the others ask goes last.
            if jax.process_index() == 0:
                _outlived.set()
                # What the work still says would only bury the reason.
                sys.stdout = sys.stderr = io.StringIO()
                time.sleep(2 * _WATCH_S)
            os._exit(3)

    thread = threading.Thread(target=watch, name="watch the other processes", daemon=True)
    thread.start()

    # Registered after jax's own handler and so run before it: when jax has said goodbye, the others may end
    # at any time, which is no failure.
    @atexit.register
    def stop() -> None:
        _leaving.set()
        thread.join()


def _from_environment() -> tuple[str, int, int] | None:
    """(process 0's address, our number, how many) from our own three variables, None when none is set."""
    found = {name: os.environ[name] for name in _OURS if os.environ.get(name)}
    if not found:
        return None
    missing = [name for name in _OURS if name not in found]
    if missing:
        raise UserError(f"{missing[0]}: not set, but {', '.join(found)} is; set all of {', '.join(_OURS)}")
    coordinator = found["RLHF_JAX_COORDINATOR"]
    if ":" not in coordinator:
        raise UserError(
            f"RLHF_JAX_COORDINATOR: {coordinator!r} has no port; use host:port, as in 10.0.0.1:8476"
        )
    count, index = _integer(_OURS[1], found), _integer(_OURS[2], found)
    if not 0 <= index < count:
        raise UserError(
            f"RLHF_JAX_PROCESS_ID: {index} is not in 0 .. {count - 1} (RLHF_JAX_NUM_PROCESSES={count})"
        )
    return coordinator, index, count


def _integer(name: str, found: dict[str, str]) -> int:
    try:
        return int(found[name])
    except ValueError:
        raise UserError(f"{name}: {found[name]!r} is not a whole number") from None


def _slurm_tasks() -> int:
    if not all(os.environ.get(name) for name in _SLURM):
        return 1
    # SLURM_NTASKS is the whole job's number; a step may have fewer tasks.
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ["SLURM_NTASKS"])


def _on_cloud_tpu() -> bool:
    # One host of a pod cannot see the others from its environment alone; jax asks the metadata server.
    if os.environ.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu":
        return False
    chips = glob("/dev/accel*") + glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def _initialize(timeout_s: int, coordinator: str = "", index: int = 0, count: int = 0) -> None:
    """Joins the others. coordinator: host:port of process 0, or "" where jax finds the cluster by itself."""
    given = {}
    if coordinator:
        given = {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
    else:
        coordinator, index, count = _slurm_coordinator()
    # jax would wait for a machine whose name is not known until its time-out is over, and then not say why.
    if coordinator and index:
        _check_name(coordinator.rpartition(":")[0].strip("[]"))
    others = f"{count - 1} more of {count} processes" if count else "the other processes"
    whom = f"process 0 at {coordinator}" if coordinator and index else f"{others} to join"
    try:
        with _telling(whom):
            jax.distributed.initialize(initialization_timeout=timeout_s, **given)
    except (jax.errors.JaxRuntimeError, ValueError, OSError) as e:
        raise UserError(
            f"distributed: could not join the other processes ({_first_line(e)}); set {', '.join(_OURS)}, "
            "or distributed=off for a single process"
        ) from e
    if jax.process_count() > 1:
        _watch()


def _slurm_coordinator() -> tuple[str, int, int]:
    """(the machine of process 0, our number, how many) as jax takes them from srun; ("", 0, 0) elsewhere."""
    if not all(os.environ.get(name) for name in _SLURM):
        return "", 0, 0
    # The first of a list like n7, n7,n9 or n[007-9,12],m3. The port, which jax chooses, does not matter here.
    prefix, numbers = re.match(r"([^,\[]*)(?:\[(\d+))?", os.environ["SLURM_STEP_NODELIST"]).groups()
    return f"{prefix}{numbers or ''}:", int(os.environ["SLURM_PROCID"]), _slurm_tasks()


def _check_name(host: str) -> None:
    """Waits until the name of process 0's machine is known here; UserError if it is not after a minute."""
    until = time.monotonic() + _NAME_S
    with _telling(f"the name {host} (process 0's machine) to be known here"):
        while True:
            try:
                socket.getaddrinfo(host, None)
                return
            except OSError as e:
                if time.monotonic() > until:
                    raise UserError(
                        f"distributed: process 0 should be on {host}, but this name is not known here "
                        f"({e.strerror or e}); set RLHF_JAX_COORDINATOR to an address that all processes reach"
                    ) from e
            time.sleep(0.5)


@contextmanager
def _telling(whom: str) -> Iterator[None]:
    """Prints for whom this process waits, after five seconds and then every minute, while the context is open."""
    over, began = threading.Event(), time.monotonic()

    def tell() -> None:
        wait = _QUIET_S
        while not over.wait(wait):
            print(f"waiting for {whom}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            wait = 60.0

    threading.Thread(target=tell, name="tells for whom we wait", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _client() -> Any:
    """The coordination service's client; None when this process is alone.

    jax has no public way to it. Orbax and flax use the same attribute.
    """
    from jax._src import distributed

    return distributed.global_state.client if jax.process_count() > 1 else None


def _unique(kind: str, name: str) -> str:
    # Every process makes the same calls in the same order, so the counts agree.
    _calls[f"{kind}/{name}"] += 1
    return f"rlhf_jax/{kind}/{name}/{_calls[f'{kind}/{name}']}"


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))


def _short(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _first_line(e: Exception) -> str:
    return _short((str(e).strip().splitlines() or [type(e).__name__])[0])


# Notices of a run: each is printed once, and from one process, however many times it comes up.

_said: set[str] = set()


def notice_once(text: str) -> None:
    """Prints `notice: TEXT` unless this run has said it before."""
    if text not in _said and is_main():
        print(f"notice: {text}", flush=True)
    _said.add(text)


def forget_notices() -> None:
    """Another run begins in this process: it says its notices again."""
    _said.clear()
