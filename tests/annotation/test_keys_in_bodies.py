"""Keys in a judge's `extra_body`, which the labels would publish: refused by the field's name, never repeated."""

import time
from pathlib import Path

import pytest
import yaml

from rlhf_jax.annotation import load_judge
from rlhf_jax.errors import UserError

JUDGE = {
    "name": "j",
    "provider": "openai",
    "model": "m",
    "template": "pairwise_choice",
    "parser": {"name": "choice"},
    "max_tokens": 5,
}
SECRET = "abcdef0123456789"


def load(folder: Path, body: dict) -> dict:
    (folder / "j.yaml").write_text(yaml.safe_dump(JUDGE | {"extra_body": body}))
    return load_judge(folder / "j.yaml").extra_body


@pytest.mark.parametrize(
    "name",
    ["x-api-key", "openrouter_key", "key", "aws_secret_access_key", "subscription-key", "auth", "token", "cookie",
     "apiKey", "apikey", "XApiKey", "hf_token", "aws_session_token", "client_secret", "connection_string",
     "Authorization", "db_password", "basic_auth", "private_key", "accesstoken", "credentials"],
)  # fmt: skip
@pytest.mark.parametrize("inside", ["", "nested", "list"])
def test_a_field_that_is_named_like_a_key_is_refused_wherever_it_stands(
    tmp_path: Path, name: str, inside: str
) -> None:
    body: dict = {name: SECRET}
    body = {"a": {"b": body}} if inside == "nested" else {"a": [{"c": 1}, body]} if inside == "list" else body
    with pytest.raises(
        UserError, match=r"extra_body\.(a\.(b\.)?)?[\w-]+: a key here .*api_key_env"
    ) as caught:
        load(tmp_path, body)
    assert name in str(caught.value) and SECRET not in str(caught.value)


def test_the_key_of_a_data_source_is_refused(tmp_path: Path) -> None:
    authentication = {"type": "api_key", "key": SECRET}
    source = {"type": "azure_search", "parameters": {"authentication": authentication, "index_name": "i"}}
    with pytest.raises(UserError, match=r"extra_body\.data_sources\.parameters\.authentication\.key: "):
        load(tmp_path, {"data_sources": [source]})


@pytest.mark.parametrize(
    "value",
    [f"Bearer sk-{SECRET}", f"Bearer {SECRET}", "Basic bWU6YWJjZGVmMDEyMw==", f"sk-proj-{SECRET}", f"hf_{SECRET}",
     "https://me:abcdef0123@host/hook", "postgres://:abcdef0123@host/db", f"https://host/x?a=1&api_key={SECRET}",
     f"https://host/x?sig={SECRET}", [f"sk-{SECRET}"], {"x": f"Bearer {SECRET}"}],
)  # fmt: skip
def test_a_text_that_is_a_key_is_refused_under_any_name(tmp_path: Path, value: object) -> None:
    with pytest.raises(UserError, match=r"extra_body\.field(\.x)?: a key here") as caught:
        load(tmp_path, {"field": value})
    assert "abcdef" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        {"max_tokens": 9, "top_k": 3, "n": 1, "logit_bias": {"50256": -100}, "prompt_cache_key": "project-7"},
        {"stop_token_ids": [1], "eos_token": "</s>", "stop": ["key", "token:"], "skip_special_tokens": True},
        {"user": {"token": 1}, "auth": None, "key": "", "authentication": {"type": "managed_identity"}},
        {
            "text": "Basic rules of a Bearer",
            "lang": "sk-SK",
            "url": "https://host/@me/a:b@c?keyword=x&page_token=3",
        },
        {
            "schema": {
                "properties": {"key": {"type": "string"}, "password": {"type": "string"}},
                "required": ["key"],
            }
        },
        {
            "provider": {"order": ["x"], "sort": "price"},
            "guided_choice": ["a", "b"],
            "monkey": "x",
            "to": "a@b.c",
        },
    ],
)
def test_settings_that_hold_no_key_are_sent_as_they_are(tmp_path: Path, body: dict) -> None:
    assert load(tmp_path, body) == body


def test_looking_for_keys_takes_no_time(tmp_path: Path) -> None:
    began = time.monotonic()
    for text in (
        "://a:" * 100_000,
        "Basic " + "1" * 500_000 + "!",
        "https://h?" + "a&" * 200_000,
        " " * 500_000,
    ):
        load(tmp_path, {"text": text})
    load(tmp_path, {"apiaccess" * 50_000: "x"})
    assert time.monotonic() - began < 10.0
