"""Jobs run in this process under observation: which settings they read, and when they compile what."""

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
import tiny_farm
from ml_collections import ConfigDict

from rlhf_jax.programs import program
from rlhf_jax.settings import load_page
from rlhf_jax.training.loop import loop, step
from rlhf_jax.training.rows import kept_tokens  # noqa: F401, as the front door loads it for methods

COMPILE = "/jax/core/compile/backend_compile_duration"


class InterruptedRunError(Exception):
    """Ends a run in the middle, as a kill would."""


class Settings:
    """Stands in for a ConfigDict and notes the dotted name of every field that is read.

    Handing over a whole group, as **config.optimizer.to_dict(), reads all of it; writing the whole page to a
    file reads nothing.
    """

    # What checks types at run time asks with isinstance, which believes this.
    __class__ = property(lambda self: ConfigDict)

    def __init__(self, config: ConfigDict, read: set[str], prefix: str = "") -> None:
        self._config, self._read, self._prefix = config, read, prefix

    def __getitem__(self, name: str) -> Any:
        value = self._config[name]
        if isinstance(value, ConfigDict):
            return Settings(value, self._read, f"{self._prefix}{name}.")
        self._read.add(f"{self._prefix}{name}")
        return value

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __contains__(self, name: str) -> bool:
        return name in self._config

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self._config else default

    def to_dict(self) -> dict:
        if self._prefix:
            self._read |= {f"{self._prefix}{name}" for name in tiny_farm.flat(self._config)}
        return self._config.to_dict()

    def to_json_best_effort(self, **options: Any) -> str:
        return self._config.to_json_best_effort(**options)


def reads(run: Callable, config: ConfigDict, *args: Any) -> set[str]:
    """The fields that run(config, ...) reads."""
    read: set[str] = set()
    with contextlib.redirect_stdout(io.StringIO()):
        run(Settings(config, read), *args)
    return read


def assert_all_read(job: str, read: set[str]) -> None:
    """No field of the job's page is decoration."""
    page = set(tiny_farm.flat(load_page(str(tiny_farm.ROOT / f"configs/{job}.py"))))
    assert page - read == {"job"}, page - read  # which the front door reads
    assert read <= page


class Compiles:
    """Counts compilations: `at[i]` is how many there were when iteration i began, `end` when the loop ended."""

    def __init__(self) -> None:
        self.count, self.at, self.end, self.steps = 0, {}, 0, []

    def on_event(self, event: str, _: float, **__: Any) -> None:
        self.count += event == COMPILE


def run(
    job: str,
    config: ConfigDict,
    workdir: Path,
    *,
    stop_before: int = -1,
    before: Callable[[int], None] = lambda i: None,
) -> tuple[set[str], Compiles]:
    """Runs a trainer in this process.

    job: the name of its page, for whoever reads the call.
    stop_before: the iteration that ends it with `InterruptedRunError`. before: called with each iteration's number.
    """
    read: set[str] = set()
    compiles, loop_run, make_step = Compiles(), loop.run_loop, step.make_train_step

    def watched_loop(state, iterate, **options):
        def watched(state, i):
            compiles.at[i] = compiles.count
            before(i)
            if i == stop_before:
                raise InterruptedRunError
            return iterate(state, i)

        state = loop_run(state, watched, **options)
        compiles.end = compiles.count
        return state

    def watched_step(*args, **options):
        compiles.steps.append(make_step(*args, **options))
        return compiles.steps[-1]

    module = program(config.job)
    jax.monitoring.register_event_duration_secs_listener(compiles.on_event)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "run_loop", watched_loop)
            # Whoever makes the step, a driver or a method's file.
            for each in [x for name, x in sys.modules.items() if name.startswith("rlhf_jax.")]:
                if vars(each).get("make_train_step") is make_step:
                    patch.setattr(each, "make_train_step", watched_step)
            module.run(Settings(config, read), str(workdir))
    except InterruptedRunError:
        pass
    finally:
        jax.monitoring.unregister_event_duration_listener(compiles.on_event)
    return read, compiles
