"""A stage of a study in a process of its own: what `StageProcesses` starts, with a pickled `Work` on its input.

That input stays open as long as the study lives. When it ends, however that was, so does this process: the
study's next start must find nobody at work in its folders.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import traceback
from typing import Any, NamedTuple, NoReturn

from absl import logging
from ml_collections import ConfigDict

from rlhf_jax import quiet
from rlhf_jax.errors import UserError, problem_of_machine
from rlhf_jax.programs import load_program

# Exit statuses, by which the study knows what became of a stage.
DONE, BROKE, REFUSED, MACHINE, STOPPED = 0, 1, 2, 3, 143


class Work(NamedTuple):
    """What a process is to do.

    Attributes:
      settings: of the stage, as plain values.
      folder: the stage's own.
      argv: the study's own arguments, which reports show.
    """

    settings: dict[str, Any]
    folder: str
    argv: list[str]


def run_and_leave() -> NoReturn:
    """What the process does, from beginning to end."""
    quiet.end(_run(pickle.load(sys.stdin.buffer)))


def _run(work: Work) -> int:
    """Runs the stage, and returns the exit status; the last line that is printed says why it failed, if it did."""
    sys.argv = work.argv
    threading.Thread(target=_end_with_study, daemon=True).start()

    logging.set_verbosity(logging.WARNING)
    quiet.leave_out_what_is_raised_too()
    config = ConfigDict(work.settings)
    try:
        load_program(config).run(config, work.folder)
    except UserError as error:
        return _said(str(error), REFUSED)
    except (SystemExit, KeyboardInterrupt) as left:
        return _said(str(left), STOPPED)
    except Exception as error:
        problem = problem_of_machine(error)
        if problem is not None:
            return _said(problem, MACHINE)
        traceback.print_exc()
        return _said(f"{type(error).__name__}: {error}", BROKE)
    return DONE


def _said(line: str, status: int) -> int:
    print(line, flush=True)
    return status


def _end_with_study() -> None:
    sys.stdin.buffer.read()
    os._exit(STOPPED)
