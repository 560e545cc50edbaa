"""The command line: reads the flags, builds the config page, and runs the one method or job that it names.

    python -m rlhf_jax.main --config=configs/ppo.py --workdir=runs/ppo --config.kl_coef=0.02
    python -m rlhf_jax.main --config=configs/ppo.py --help      # the fields of this page, and what they mean
    python -m rlhf_jax.main --config=configs/ppo.py --plan=v5e:4x4      # what the run would need there

Kept short on purpose: what a method or job does lives in `rlhf_jax/methods` and `rlhf_jax/jobs`, and can be called
without any flags.
"""

from __future__ import annotations

import importlib
import shlex
import sys
import traceback
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from rlhf_jax import idle, quiet
from rlhf_jax.allocator import restart_with_own_malloc
from rlhf_jax.errors import StoppedError, UserError, problem_of_machine
from rlhf_jax.programs import check_page, load_program
from rlhf_jax.settings.overrides import check_overrides, explain, is_own, named_page
from rlhf_jax.settings.page_help import page_help

INTERRUPTED = 130  # The exit status shells give to a program that Ctrl-C ended.
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The page of settings: configs/NAME.py or configs/NAME.py:VARIANT."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for all that the job writes; the same folder resumes the job."
)
PLAN = flags.DEFINE_string(
    "plan",
    None,
    "Runs nothing, and says what the run would need there: v5e:8x8, v5p:2x2x2, v6e:4x4, h100:64.",
)
SCALE = flags.DEFINE_string(
    "scale", "", "With a family alone as --plan, such as v6e: chip counts to compare, 8,64,256."
)
PLAN_MODEL = flags.DEFINE_string(
    "plan_model",
    "",
    "With --plan: a known shape, as llama_7b, or a folder with a config.json; or FIELD=SHAPE,...",
)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses and checks the command line; errors name the config field and the closest match."""
    try:
        helped = {"--help", "--helpfull", "--helpshort"} & set(argv)
        # absl's own help knows --config, and nothing of the page behind it.
        if helped and named_page(argv):
            print(page_help(named_page(argv)))
            sys.exit(0)
        if not helped:
            check_overrides(argv)
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise UserError(f"{rest[1]}: not a flag; settings are written --config.NAME=VALUE")
        # An empty name, of a variable that a shell does not know, is no wish to run.
        if PLAN.value is not None:
            # Before anything loads jax, which then takes no device.
            importlib.import_module("rlhf_jax.planning.slices").prepare_environment()
        elif SCALE.value or PLAN_MODEL.value:
            raise UserError(f"--{'scale' if SCALE.value else 'plan_model'}: goes with --plan; add --plan=v6e")
        elif not (WORKDIR.value or "").strip():
            raise UserError(f"--workdir: missing; use for example --workdir=runs/{CONFIG.value.job}")
        # From here on the checks speak of the whole page, after all overrides.
        check_page(CONFIG.value, idle.given(argv), own=is_own(named_page(argv)))
        return rest
    except UserError as error:
        fail(str(error))
    except flags.Error as error:
        fail(explain(error, argv))


def fail(message: str) -> NoReturn:
    """Prints the one line a user needs and leaves with status 2."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    leave_program(2, message)


def leave_program(status: int, reason: str) -> NoReturn:
    """Ends this process, and soon the others of a run of several: none waits for one that has failed."""
    # Jobs that need no jax do not load it here either.
    if "jax" not in sys.modules:
        sys.exit(status)
    from rlhf_jax.parallel import startup

    startup.leave(status, reason)


def main(_: list[str]) -> None:
    # Orbax logs each part of every save at INFO, which would bury a job's own lines.
    logging.set_verbosity(logging.WARNING)
    config = CONFIG.value
    try:
        if PLAN.value is not None:
            # By its name: planning draws on nearly every room, and no run should load them.
            command = importlib.import_module("rlhf_jax.planning.plan_command")
            title = named_page(sys.argv)
            return command.run_plan(
                config, PLAN.value, SCALE.value, PLAN_MODEL.value, WORKDIR.value or "", title
            )
        load_program(config).run(config, WORKDIR.value)
    except UserError as error:
        fail(str(error))
    except StoppedError as stopped:
        command = shlex.join(["python", "-m", "rlhf_jax.main", *sys.argv[1:]])
        print(f"\nstopped: {stopped}; this goes on from there:\n  {command}", flush=True)
        sys.exit(INTERRUPTED)
    except (Exception, KeyboardInterrupt) as error:
        # A full disk or a missing right is no bug, so it is a line and not a traceback.
        problem = problem_of_machine(error)
        if problem is not None:
            fail(problem)
        traceback.print_exc()
        leave_program(1, f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    # Before absl and jax do anything: exec starts the program from the beginning.
    restart_with_own_malloc("rlhf_jax.main")
    quiet.leave_out_what_is_raised_too()
    try:
        app.run(main, flags_parser=parse_flags)
    except SystemExit as left:
        # After a failure nothing may be printed behind its one line; a success ends in the ordinary way.
        if left.code:
            quiet.end(left.code)
        raise
