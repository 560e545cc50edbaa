"""Config pages: finding one, choosing its variant, and explaining an override that does not fit."""

from __future__ import annotations

import difflib
import importlib.util
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from rlhf_jax.errors import UserError

PAGES = Path(__file__).resolve().parents[1] / "configs"
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "tuple": "a tuple",
}


def load_page(spec: str) -> ConfigDict:
    """The ConfigDict of `FILE.py` or `FILE.py:VARIANT`; UserError when there is no such file or variant."""
    path, _, variant = spec.partition(":")
    if not Path(path).is_file():
        pages = ", ".join(sorted(str(p) for p in Path("configs").glob("*.py"))) or "none in ./configs"
        raise UserError(f"--config: no file {path}; pages here: {pages}")
    module_spec = importlib.util.spec_from_file_location(f"rlhf_jax_config_{Path(path).stem}", path)
    if module_spec is None:
        raise UserError(f"--config: {path} is no page; a page is a file NAME.py")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise UserError(f"--config: {path} is no page; it needs a function get_config")
        page = module.get_config(variant) if variant else module.get_config()
    except UserError:
        raise
    except Exception as error:  # A page is a program: whatever it raises is its writer's to mend.
        raise UserError(f"--config: {path} is no page: {_reason(error, path)}") from error
    if not isinstance(page, ConfigDict) or not isinstance(page.get("job"), str):
        raise UserError(
            f"--config: {path} is no page; its get_config should return a ConfigDict with a field `job`, as "
            "configs/sft.py does"
        )
    return page


_WRONG_KIND = re.compile(
    r"Could not override field '(\w+)'.*?\. (.*) is of original type <class '([\w.]+)'> and cannot be casted to "
    r"type <class '(\w+)'>"
)


def _reason(error: Exception, path: str) -> str:
    """What went wrong in a page, in one line, and in which of its lines."""
    frames = [x for x in traceback.extract_tb(error.__traceback__) if Path(x.filename) == Path(path)]
    where = f"line {frames[-1].lineno}: " if frames else ""
    wrong = _WRONG_KIND.search(" ".join(str(error).split()))
    if wrong:
        field, value, kind, wanted = wrong.groups()
        public = re.sub(r"\._\w+", "", kind)  # pathlib._local.PosixPath, on newer Pythons
        return f"{where}{field}: {value} is {public}; it takes {_KINDS.get(wanted, wanted)}"
    return f"{where}{type(error).__name__}: {' '.join(str(error).split())}"


def check_fields(page: ConfigDict) -> None:
    """Raises UserError for a field that the job's own page does not have, or that it has and this one lacks."""
    known, found = stock(page.job), set(leaves(page))
    for name in sorted(found - known.keys() if known else ()):
        raise UserError(f"{name}: the job {page.job} has no such field{closest(name, known)}")
    for name in sorted(known.keys() - found):
        raise UserError(f"{name}: missing; a page of the job {page.job} needs it, see configs/{page.job}.py")


def changed(page: ConfigDict) -> set[str]:
    """The fields of a user's own page that have other values than the job's own page gives them."""
    known, here = stock(page.job), page.to_dict()
    return {name for name in leaves(page) if name in known and value_at(here, name) != known[name]}


def stock(job: str) -> dict[str, Any]:
    """The fields of a job's own page and their values; none where the pages do not lie beside the program."""
    path = PAGES / f"{job}.py"
    if not path.is_file():
        return {}
    page = load_page(str(path))
    return {name: value_at(page.to_dict(), name) for name in leaves(page)}


def value_at(page: Mapping[str, Any], name: str) -> Any:
    """The value of a field by its dotted name."""
    for part in name.split("."):
        page = page[part]
    return page


def is_own(argv: list[str]) -> bool:
    """Whether the page of a command line is a user's own, and not one of ours."""
    return Path(_page_of(argv).partition(":")[0]).resolve().parent != PAGES


def sibling(file: str, name: str, variant: str = "") -> ConfigDict:
    """The page `name` in the folder of the page `file`; how one page builds on others."""
    return load_page(f"{Path(file).with_name(name)}.py" + (f":{variant}" if variant else ""))


def choose_variant(variant: str, variants: Mapping[str, Callable[[], ConfigDict]]) -> ConfigDict:
    """Builds the named variant of a page; UserError naming those there are."""
    if variant not in variants:
        raise UserError(
            f"--config: no variant {variant!r}{closest(variant, variants)}; variants: {', '.join(variants)}"
        )
    return variants[variant]()


def closest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` or nothing."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]}?" if matches else ""


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """Dotted names of every field that holds a value."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def check_overrides(argv: list[str]) -> None:
    """Raises UserError for the first `--config.x.y=` whose field the page does not have.

    The flag library says only that some key is missing; a user wants to hear which field was meant.
    """
    page = _page_of(argv)
    known = list(leaves(load_page(page)))
    groups = {name.rsplit(".", i)[0] for name in known for i in range(1, name.count(".") + 1)}
    for argument in argv:
        flag = argument.lstrip("-").split("=", 1)[0].removeprefix("no")
        if not flag.startswith("config."):
            continue
        field = flag.removeprefix("config.")
        if field in groups:
            raise UserError(f"--{flag}: a group of fields; set one of {', '.join(_below(field, known))}")
        if field not in known:
            raise UserError(
                f"--{flag}: no such field in {page}{closest(field, known) or _same_leaf(field, known)}"
            )


def _below(group: str, known: list[str]) -> list[str]:
    return [f"--config.{name}" for name in known if name.startswith(group + ".")]


def _same_leaf(field: str, known: list[str]) -> str:
    leaf = field.rsplit(".", 1)[-1]
    matches = difflib.get_close_matches(leaf, [name.rsplit(".", 1)[-1] for name in known], n=1)
    full = next((name for name in known if matches and name.rsplit(".", 1)[-1] == matches[0]), None)
    shown = dict.fromkeys(f"{name.split('.')[0]}.*" if "." in name else name for name in known)
    return f"; did you mean {full}?" if full else f"; fields: {', '.join(shown)}"


def explain(error: flags.Error, argv: list[str]) -> str:
    """One line for a flag that did not parse: the field, what it got, and its kind and default."""
    text = str(error).replace("\n", " ")
    if not text.startswith("flag --config.") or "=" not in text:
        return text
    field, _, rest = text.removeprefix("flag --config.").partition("=")
    value = rest.split(":", 1)[0]
    default = value_at(load_page(_page_of(argv)), field)
    kind = _KINDS.get(type(default).__name__, type(default).__name__)
    return f"--config.{field}: {value!r} does not fit; it takes {kind}, by default {default!r}"


def _page_of(argv: list[str]) -> str:
    """What `--config=PAGE` or `--config PAGE` names."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, _, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config" and (value or following):
            return value or following
    raise UserError("--config: missing; use for example --config=configs/farm.py")
