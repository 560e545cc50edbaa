"""Request bodies: what a judge's spec says, in the words of the four protocols.

chat is OpenAI's chat completions, spoken by vLLM, llama.cpp and most gateways; responses is OpenAI's newer
form; decisions is its endpoint for judgments, which answers with probabilities; messages is Anthropic's. Field
names are those of the openai 3 and anthropic 2 clients.
"""

from rlhf_jax.annotation.contracts import RATING
from rlhf_jax.annotation.specs import JudgeSpec

_LIMIT = {"chat": "max_completion_tokens", "responses": "max_output_tokens", "messages": "max_tokens"}


def settings(spec: JudgeSpec) -> dict:
    """All of a request's body but the messages and questions."""
    made: dict = {"model": spec.model, **spec.sampling}
    if spec.max_tokens is not None:
        made[_LIMIT[spec.api]] = spec.max_tokens
    made |= _LOGPROBS[spec.api](spec.top_logprobs) if spec.top_logprobs is not None else {}
    made |= _SCHEMA[spec.api](dict(spec.output_schema)) if spec.output_schema else {}
    if spec.api == "responses":
        # Nothing is kept at the provider: the cache is what a rerun reads.
        made["store"] = False
        if "reasoning_effort" in made:
            made["reasoning"] = {"effort": made.pop("reasoning_effort")}
    return made | dict(spec.extra_body)


_LOGPROBS = {
    "chat": lambda top: {"logprobs": True, "top_logprobs": top},
    "responses": lambda top: {"top_logprobs": top, "include": ["message.output_text.logprobs"]},
}
_SCHEMA = {
    "chat": lambda schema: {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": schema},
        }
    },
    "responses": lambda schema: {
        "text": {"format": {"type": "json_schema", "name": "answer", "strict": True, "schema": schema}}
    },
    "messages": lambda schema: {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
}


def body(spec: JudgeSpec, made: dict, messages: list[dict[str, str]], n: int) -> dict:
    """The whole body: `made` (see `settings`) with the messages and, for decisions, a question per example."""
    if spec.api == "chat":
        return {**made, "messages": messages}
    if spec.api == "messages":
        if messages[0]["role"] == "system":
            return {**made, "system": messages[0]["content"], "messages": messages[1:]}
        return {**made, "messages": messages}
    if spec.api == "responses":
        return {**made, "input": messages}
    return {**made, "input": messages, "questions": [_question(spec, i, n) for i in range(n)]}


def _question(spec: JudgeSpec, i: int, n: int) -> dict:
    about = f"About example {i + 1}: {spec.question}" if n > 1 else spec.question
    question = {"name": f"example_{i + 1}", "instructions": about}
    if spec.kind == RATING:
        return {"type": "score", **question, "levels": [{"label": level} for level in spec.parser.levels]}
    sides = (spec.parser.first[0], spec.parser.second[0])
    return {"type": "choice", **question, "choices": [{"value": side} for side in sides]}
