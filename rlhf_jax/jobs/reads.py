"""What each job reads: the fields that name a file, a folder or an environment, and the command that makes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rlhf_jax.jobs import hints

Page = Mapping[str, Any]

# Kinds of what a field names. A table is a file or folder of records, or a dataset of the hub.
TABLE, TABLES, NAMED_TABLES = "table", "tables", "named tables"  # One; comma-separated; NAME=TABLE,...
FILE = "file"
# Any folder that a model is read from; PEFT's; any tensors.
MODEL, ADAPTER, WEIGHTS = "model", "adapter", "weights"
TOKENIZER = "tokenizer"


class Read(NamedTuple):
    """A field that names what a job reads; "" is nothing.

    made_by: the command, or what gives it for the NAME and PATH of a table. when: of a page, whether it is read there.
    over: of an adapter, the field of the model that it is laid over.
    """

    field: str
    kind: str
    made_by: str | Callable[[str, str], str] = ""
    when: Callable[[Page], bool] = lambda page: True
    over: str = ""


def _asks(page: Page) -> bool:
    return not page["judged"]


def _knows_truth(page: Page) -> bool:
    return page["utility"] and not page["judged"]


def _split(made_by: str) -> tuple[Read, ...]:
    return Read("data.train", TABLE, made_by), Read("data.eval", TABLE, made_by)


def _model(field: str, made_by: str, adapter: str = "model.adapter") -> tuple[Read, ...]:
    return Read(field, MODEL, made_by), Read(adapter, ADAPTER, made_by, over=field)


READS: dict[str, tuple[Read, ...]] = {
    "sft": (
        *_split(hints.FARM),
        *_model("model.init", hints.SFT),
        Read("model.tokenizer", TOKENIZER, hints.FARM, lambda page: not page["model"]["init"]),
    ),
    "reward_model": (
        *_split(hints.LABELS),
        *_model("model.init", hints.SFT),
        Read("center_on", TABLE, hints.FARM),
    ),
    "dpo": (
        *_split(hints.LABELS),
        *_model("model.init", hints.SFT),
    ),
    "ppo": (
        *_split(hints.FARM),
        *_model("model.policy", hints.SFT),
        *_model("model.reward", hints.REWARD_MODEL, adapter="model.reward_adapter"),
    ),
    "generate": (
        Read("data.prompts", TABLE, hints.FARM),
        *_model("model.path", hints.SFT),
    ),
    "score": (
        Read("data.responses", TABLE, hints.PAIRS),
        *_model("model.path", hints.REWARD_MODEL),
    ),
    "inspect_data": (
        Read("data.path", TABLE, hints.FARM),
        Read("tokenizer", TOKENIZER, hints.FARM),
    ),
    "weight_diff": (
        Read("base", WEIGHTS, hints.SFT),
        Read("diff", WEIGHTS, hints.SFT),
        Read("target", WEIGHTS, hints.SFT),
    ),
    "annotate": (
        *(Read(field, TABLE, hints.PAIRS) for field in ("samples", "pairs", "ratings", "rankings")),
        Read("outputs_1", TABLE, hints.OUTPUTS, lambda page: bool(page["outputs_2"])),
        Read("outputs_2", TABLE, hints.OUTPUTS),
        Read("instructions", TABLE, hints.FARM),
        Read("feedback", FILE),
        Read("import_answers", FILE),
    ),
    "evaluate": (
        Read("outputs", NAMED_TABLES, hints.outputs, _asks),
        Read("baseline", TABLE, hints.outputs, _asks),
        Read("judged", NAMED_TABLES),
        Read("difficulty", TABLE),
        Read("regulariser", TABLE),
        Read("published", FILE),
        Read("labels", FILE, f"{hints.LABELS} (--config.labels= leaves it out)", _knows_truth),
        Read("scored", FILE, f"{hints.SCORES} (--config.scored= leaves it out)", _knows_truth),
        Read("import_answers", FILE, "", _asks),
    ),
    "measure": (
        Read("games", TABLES),
        Read("annotators", NAMED_TABLES),
        Read("gold", TABLE),
        Read("ratings", NAMED_TABLES),
        Read("baseline", TABLE, "", lambda page: bool(page["ratings"])),
        Read("rankings", TABLE),
    ),
    "farm": (Read("world.instructions", TABLE),),
}
# Files that a job writes beside its workdir, and folders.
WRITES = {
    "annotate": ("cache", "export_answers"),
    "evaluate": ("cache", "export_answers"),
    "dpo": ("reference_cache",),
}
# Jobs that ask judges, and when.
ASKS: dict[str, Callable[[Page], bool]] = {
    "annotate": lambda page: not page["feedback"],
    "evaluate": lambda page: not page["judged"],
}
# Jobs whose workdir may lie in an object store.
REMOTE = ("sft", "reward_model", "dpo", "ppo")
