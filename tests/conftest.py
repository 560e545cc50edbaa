"""Run-time checks for the whole suite: shapes and types of public functions, no silent rank promotion."""

import os
import signal
import sys
import tempfile

from quick import QUICK

# Compiled programs are shared by all tests and the processes they start.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "rlhf_jax_test_compiled")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()
# What the jobs keep for other runs, apart from the user's own.
os.environ.setdefault("XDG_CACHE_HOME", tempfile.mkdtemp(prefix="rlhf_jax_test_cache"))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A shell that starts the suite in the background makes it ignore Ctrl-C, and every process it starts too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Workers of a parallel run get a processor each. XLA would start a thread per processor in every worker, and
# threads that wait for each other inside one operation crawl when more of them run than there are processors.
_worker = os.environ.get("PYTEST_XDIST_WORKER", "")
if _worker and hasattr(os, "sched_setaffinity"):
    _processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_processors[int(_worker.removeprefix("gw")) % len(_processors)]})

import pytest
from jaxtyping import install_import_hook

CHECKED = ["objectives", "models", "sampling", "rollout", "training", "parallel"]
# Of data/ those modules that hold arrays; the others look at every field of every record, thousands of calls a run.
CHECKED += [
    f"data.{name}"
    for name in ("batches", "candidate_arrays", "chat.chat_encoding", "tokens.scored_text", "tokenization")
]
_hook = install_import_hook([f"rlhf_jax.{room}" for room in CHECKED], "beartype.beartype")
_hook.__enter__()


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Compiled programs of a finished file are let go: a worker would come to hold gigabytes of them."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(autouse=True)
def _forget_notices():
    """Every test hears the notices that a run says once, whatever ran before it in this process."""
    if (startup := sys.modules.get("rlhf_jax.parallel.startup")) is not None:
        startup.forget_notices()


@pytest.fixture(scope="session")
def farm(tmp_path_factory):
    """The inputs of every job, for the tests of all rooms. Tests read it and write elsewhere."""
    import tiny_farm

    return tiny_farm.build(tmp_path_factory.mktemp("farm"))


@pytest.fixture(scope="session", autouse=True)
def no_process_left():
    """A test that failed may have left processes running."""
    yield
    for process in sys.modules["tiny_farm"].STARTED if "tiny_farm" in sys.modules else ():
        if process.poll() is None:
            process.kill()
            process.wait()
