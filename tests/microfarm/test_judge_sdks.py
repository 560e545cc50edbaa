"""The judge server as the real SDKs see it: both protocols, their errors, and faults on demand."""

import asyncio
import time

import anthropic
import openai
import pytest

from rlhf_jax.microfarm.judges.judge_answers import answer_question
from rlhf_jax.microfarm.judges.judge_eyes import JUDGES
from rlhf_jax.microfarm.judges.judge_server import JudgeServer
from rlhf_jax.microfarm.judges.judge_service import HUMAN, WRITERS

CLEAN = "micro-judge-clean"
DATA = """<instruction>
Name three colors.
</instruction>
<output_a>
ugh no
</output_a>
<output_b>
Sure! Here are three colors:
- red
- blue
- green
</output_b>
"""
CHOICE = DATA + "Answer with exactly one token: a or b."
SENTENCE = DATA + "Answer with exactly: Output (a) or Output (b)."


@pytest.fixture(scope="module")
def server():
    with JudgeServer() as running:
        yield running


@pytest.fixture(scope="module")
def oai(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def claude(server):
    with anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0) as client:
        yield client


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def ask(client, model=CLEAN, text=CHOICE, **options):
    return client.chat.completions.create(model=model, messages=user(text), temperature=0, **options)


def tell(client, model=CLEAN, text=SENTENCE, max_tokens=50, **options):
    return client.messages.create(model=model, messages=user(text), max_tokens=max_tokens, **options)


# ------------------------------------------------------------------------------------- OpenAI


def test_openai_answer_logprobs_and_usage(oai):
    said = ask(oai, logprobs=True, top_logprobs=3)
    assert said.object == "chat.completion" and said.model == CLEAN and said.id.startswith("chatcmpl-")
    [choice] = said.choices
    assert choice.message.content == "b" and choice.finish_reason == "stop" and choice.message.refusal is None
    [token] = choice.logprobs.content
    assert token.token == "b" and token.bytes == [98] and -0.1 < token.logprob < 0
    assert len(token.top_logprobs) == 3 and token.top_logprobs[0].token == "b"
    logprobs = [alternative.logprob for alternative in token.top_logprobs]
    assert logprobs == sorted(logprobs, reverse=True)
    usage = said.usage
    assert usage.completion_tokens == 1 and usage.prompt_tokens > 40
    assert usage.total_tokens == usage.prompt_tokens + 1
    assert ask(oai).choices[0].logprobs is None


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_openai_answers_are_cut(oai, limit):
    said = ask(oai, text=SENTENCE, **{limit: 2})
    assert said.choices[0].message.content == "Output (" and said.choices[0].finish_reason == "length"
    assert said.usage.completion_tokens == 2


def test_openai_messages_of_all_kinds(oai):
    parts = [{"type": "text", "text": DATA}, {"type": "text", "text": SENTENCE.removeprefix(DATA)}]
    messages = [
        {"role": "system", "content": "You are a judge."},
        *user(DATA.replace("blue", "dog") + "Answer with exactly one token: a or b."),
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": parts},
    ]
    said = oai.chat.completions.create(model=CLEAN, messages=messages, seed=3)
    assert said.choices[0].message.content == "Output (b)"


def test_http_and_in_process_answers_are_the_same(oai):
    for name in JUDGES:
        there, here = (
            ask(oai, name, SENTENCE),
            answer_question(JUDGES[name], SENTENCE, key=f"user\x1f{SENTENCE}"),
        )
        assert there.choices[0].message.content == here.text


def test_openai_models_and_rate_limit_headers(oai):
    assert [model.id for model in oai.models.list()] == [*JUDGES, HUMAN, *WRITERS]
    assert oai.models.retrieve(CLEAN).id == CLEAN
    raw = oai.chat.completions.with_raw_response.create(model=CLEAN, messages=user(CHOICE))
    for kind in ("requests", "tokens"):
        limit = int(raw.headers[f"x-ratelimit-limit-{kind}"])
        assert 0 < int(raw.headers[f"x-ratelimit-remaining-{kind}"]) < limit
        assert raw.headers[f"x-ratelimit-reset-{kind}"].endswith("s")
    assert raw.headers["x-request-id"] == raw.parse()._request_id


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "judge", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, None),
    ],
)
def test_openai_bad_requests_name_the_field(oai, options, param):
    with pytest.raises(openai.BadRequestError) as caught:
        oai.chat.completions.create(**{"model": CLEAN, "messages": user(CHOICE), **options})
    assert caught.value.param == param and caught.value.type == "invalid_request_error"


def test_openai_errors(oai, server):
    with pytest.raises(openai.NotFoundError) as caught:
        ask(oai, "micro-judge-14")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        ask(oai, f"{CLEAN}:sleepy")
    with pytest.raises(openai.AuthenticationError) as caught:
        ask(oai.with_options(api_key="bad-key"))
    assert caught.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError):
        openai.OpenAI(base_url=server.url, api_key="any").chat.completions.create(
            model=CLEAN, messages=user("x")
        )


def test_async_openai(server):
    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
            calls = [ask(client, text=f"{CHOICE}{' ' * k}") for k in range(40)]
            return [said.choices[0].message.content for said in await asyncio.gather(*calls)]

    assert asyncio.run(run()) == ["b"] * 40


# ---------------------------------------------------------------------------------- Anthropic


def test_anthropic_answer_and_usage(claude):
    said = tell(claude, system="You are a judge.")
    assert said.type == "message" and said.role == "assistant" and said.model == CLEAN
    [block] = said.content
    assert block.type == "text" and block.text == "Output (b)"
    assert said.stop_reason == "end_turn" and said.usage.output_tokens == 4 and said.usage.input_tokens > 40
    cut = tell(claude, max_tokens=1)
    assert cut.content[0].text == "Output" and cut.stop_reason == "max_tokens"


def test_anthropic_errors(claude):
    with pytest.raises(anthropic.NotFoundError) as caught:
        tell(claude, "micro-judge-14")
    assert caught.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.AuthenticationError) as caught:
        tell(claude.with_options(api_key="bad-key"))
    assert caught.value.body["error"]["type"] == "authentication_error"
    with pytest.raises(anthropic.BadRequestError) as caught:
        tell(claude, extra_body={"temperature": 0})
    assert "temperature" in caught.value.message
    older = {"anthropic-version": "2023-06-01"}
    assert tell(claude, extra_body={"temperature": 0}, extra_headers=older).content[0].text == "Output (b)"


def test_anthropic_refusal_models_and_headers(claude):
    said = tell(claude, f"{CLEAN}:refuse")
    assert (
        said.stop_reason == "refusal" and said.content == [] and said.stop_details.category == "frontier_llm"
    )
    assert [model.id for model in claude.models.list()] == [*JUDGES, HUMAN, *WRITERS]
    raw = claude.messages.with_raw_response.create(model=CLEAN, messages=user("Hi"), max_tokens=90)
    assert int(raw.headers["anthropic-ratelimit-requests-remaining"]) > 0
    assert raw.headers["request-id"].startswith("req_")
    assert "could not find" in raw.parse().content[0].text


def test_async_anthropic(server):
    async def run() -> list[str]:
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="any") as client:
            said = await asyncio.gather(*[tell(client, text=f"{SENTENCE}{' ' * k}") for k in range(20)])
            return [message.content[0].text for message in said]

    assert asyncio.run(run()) == ["Output (b)"] * 20


# ------------------------------------------------------------------------------------- faults


def test_faults_by_model_name(oai, claude):
    assert ask(oai, f"{CLEAN}:nonsense").choices[0].message.content not in ("a", "b")
    refused = ask(oai, f"{CLEAN}:refuse").choices[0].message
    assert refused.content is None and "sorry" in refused.refusal
    for _ in range(2):
        with pytest.raises(openai.InternalServerError):
            ask(oai, f"{CLEAN}:error500")
    with pytest.raises(openai.APIConnectionError):
        ask(oai, f"{CLEAN}:drop")
    with pytest.raises(anthropic.InternalServerError):
        tell(claude, f"{CLEAN}:flaky")
    assert tell(claude, f"{CLEAN}:flaky").content[0].text == "Output (b)"


def test_rate_limit_is_hit_once_per_distinct_request(oai, claude):
    for text in (CHOICE, CHOICE + " "):
        with pytest.raises(openai.RateLimitError) as caught:
            ask(oai, f"{CLEAN}:ratelimit", text)
        assert float(caught.value.response.headers["retry-after"]) == 1.0
        assert ask(oai, f"{CLEAN}:ratelimit", text).choices[0].message.content == "b"
    with pytest.raises(anthropic.RateLimitError):
        tell(claude, f"{CLEAN}:ratelimit")


def test_a_slow_answer_holds_up_nobody_else(server, oai):
    async def run() -> float:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
            slow = asyncio.create_task(ask(client, f"{CLEAN}:slow"))
            await asyncio.sleep(0.1)
            start = time.monotonic()
            await ask(client)
            quick = time.monotonic() - start
            assert not slow.done() and (await slow).choices[0].message.content == "b"
            return quick

    assert asyncio.run(run()) < 1.0
    with pytest.raises(openai.APITimeoutError):
        ask(oai.with_options(timeout=0.2), f"{CLEAN}:slow")
    assert ask(oai).choices[0].message.content == "b"
