"""Checkpoints: an Orbax CheckpointManager that keeps the last and the best, and survives kills and damage.

checkpoints/<step>/{state,meta}    step: finished iterations. meta: the run's config, the scores so far.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from rlhf_jax.errors import UserError, problem_of_machine
from rlhf_jax.parallel import startup
from rlhf_jax.training.checkpoints.object_stores import workdir_name
from rlhf_jax.training.checkpoints.workdir import flatten

# Fields that may differ when a run goes on: none of them changes what an iteration computes. The length of a
# run is not among them: a learning rate that falls to its end would jump.
MAY_CHANGE = (
    "log_every",
    "eval_every",
    "save_every",
    "keep_checkpoints",
    "keep_best",
    "mesh",
    "rollout.tensor",
    "rollout.offload",
    "distributed",
    "tensorboard",
    "wandb_project",
    "data.token_cache",
    # How fast judges are asked, and what they may cost; their answers are the same.
    *(
        f"{group}.{name}"
        for group in ("reward", "win_rate")
        for name in ("max_usd", "max_concurrency", "cache", "requests_per_minute", "tokens_per_minute")
    ),
    *("reward.timeout_s", "win_rate.timeout_s"),
)
_ABSENT = "absent"
# What Orbax says of a whole checkpoint of another tree, which is no damage.
_OTHER_PARTS = "tree structures do not match"


class Restored(NamedTuple):
    """A state that was read back.

    step: finished iterations. evaluated: whether this state was evaluated before it was saved.
    """

    step: int
    state: PyTree
    evaluated: bool


class Checkpoints:
    """The checkpoints of one workdir. A context manager: leaving it waits for the last save to be complete.

    config: what the run depends on, nested or flat: its config, and `workdir.digest` of what it reads. A run
        does not continue from a checkpoint whose config differs in a field outside `may_change`. An entry of
        `may_change` is a dotted name, or a group and so all fields in it.
    keep: how many of the last checkpoints stay. With 1, damage to the only one costs the run.
    best_metric: name of an evaluation metric; checkpoints where it is best stay too. "": none.
    best_mode: "max" or "min".
    keep_best: how many of the best stay.
    """

    def __init__(
        self,
        workdir: str | PurePath,
        *,
        config: Mapping[str, Any],
        may_change: Iterable[str] = MAY_CHANGE,
        keep: int = 2,
        best_metric: str = "",
        best_mode: str = "max",
        keep_best: int = 1,
    ) -> None:
        self.best_metric, self._keep_best = best_metric, keep_best
        self._directory = epath.Path(workdir_name(workdir)) / "checkpoints"
        # Flat, so that `may_change` can name a field or a group, and an error the field that differs.
        self._config = flatten(config)
        self._may_change = tuple(may_change)
        self._sign = 1.0 if best_mode == "max" else -1.0
        self._scores: dict[int, float] = {}
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_LastAndBest(keep, self),
            # What a killed process left half written.
            cleanup_tmp_directories=True,
            # Orbax need not read times and metrics of all checkpoints: the scores are in our own meta.
            lightweight_initialize=True,
        )
        try:
            self._manager = ocp.CheckpointManager(self._directory, options=options)
        except OSError as e:
            raise UserError(f"{self._directory}: cannot be written ({e.strerror or e})") from e

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        finally:
            self._manager.close()

    def latest_step(self) -> int | None:
        """The newest checkpoint; None when there is none."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The checkpoint where `best_metric` was best, the later one of equals; None if there is none."""
        # Only those that are there: the best may not have been saved before a kill.
        return next(iter(self._best_of(self._manager.all_steps())), None)

    def record(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Takes note of an evaluation. True when it is among the best so far: then this step should be saved."""
        if not self.best_metric:
            return False
        if self.best_metric not in metrics:
            close = difflib.get_close_matches(self.best_metric, metrics, n=1)
            hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(sorted(metrics))}"
            raise UserError(f"best_metric: {self.best_metric!r} is not measured; {hint}")
        self._scores[step] = float(metrics[self.best_metric])
        return step in self._best_of(self._scores)

    def save(self, step: int, state: PyTree, *, evaluated: bool = False) -> None:
        """Writes a checkpoint in the background, after the one before; does nothing when this step has one.

        Raises UserError when the one before could not be written.
        """
        if step in self._manager.all_steps():
            return
        # One save at a time. Orbax would wait in `save`, too, and its error would name the wrong step.
        self.wait()
        # The scores of all evaluations go along, so that a resumed run knows the best of them.
        meta = {
            "config": self._config,
            "scores": {str(k): v for k, v in self._scores.items()},
            "evaluated": evaluated,
        }
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        try:
            self._manager.save(step, args=args, force=True)
        except (OSError, ValueError, RuntimeError) as e:
            raise self._unsaved(step, e) from e

    def wait(self) -> None:
        """Returns when every save is complete on disk. UserError when one failed."""
        # The step is asked for first: a failed save is forgotten by the manager.
        step = self.latest_step()
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as e:
            raise self._unsaved(step, e) from e

    def restore(self, like: PyTree) -> Restored | None:
        """Restores the newest readable checkpoint; None when there is no checkpoint at all.

        like: the state, or its `state.abstract`; arrays come back with these shardings, on any device count.
        A damaged checkpoint is said, moved aside (to <step>.damaged), and the one before it taken.
        Raises UserError when the run that wrote it had another config, or when none can be read.
        """
        damaged: list[tuple[int, Exception]] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                meta = self._restore(step, meta=ocp.args.JsonRestore())["meta"]
                self._check_config(step, meta["config"])
                # After the config, because a state of another model fails with a mere shape error.
                state = self._restore(step, state=ocp.args.StandardRestore(like))["state"]
            except UserError:
                raise
            # Orbax and TensorStore raise almost anything on broken files.
            except Exception as e:
                if _OTHER_PARTS in str(e):
                    raise UserError(
                        f"{self._directory / str(step)}: written by another version, whose state has other parts; end "
                        f"the run with that, or start another --workdir from this model: {self._directory.parent}"
                    ) from e
                damaged.append((step, e))
                continue
            # Only when an older one could be read: on a disk that is away all of them look damaged.
            self._move_aside(damaged)
            self._scores = {int(k): v for k, v in meta["scores"].items()}
            return Restored(step, state, meta["evaluated"])
        if damaged:
            raise UserError(
                f"{self._directory}: none of {len(damaged)} checkpoints can be read "
                f"({_first_line(damaged[0][1])}); delete the folder to start from the beginning"
            )
        return None

    def restore_best(self, like: PyTree) -> Restored | None:
        """Restores the checkpoint of `best_step`; None if there is none. Scores are known after `restore` or a run."""
        step = self.best_step()
        if step is None:
            return None
        return Restored(
            step, self._restore(step, state=ocp.args.StandardRestore(like))["state"], evaluated=True
        )

    def _restore(self, step: int, **items: Any) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**items))

    def _best_of(self, steps: Iterable[int]) -> list[int]:
        """The best `keep_best` of them, the best first."""
        # A NaN compares with nothing, and would end up anywhere in the order.
        scored = [s for s in steps if math.isfinite(self._scores.get(s, math.nan))]
        ranked = sorted(scored, key=lambda s: (self._sign * self._scores[s], s), reverse=True)
        return ranked[: self._keep_best]

    def _check_config(self, step: int, saved: Mapping[str, Any]) -> None:
        def fixed(name: str) -> bool:
            return not any(name == free or name.startswith(f"{free}.") for free in self._may_change)

        # Fields of either side: one that was added or removed since is a difference, too.
        names = sorted(filter(fixed, {*saved, *self._config}))
        changed = [n for n in names if saved.get(n, _ABSENT) != self._config.get(n, _ABSENT)]
        if changed:
            shown = [
                f"{n} was {saved.get(n, _ABSENT)!r}, is {self._config.get(n, _ABSENT)!r}" for n in changed[:4]
            ]
            more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
            # A page has all fields of its version, so that one which is absent is of another one.
            version = any(n not in saved or n not in self._config for n in changed)
            by = "another version, or a run with" if version else "a run with"
            raise UserError(
                f"{self._directory / str(step)}: written by {by} another config: "
                f"{'; '.join(shown)}{more}; use another --workdir or delete {self._directory.parent}"
            )

    def _move_aside(self, damaged: Sequence[tuple[int, Exception]]) -> None:
        if not damaged:
            return
        if startup.is_main():
            for step, error in damaged:
                source, n = self._directory / str(step), 0
                while (target := self._directory / f"{step}.damaged{n or ''}").exists():
                    n += 1
                source.rename(target)
                print(
                    f"notice: checkpoint {source} is damaged ({_first_line(error)}); moved to {target.name}",
                    flush=True,
                )
        startup.barrier("damaged checkpoints moved")
        # Orbax lists the folder once and remembers; the steps that were moved must not count as there.
        self._manager.reload()

    def _unsaved(self, step: int | None, error: Exception) -> UserError:
        problem = problem_of_machine(error) or f"{_first_line(error)}; free space there"
        return UserError(f"{self._directory}: checkpoint {step} could not be written: {problem}")


class Chosen(NamedTuple):
    """The folder of the checkpoint that a workdir stands for, and why: "the best eval/loss", or "the last"."""

    folder: Path
    why: str


def chosen_checkpoint(workdir: str | Path) -> Chosen | None:
    """The checkpoint of which a workdir's export is made, or would be now; None when there is no checkpoint.

    That is the best of those that were kept, where the run has a `best_metric` and has measured it; else the last.
    """
    # Read from the files alone: a CheckpointManager might clean up in a folder that another run is using.
    folder = Path(workdir) / "checkpoints"
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    if not steps:
        return None
    last = folder / str(max(steps))
    meta = _meta(last)
    metric = meta["config"].get("best_metric", "")
    sign = 1.0 if meta["config"].get("best_mode", "max") == "max" else -1.0
    scores = {int(step): sign * score for step, score in meta["scores"].items() if math.isfinite(score)}
    there = [step for step in steps if step in scores]
    if not metric or not there:
        return Chosen(last, "the last")
    # Of equals the later one, as in `Checkpoints.best_step`.
    return Chosen(folder / str(max(there, key=lambda step: (scores[step], step))), f"the best {metric}")


def _meta(checkpoint: Path) -> dict[str, Any]:
    try:
        return json.loads((checkpoint / "meta" / "metadata").read_text())
    except (OSError, ValueError) as e:
        raise UserError(f"{checkpoint}: not a readable checkpoint ({_first_line(e)})") from e


def params_shapes(checkpoint: str | Path) -> PyTree:
    """Reads the shapes of a checkpoint's parameters, as a nested dict. UserError when it cannot be read."""
    return jax.tree.map(lambda x: tuple(x.shape), _tree(checkpoint)["params"])


def restore_params(checkpoint: str | Path, like: PyTree) -> PyTree:
    """Reads the parameters of a checkpoint, or those below `like`'s keys, and nothing else of the state.

    Where the optimizer kept an average of them that is read, since it is what is evaluated and exported.
    like: a tree of shapes with shardings; arrays come back so, whatever mesh the checkpoint was written on.
    """
    where = _average_at(_tree(checkpoint)["opt_state"], ("opt_state",), tuple(like)) or ("params",)
    # The parameters may lie deep in the optimizer's state: their path is wrapped around, and unwrapped below.
    item = like
    for name in reversed(where):
        item = {name: item}
    args = ocp.args.PyTreeRestore(
        item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
    )
    # StandardRestore wants the whole state; this handler reads the branch that is asked for.
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        found = reader.restore(epath.Path(checkpoint) / "state", args=args)
    for name in where:
        found = found[name]
    return found


def _tree(checkpoint: str | Path) -> dict[str, PyTree]:
    try:
        found = ocp.PyTreeCheckpointHandler().metadata(epath.Path(checkpoint) / "state").tree
        return {name: found[name] for name in ("params", "opt_state")}
    except (OSError, ValueError, KeyError) as e:
        raise UserError(f"{checkpoint}: not a readable checkpoint ({_first_line(e)})") from e


def _average_at(tree: PyTree, path: tuple[str, ...], wanted: tuple[str, ...]) -> tuple[str, ...]:
    """The path in an optimizer's state to the average (`EmaState`) of the wanted parameters; () if there is none."""
    # Orbax gives names and not classes: a node with `average` and `inner` is an EmaState, partitioned or not.
    if not isinstance(tree, dict):
        return ()
    average = tree.get("average")
    if (
        "inner" in tree
        and isinstance(average, dict)
        and all(average.get(name) is not None for name in wanted)
    ):
        return (*path, "average")
    for name, part in tree.items():
        if found := _average_at(part, (*path, name), wanted):
            return found
    return ()


class _LastAndBest:
    """Orbax's preservation policy: keeps the last checkpoints and the best ones.

    Called with the checkpoints that are there when a new one has begun.
    """

    def __init__(self, keep: int, checkpoints: Checkpoints) -> None:
        self._keep, self._checkpoints = keep, checkpoints

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        steps = [info.step for info in checkpoints]
        kept = {*sorted(steps)[-self._keep :], *self._checkpoints._best_of(steps)}
        return [step in kept for step in steps]


def _first_line(e: Exception) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0][:160]
