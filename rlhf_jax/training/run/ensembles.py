"""Several models trained in one program: members that start alike but for their seed, each with its own optimizer.

Their parameters are stacked, so that every leaf has the members as its first axis, and one compiled step moves all.
What is frozen beside adapters exists once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from rlhf_jax.errors import UserError, read_object
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.huggingface.import_folder import ENSEMBLE
from rlhf_jax.models.lora import joined
from rlhf_jax.models.model import COMBINE
from rlhf_jax.objectives.reduce import Mean
from rlhf_jax.parallel import startup
from rlhf_jax.training.checkpoints.object_stores import at, write_text
from rlhf_jax.training.loop.state import TrainState
from rlhf_jax.training.loop.step import LossFn, Metrics, StepFunction
from rlhf_jax.training.run.offline import Members


def members_of(config: ConfigDict, start: Callable[[Params, int], Params] | None) -> Members | None:
    """The ensemble that a page asks for by `members`, if it does; start: None where members start as they are read.

    Every member has its own seed, for its head, its adapter and, with `member_order`, the order of its rows.
    """
    own_order = config.member_order
    if config.members == 1:
        return None
    if start is None and not own_order and not config.lora.rank:
        raise UserError(
            f"members: {config.members} would all be the same: they start from the score head of "
            f"{config.model.init} and see the same batches; set member_order=true, or start from a language model"
        )
    return Members(
        config.members,
        own_order,
        start or (lambda params, _: params),
        stacked,
        planned_stack,
        member_of,
        side_by_side(config.members, own_order=own_order),
        mean_over_members,
    )


def side_by_side(count: int, *, own_order: bool) -> Callable[[StepFunction], StepFunction]:
    """Makes a train step of one model that of all members: on stacked parameters and optimizer state.

    Each is clipped, moved and skipped as if it were alone; what is frozen is the same for all, and metrics are means.
    Where members have orders of their own row b of member m is row b * count + m of the batch.
    """

    def around(step: StepFunction) -> StepFunction:
        def all_members(state: TrainState, batch: Any, frozen: Any) -> tuple[TrainState, Metrics]:
            def one(params: Params, opt_state: Any, batch: Any) -> tuple[Params, Any, jax.Array, Metrics]:
                new, metrics = step(state.replace(params=params, opt_state=opt_state), batch, frozen)
                return new.params, new.opt_state, new.step, metrics

            if own_order:
                # Members alternate in the batch, so that this moves no row to another device.
                batch = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]), batch)
            per_member = jax.vmap(one, in_axes=(0, 0, 1 if own_order else None))
            params, opt_state, step_M, metrics = per_member(state.params, state.opt_state, batch)
            found = {name: x.mean(0) for name, x in metrics.items()}
            # One member that diverged is enough for the loop to stop and keep the batch.
            found["nonfinite"] = metrics["nonfinite"].max(0)
            return state.replace(params=params, opt_state=opt_state, step=step_M.max(0)), found

        return all_members

    return around


def stacked(members: Sequence[Any]) -> Any:
    """Stacks equal trees of arrays on a mesh along a new first axis, which is not split."""
    where = jax.tree.map(_with_axis, members[0])
    return jax.jit(lambda *found: jax.tree.map(lambda *x: jnp.stack(x), *found), out_shardings=where)(
        *members
    )


def planned_stack(member: Any, count: int) -> Any:
    """What `stacked` makes of `count` trees like this one of shapes with shardings."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype, sharding=_with_axis(x)), member
    )


def member_of(params: Params, number: int) -> Params:
    """The parameters of one member."""
    return jax.tree.map(lambda x: x[number], params)


def mean_over_members(loss_fn: LossFn) -> Callable[[tuple[Params, Params], Any], dict[str, Mean]]:
    """The loss and the other means of all members on one batch, together: for evaluations.

    Its parameters are (what is frozen, what is trained of all members).
    """

    def all_members(params: tuple[Params, Params], batch: Any) -> dict[str, Mean]:
        frozen, trained = params
        means = jax.vmap(lambda one: loss_fn(joined(frozen, one), batch))(trained)
        return jax.tree.map(lambda x: x.sum(0), means)

    return all_members


def write_ensemble(workdir: str, count: int, combine: str, combine_coef: float) -> None:
    """Writes the file that makes one reward model of the folders member_0, member_1, ... of WORKDIR/export."""
    found = {
        "members": [folder_name(m) for m in range(count)],
        "combine": combine,
        "combine_coef": combine_coef,
    }
    if startup.is_main():
        write_text(at(workdir) / "export" / ENSEMBLE, json.dumps(found, indent=2) + "\n")
    # The job that follows may read the folder on another machine.
    startup.barrier("ensemble")


def read_ensemble(folder: str) -> tuple[tuple[str, ...], str, float] | None:
    """(the members' folders, how their scores are combined, its coefficient); None of a folder with one model.

    Raises UserError for a file that does not say so, and for a member that is not there.
    """
    path = Path(folder) / ENSEMBLE
    if not path.is_file():
        return None
    raw = read_object(path)
    names, combine, coef = raw.get("members"), raw.get("combine", COMBINE[0]), raw.get("combine_coef", 0.0)
    if not (isinstance(names, list) and len(names) > 1 and all(isinstance(name, str) for name in names)):
        raise UserError(f"{path}: members is {names!r}; a list of two or more folders is needed")
    if combine not in COMBINE:
        raise UserError(f"{path}: combine is {combine!r}; use one of {', '.join(COMBINE)}")
    if isinstance(coef, bool) or not isinstance(coef, int | float) or not coef >= 0:
        raise UserError(f"{path}: combine_coef is {coef!r}; a number of at least 0 is needed")
    folders = tuple(str(Path(folder) / name) for name in names)
    for name in folders:
        if not Path(name).is_dir():
            raise UserError(
                f"{path}: names {name}, which is not there; copy the whole folder of the ensemble"
            )
    return folders, combine, float(coef)


def folder_name(member: int) -> str:
    """The folder of a member within the ensemble's."""
    return f"member_{member}"


def _with_axis(x: Any) -> NamedSharding:
    return NamedSharding(x.sharding.mesh, PartitionSpec(None, *x.sharding.spec))
