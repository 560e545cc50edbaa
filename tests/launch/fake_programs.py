"""Programs that stand in for srun, gcloud and the like: they note how they were called, and do little else."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORD, CALL = "\x1f", "\x1e"

# What a launcher must hand over as it is. The empty one and the last would vanish or multiply in careless hands.
HARD = [
    "--config=configs/sft.py",
    "--workdir=runs/a b",
    '--config.data.train=it\'s "quoted" $HOME $(id) `id` \\ *.py; & | # ~',
    "",
    "--config.model.init=tab\tand\nline",
]


class Fakes:
    """A folder of stand-ins, first on the PATH of what is run here."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder, self.log = folder / "bin", folder / "calls"
        self.folder.mkdir(parents=True)
        self.environment = {
            "HOME": str(folder),
            "PATH": f"{self.folder}{os.pathsep}{os.environ['PATH']}",
            "TMPDIR": str(folder),
            **environment,
        }

    def add(self, name: str, body: str = "", *, at: Path | None = None) -> Path:
        """A program that notes its name and arguments and goes on with `body`, in bash."""
        path = at or self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        note = f"printf '%s{WORD}' {name} \"$@\"; printf '{CALL}'"
        path.write_text(f"#!/usr/bin/env bash\n{{ {note}; }} >>'{self.log}'\n{body}\n")
        path.chmod(0o755)
        return path

    def calls(self, name: str) -> list[list[str]]:
        """The arguments of every call of a program, in order."""
        text = self.log.read_text() if self.log.exists() else ""
        found = [call.split(WORD)[:-1] for call in text.split(CALL)[:-1]]
        return [call[1:] for call in found if call[0] == name]

    def start(self, *command: str, **environment: str) -> subprocess.Popen:
        """Starts `bash COMMAND` in the repository's root; output and errors are one text."""
        aside = ("SLURM_", "RLHF_JAX_", "PYTHON", "VENV")  # of whoever runs the tests
        env = {k: v for k, v in os.environ.items() if not k.startswith(aside)}
        return subprocess.Popen(
            ["bash", *map(str, command)],
            cwd=ROOT,
            env=env | self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str, status: int = 0, **environment: str) -> str:
        """What `bash COMMAND` prints; it must end with this status."""
        return finish(self.start(*command, **environment), status)


def finish(process: subprocess.Popen, status: int = 0, timeout: float = 60) -> str:
    """What a process printed; it must end with this status."""
    killer = threading.Timer(timeout, process.kill)
    killer.start()
    out, _ = process.communicate()
    killer.cancel()
    assert process.returncode == status, out
    return out


def wait_until(condition, timeout: float = 20) -> None:
    """Waits until condition() is true."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


# A python for the launchers' PYTHON: gives them a free port, and otherwise notes its arguments.
PYTHON = f"""[ "$1" != -c ] || exec {sys.executable} "$@" """
