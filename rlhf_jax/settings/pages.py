"""Config pages: finding a page's file, running it, choosing its variant, and building one page on others."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import re
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from rlhf_jax.errors import UserError

PAGES = Path(__file__).resolve().parents[2] / "configs"
KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "tuple": "a tuple",
}


def load_page(spec: str) -> ConfigDict:
    """Builds the ConfigDict of `FILE.py` or `FILE.py:VARIANT`; UserError when there is no such file or variant."""
    # ml_collections reads --config=FILE.py:VARIANT in the same way and gives VARIANT to get_config.
    path, _, variant = spec.partition(":")
    if not Path(path).is_file():
        raise UserError(f"--config: no file {path}; {_pages_here()}")
    try:
        module = _run_file(Path(path))
        build = getattr(module, "get_config", None)
        if not callable(build):
            raise UserError(f"--config: {path} is no page; {_missing(path)}; {_pages_here()}")
        if variant and not inspect.signature(build).parameters:
            raise UserError(f"--config: {path} has no variants; leave out :{variant}")
        page = build(variant) if variant else build()
    except UserError:
        raise
    # A page is a program, and whatever it raises is for its writer to mend: no traceback of ours helps.
    except Exception as error:
        raise UserError(f"--config: {path} is no page: {_reason(error, path)}") from error
    if not isinstance(page, ConfigDict) or not isinstance(page.get("job"), str):
        raise UserError(
            f"--config: {path} is no page; its get_config should return a ConfigDict with a field `job`, as "
            "configs/sft.py does"
        )
    return page


def module_beside(file: str, name: str) -> ModuleType:
    """Runs NAME.py in the folder of the page `file`, as in `common = module_beside(__file__, "common")`.

    Pages are files that are run by their path and no package that could be imported from. Where the folder has no such
    file, as beside a user's own page, it is ours in configs/.
    """
    return _run_file(_file_beside(file, name))


def sibling(file: str, name: str, variant: str = "") -> ConfigDict:
    """Builds the page `name` of the folder of the page `file`, such as "sft" or "../../sft", to build another on it."""
    return load_page(str(_file_beside(file, name)) + (f":{variant}" if variant else ""))


def choose_variant(variant: str, variants: Mapping[str, Callable[[], ConfigDict]]) -> ConfigDict:
    """Builds the named variant of a page, the first of which is its default; UserError naming those there are."""
    if variant in variants:
        return variants[variant]()
    recipes = papers_of(next(iter(variants.values()))().get("job", ""))
    # Papers' recipes used to be variants; somebody who still writes one is told where it is now.
    for recipe in recipes:
        if variant.startswith(Path(recipe).parent.name):
            raise UserError(f"--config: no variant {variant!r}; this recipe is a page of its own: {recipe}")
    papers = f"; papers' recipes are pages of their own: {', '.join(recipes)}" if recipes else ""
    raise UserError(
        f"--config: no variant {variant!r}{closest(variant, variants)}; variants: {', '.join(variants)}{papers}"
    )


def papers_of(job: str) -> list[str]:
    """Lists the pages of the papers' recipes for a job, as they are written behind `--config=`."""
    return [str(path.relative_to(PAGES.parent)) for path in sorted(PAGES.glob(f"papers/*/{job}.py"))]


def closest(name: str, known: Iterable[str]) -> str:
    """Returns "; did you mean X?" for the known name that is closest, or nothing."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]}?" if matches else ""


def _file_beside(file: str, name: str) -> Path:
    beside = (Path(file).parent / f"{name}.py").resolve()
    return beside if beside.is_file() else PAGES / beside.name


def _run_file(path: Path) -> ModuleType:
    """Runs a file and returns it as a module, anew each time, so that no page sees what another one changed in it."""
    module_spec = importlib.util.spec_from_file_location(f"rlhf_jax_config_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"--config: {path} is no page; a page is a file NAME.py")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def _missing(path: str) -> str:
    shared = Path(path).resolve() == PAGES / "common.py"
    return "it holds what pages share" if shared else "it needs a function get_config"


def _pages_here() -> str:
    """The pages in ./configs, for those who have named something else. Not every file there is one."""
    files = sorted(Path("configs").glob("*.py"))
    pages = [str(path) for path in files if b"def get_config(" in path.read_bytes()]
    return f"pages here: {', '.join(pages) or 'none in ./configs'}"


# What ml_collections says when a field is set to a value of another kind, with the names of Python's classes.
_WRONG_KIND = re.compile(
    r"Could not override field '(\w+)'.*?\. (.*) is of original type <class '([\w.]+)'> and cannot be casted to "
    r"type <class '(\w+)'>"
)


def _reason(error: Exception, path: str) -> str:
    """What went wrong in a page, in one line, and in which of its lines."""
    page = Path(path).resolve()
    frames = [x for x in traceback.extract_tb(error.__traceback__) if Path(x.filename).resolve() == page]
    where = f"line {frames[-1].lineno}: " if frames else ""
    wrong = _WRONG_KIND.search(" ".join(str(error).split()))
    if wrong:
        field, value, kind, wanted = wrong.groups()
        # Newer Pythons print private modules: pathlib._local.PosixPath.
        public = re.sub(r"\._\w+", "", kind)
        return f"{where}{field}: {value} is {public}; it takes {KINDS.get(wanted, wanted)}"
    return f"{where}{type(error).__name__}: {' '.join(str(error).split())}"
