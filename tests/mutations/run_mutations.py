"""Breaks one line of the package at a time and runs the tests that should see it; prints what goes unnoticed.

    .venv/bin/python tests/mutations/run_mutations.py [--only TEXT ...] [--jobs 2]

The changes stand in the TOML files beside this one, one table each: `name`, the `file` below rlhf_jax, the text `old`,
what it becomes (`new`), and the `tests` that should fail then. They are written by hand: a tool that swaps operators
(mutmut, cosmic-ray) does not think of a key used twice or of a reference that is the policy. Works in copies of the
checkout, so it may go on while somebody edits. The tests must pass unbroken (scripts/test.sh). Ends with status 1 where
a change went unnoticed.
"""

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
LONGEST_S = 900


def mutations() -> list[dict]:
    """All of them, in the order of the files."""
    files = sorted(Path(__file__).parent.glob("*.toml"))
    return [one for file in files for one in tomllib.loads(file.read_text())["mutation"]]


def mutated(one: dict, root: Path = ROOT) -> str:
    """The text of a mutation's file with its one change; raises ValueError where `old` does not stand there once."""
    text = (root / "rlhf_jax" / one["file"]).read_text()
    if (count := text.count(one["old"])) != 1:
        raise ValueError(f"{one['name']}: rlhf_jax/{one['file']} has its text {count} times, not once")
    return text.replace(one["old"], one["new"])


def copy_of_checkout() -> Path:
    """A folder with every file that git knows or could know."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    folder = Path(tempfile.mkdtemp(prefix="mutations"))
    for name in filter(None, names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def unnoticed_by(folder: Path, one: dict, processor: int) -> tuple[str, str]:
    """Changes the file, runs the tests and changes it back: (a word for what came out, the last line printed)."""
    # Without byte code: a file that changes twice in a second may be taken for the older one.
    own = {"PYTHONDONTWRITEBYTECODE": "1", "PYTEST_XDIST_WORKER": f"gw{processor}", "PYTHONPATH": ""}
    flags = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command = [sys.executable, "-m", "pytest", *flags, *one["tests"]]
    file = folder / "rlhf_jax" / one["file"]
    was = file.read_text()
    file.write_text(mutated(one, folder))
    try:
        ran = subprocess.run(
            command, cwd=folder, env=os.environ | own, capture_output=True, text=True, timeout=LONGEST_S
        )
    except subprocess.TimeoutExpired:
        return "noticed", f"longer than {LONGEST_S} s"
    finally:
        file.write_text(was)
    # 1 is a test that failed; other errors are of the list: a test that does not exist, a file that cannot be imported.
    word = {0: "UNNOTICED", 1: "noticed"}.get(ran.returncode, "NOT RUN")
    return word, (ran.stdout.strip().splitlines() or [ran.stderr[-200:]])[-1]


def work(folder: Path, todo: queue.Queue, wrong: list[str], processor: int) -> None:
    """Takes mutations from the queue until it is empty; adds to `wrong` the names of those that no test failed on."""
    while True:
        try:
            one = todo.get_nowait()
        except queue.Empty:
            return
        began = time.monotonic()
        try:
            word, said = unnoticed_by(folder, one, processor)
        except ValueError as error:
            # Else the thread would end here, and what is left in its queue would pass for noticed.
            word, said = "NOT RUN", str(error)
        print(f"{word}  {one['name']}  ({time.monotonic() - began:.0f} s: {said})", flush=True)
        if word != "noticed":
            wrong.append(one["name"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of those to run")
    parser.add_argument("--jobs", type=int, default=1, help="how many to run side by side")
    given = parser.parse_args()
    chosen = [one for one in mutations() if not given.only or any(part in one["name"] for part in given.only)]
    todo: queue.Queue = queue.Queue()
    for one in chosen:
        todo.put(one)
    wrong: list[str] = []
    folders = [copy_of_checkout() for _ in range(given.jobs)]
    workers = [
        threading.Thread(target=work, args=(folder, todo, wrong, i)) for i, folder in enumerate(folders)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for folder in folders:
        shutil.rmtree(folder)
    print(f"{len(chosen)} changes, {len(wrong)} that no test failed on: {', '.join(wrong) or 'none'}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
