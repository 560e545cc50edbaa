"""Parses a judge's request: finds the examples in its text and the form of answer that it asks for.

Two layouts are understood. The tagged one is what our annotation templates write:

    <instruction>\\n...\\n</instruction>  <output_a>\\n...\\n</output_a>  <output_b>\\n...\\n</output_b>

with a single `<output>` when a rating is asked for, `<output_1>`, `<output_2>`, ... when several are ranked, and
`<example_1>...</example_1>` blocks around several examples packed into one request. The other is AlpacaFarm's:
Markdown headings "Instruction:", "Input:", "Output (a):", "Output (b):". The form of the answer is looked for
outside the data only, so a response that quotes the answer sentence changes nothing.
"""

import re
from dataclasses import dataclass

FORMS = ("choice", "sentence", "cot_json", "ranking", "rating", "order")

_TAGS = r"(?:instruction|output_[ab]|output_\d+|output|example_\d+)"
# The back-reference \1 makes a block end at its own closing tag, and the lazy .*? at the first of these.
_BLOCK = re.compile(rf"<({_TAGS})>\n(.*?)\n?</\1>", re.DOTALL)
_PART = re.compile(r"<(instruction|output_[ab]|output_\d+|output)>\n(.*?)\n?</\1>", re.DOTALL)
_EXAMPLE = re.compile(r"<example_(\d+)>\n(.*?)\n</example_\1>", re.DOTALL)
# Whoever writes the tags escapes whatever looks like one in the data, in any case and spacing.
_ESCAPED_TAG = re.compile(r"&((?:amp;)*)lt;(?=\s*(?:/\s*)?(?i:instruction|output(?:_\w+)?|example_\w+)\b)")

_HEADING = re.compile(
    r"^#{1,4} *(?:(?P<part>Instruction|Input|Output \((?P<side>[ab])\))|Example \d+|Task"
    r"|Which is best.*|Your answer.*|Preferred output.*|Best output.*):? *$",
    re.MULTILINE | re.IGNORECASE,
)
_TASK_HEADING = re.compile(r"^#{1,4} *Task:? *$", re.MULTILINE | re.IGNORECASE)

# The exact sentences of our templates, then looser signs of the same wish.
_EXACT_FORMS = (
    ("choice", "Answer with exactly one token: a or b."),
    ("sentence", "Answer with exactly: Output (a) or Output (b)."),
    ("cot_json", "Answer with a JSON object"),
    ("ranking", "Answer with a Python list of dictionaries"),
    ("rating", "Answer with one integer from"),
    ("order", "Answer with the numbers of all"),
)
_LOOSE_FORMS = (
    ("cot_json", re.compile(r"concise_explanation|\"ordered\"", re.IGNORECASE)),
    ("ranking", re.compile(r"['\"]rank['\"]|\brank the (?:outputs|models)\b", re.IGNORECASE)),
    (
        "rating",
        re.compile(r"\b(?:integer|rating|score|rate)\b[^.\n]{0,60}\b(?:from|between) \d+", re.IGNORECASE),
    ),
    ("sentence", re.compile(r"Output \((?:a|b)\)", re.IGNORECASE)),
)
_SCALE = re.compile(r"(?:from|between) (\d{1,2}) (?:to|and) (\d{1,2})")


@dataclass(frozen=True)
class Example:
    """One thing to judge. `outputs` holds (a, b) for a comparison, a single text for a rating, all for an order."""

    instruction: str
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class JudgeTask:
    """All a request asks for: the examples in the order of the text, the form, the ends of a rating scale."""

    examples: tuple[Example, ...]
    form: str
    scale: tuple[int, int] = (1, 7)


def unescape(text: str) -> str:
    """Undo one level of escaping in tags: "&lt;output_a>" becomes "<output_a>"."""
    return _ESCAPED_TAG.sub(lambda m: "&" + m[1][4:] + "lt;" if m[1] else "<", text)


def read_question(text: str) -> JudgeTask | str:
    """Parse the task in `text`, or name what is missing in a few words ("an instruction", "output (b)")."""
    # The frame is the text around the data: only there can the form be asked for.
    frame = _BLOCK.sub(" ", text)
    # Packed examples come first, since each of them holds tags that the next branch would find.
    packed = _EXAMPLE.findall(text)
    if packed:
        found = [_tagged(body) for _, body in packed]
    elif _PART.search(text):
        found = [_tagged(text)]
    else:
        found = [_headed(text)]
        frame = _without_headed_data(text)
    missing = next((part for part in found if isinstance(part, str)), None)
    if missing is not None:
        return missing
    examples = tuple(part for part in found if isinstance(part, Example))
    form = _form(frame, pairwise=len(examples[0].outputs) == 2)
    n_outputs = {len(example.outputs) for example in examples}
    if form == "rating" and n_outputs != {1}:
        return "one output to rate"
    if form == "order" and 1 in n_outputs:
        return "several outputs to rank"
    if form not in ("rating", "order") and n_outputs != {2}:
        return "two outputs to compare"
    return JudgeTask(examples, form, _scale(frame))


def _tagged(text: str) -> Example | str:
    """Read the last instruction and outputs of a tagged text; earlier ones are examples or an old turn."""
    # A later block replaces an earlier one of the same name.
    parts = {name: unescape(body) for name, body in _PART.findall(text)}
    return _example(parts)


def _headed(text: str) -> Example | str:
    tasks = list(_TASK_HEADING.finditer(text))
    if tasks:
        # AlpacaFarm's prompts put solved examples in front of the heading "Task".
        text = text[tasks[-1].end() :]
    parts: dict[str, str] = {}
    headings = list(_HEADING.finditer(text))
    ends = [*(heading.start() for heading in headings[1:]), len(text)]
    for heading, end in zip(headings, ends, strict=False):
        body = text[heading.end() : end].strip()
        name = (heading["part"] or "").lower()
        if name == "input" and body and "instruction" in parts:
            parts["instruction"] += "\n\n" + body
        elif name == "instruction":
            # A new instruction begins a new example: drop the outputs of the one before.
            parts = {"instruction": body}
        elif heading["side"]:
            parts[f"output_{heading['side'].lower()}"] = body
    return _example(parts)


def _example(parts: dict[str, str]) -> Example | str:
    if "instruction" not in parts:
        return "an instruction"
    if "output_a" in parts and "output_b" in parts:
        return Example(parts["instruction"], (parts["output_a"], parts["output_b"]))
    if "output" in parts:
        return Example(parts["instruction"], (parts["output"],))
    if "output_1" in parts and "output_2" in parts:
        numbered = sorted((name for name in parts if name[7:].isdigit()), key=lambda name: int(name[7:]))
        return Example(parts["instruction"], tuple(parts[name] for name in numbered))
    if "output_a" in parts:
        return "output (b)"
    return "output (a)" if "output_b" in parts else "the outputs"


def _without_headed_data(text: str) -> str:
    """Return the text before and after the sections of data, which is where the form is asked for."""
    data = [heading for heading in _HEADING.finditer(text) if heading["part"]]
    if not data:
        return text
    closing = next((h for h in _HEADING.finditer(text, data[-1].end()) if not h["part"]), None)
    return text[: data[0].start()] + (text[closing.start() :] if closing else "")


def _form(frame: str, *, pairwise: bool) -> str:
    """Find the form asked for last; without any sign, a choice for two outputs and a rating for one."""
    exact = [(frame.rfind(sentence), form) for form, sentence in _EXACT_FORMS]
    # rfind gives -1 for a sentence that is absent, so the maximum is the one that stands last.
    place, form = max(exact)
    if place >= 0:
        return form
    for form, sign in _LOOSE_FORMS:
        if sign.search(frame) and pairwise == (form != "rating"):
            return form
    return "choice" if pairwise else "rating"


def _scale(frame: str) -> tuple[int, int]:
    scales = _SCALE.findall(frame)
    low, high = (int(end) for end in scales[-1]) if scales else (1, 7)
    return (low, high) if low < high else (1, 7)
