"""What decides the result of a stage, as one hash: a finished stage is reused as long as it stays the same.

It is made of the stage's settings, of the files from outside of the study that it reads, of the judges that it asks,
and of the very runs of the stages that it reads. A stage that was run again, for whatever reason, is a new run, and so
all that was made of the old one is made again. Other stages are not asked: a new `kl_coef` of PPO leaves DPO alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rlhf_jax.data.files.splits import local_path
from rlhf_jax.feedback.running_judge import judges_of
from rlhf_jax.jobs.study.study_stages import Stage, real_folders, stages_below
from rlhf_jax.training.checkpoints import workdir as folders
from rlhf_jax.training.run import missing_inputs


def fingerprint(stage: Stage, root: Path, stages: Iterable[str]) -> str:
    """The hash of a stage whose upstream stages are all finished.

    root: the study's workdir, which is not part of the hash: a study that is moved or copied is still finished.
    stages: the names of all stages.
    """
    about = {
        "settings": stage.written.to_dict(),
        "runs": {name: folders.finished_run(root / name) for name in stage.upstream},
        "files": {field: folders.digest(path) for field, path in _files(stage, root, stages)},
        "other": _others(stage),
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


def _others(stage: Stage) -> Any:
    """What else decides a stage's result, as its program says it; of evaluations that are judged their judges."""
    page, reads_too = stage.config.to_dict(), stage.program.NEEDS.reads_too
    if reads_too is not None:
        return reads_too(page)
    # Methods on fixed rows know of no judge (see `offline.open_win_rate`), and a file of judges may name others.
    judges = page.get("win_rate", {}).get("judges")
    return judges_of(judges) if judges else None


def _files(stage: Stage, root: Path, stages: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """(field and path, the path on this disk) of all that a stage reads from outside of the study."""
    below = real_folders({name: str(root / name) for name in stages})
    for row, _, source in missing_inputs.inputs_of(stage.program.NEEDS, stage.config.to_dict()):
        path = local_path(source)
        if path.exists() and not stages_below([str(path)], below):
            yield f"{row.field} {source}", path
