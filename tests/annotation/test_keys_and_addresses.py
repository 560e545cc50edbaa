"""Keys and passwords: none in a message or file, none sent where it does not belong; addresses of every form."""

import base64
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from annotation_fake_server import FakeServer, answer_plainly, anthropic_payload, openai_payload
from annotation_helpers import QUICK, judge_spec, make_rows, pool_of

from rlhf_jax.annotation import annotate_pairs, load_judge, write_labels
from rlhf_jax.annotation.calls.guards import Mask, check_connections
from rlhf_jax.annotation.judges.addresses import check_url, public
from rlhf_jax.annotation.judges.requests import Judge
from rlhf_jax.annotation.judges.specs import JudgeSpec
from rlhf_jax.errors import UserError

KEY = "gsk_FirstPartOfTheKey9876543210"
PROVIDERS = ("openai", "anthropic")
YAML = """
name: j
provider: openai
model: m
template: pairwise_choice
parser: {name: choice}
max_tokens: 5
"""


def annotate(judge: JudgeSpec, n: int = 1, url: str = "", **options: object) -> tuple[list[dict], dict]:
    return annotate_pairs(make_rows(n), pool_of(judge), base_urls={"local": url}, retry=QUICK, **options)


def load(folder: Path, *lines: str) -> JudgeSpec:
    path = folder / "j.yaml"
    path.write_text("\n".join([YAML, *lines]))
    return load_judge(path)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("gsk_FIRSTSECRET\nSECONDSECRET", "line break"),
        ("gsk_FIRSTSECRET\u2028SECONDSECRET", "line break"),
        ("gsk_FIRSTSECRET SECONDSECRET", "a blank"),
        ("Bearer gsk_FIRSTSECRET", "a blank"),
        ("sk-abc\u2026SECRET", r"at place 7 \(U\+2026\)"),
        ("gsk_\u00e9SECRET", r"U\+00E9"),
        ("'gsk_FIRSTSECRET'", "in quotes"),
        ("\u201cgsk_FIRSTSECRET\u201d", "in quotes"),
        ("", "is empty"),
        (" \n", "is empty"),
        (None, "is not set"),
    ],
)
def test_a_key_no_header_can_carry_is_told_in_one_line_before_asking(
    monkeypatch: pytest.MonkeyPatch, value: str | None, words: str
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    with FakeServer() as server, pytest.raises(UserError, match=words) as caught:
        annotate(judge_spec(api_key_env="JUDGE_KEY"), url=server.url)
    message = str(caught.value)
    assert server.bodies == [] and "SECRET" not in message and "gsk" not in message
    assert "api_key_env" in message and "JUDGE_KEY" in message and "\n" not in message


def test_blanks_around_a_key_are_not_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", f"  {KEY}\r\n")
    with FakeServer() as server:
        annotate(judge_spec(api_key_env="JUDGE_KEY"), url=server.url)
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "typed", ["sk-proj-abcdef0123456789", "gsk_abcdEFGH12345678", "0123456789abcdef", "AKIAIOSFODNN7EXAMPLE"]
)
def test_a_key_typed_into_the_name_of_its_variable_is_not_repeated(tmp_path: Path, typed: str) -> None:
    with pytest.raises(UserError, match="api_key_env: ") as caught:
        annotate(load(tmp_path, f'api_key_env: "{typed}"', "base_url: http://127.0.0.1:9/v1"))
    assert typed not in str(caught.value) and typed[:6] not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("api_key_env: [sk-proj-abcdef0123]", "api_key_env: found list"),
        ("api_key_env: sk-proj-abcdef0123: x", "not valid YAML"),
        ("extra_body: {api_key: sk-proj-abcdef0123}", r"extra_body\.api_key"),
        (
            "extra_body: {user: {token: 1, access_token: sk-proj-abcdef0123}}",
            r"extra_body\.user\.access_token",
        ),
        ("base_url: http://me:sk-proj-abcdef0123@host:port/v1", r"'http://\*\*\*@host:port/v1'"),
        ("base_url: me:sk-proj-abcdef0123@host/v1", "does not begin with http"),
        ("base_url: 'http://h:x/v1?api-key=sk-proj-abcdef0123'", r"api-key=\*\*\*"),
        ("base_url: 'http://h:x/v1?a=1&code=abcdef0123'", r"a=1&code=\*\*\*"),
    ],
)
def test_a_file_with_a_key_in_the_wrong_place_is_refused_without_repeating_it(
    tmp_path: Path, line: str, words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load(tmp_path, line)
    assert "abcdef" not in str(caught.value)


@pytest.mark.parametrize("status", [400, 401, 500])
def test_no_file_and_no_message_holds_the_key_or_the_password(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    login = base64.b64encode(b"me:Passw0rdOfMine").decode()
    told = f"you sent {KEY}, {KEY[:14]}... ({KEY[:4]}****{KEY[-4:]}), {KEY[-12:]}; me:Passw0rdOfMine, Basic {login}"

    def respond(body: dict, nth: int) -> object:
        if "Say 0." in str(body):
            return openai_payload(f"a {told}") | {"id": KEY}
        return status, {}, {"error": {"message": told, "code": KEY}}

    with FakeServer(respond) as server:
        url = server.url.replace("//", "//me:Passw0rdOfMine@") + "/v1?code=QuerySecret77"
        judge = judge_spec(base_url=url, api_key_env="JUDGE_KEY")
        try:
            rows, _ = annotate(judge, 3, cache_path=tmp_path / "answers.sqlite", max_concurrency=1)
            message = repr(rows)
            write_labels(tmp_path / "labels.parquet", rows, {})
        except UserError as error:
            message = str(error)
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir()).decode("latin-1") + message
    pieces = [KEY[:14], KEY[-12:], "Passw0rd", login, "QuerySecret"]
    assert not [piece for piece in pieces if piece in stored]
    if status == 401:  # An answer's own words may look like a masked key; a refusal's are the key's.
        assert f"****{KEY[-4:]}" not in message
    assert repr(Judge(judge, {}).address).count("Passw0rd") == 0 and judge.judge_id


@pytest.mark.parametrize("provider", PROVIDERS)
def test_no_log_of_any_library_holds_a_key_or_a_password(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, provider: str
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with caplog.at_level(logging.DEBUG), FakeServer() as server:
        for url in (server.url.replace("//", "//me:Passw0rdOfMine@") + "/v1?code=QuerySecret77", server.url):
            annotate(judge_spec(provider=provider, base_url=url, api_key_env="JUDGE_KEY"))
    assert f"POST {server.url}/v1" in caplog.text
    login = base64.b64encode(b"me:Passw0rdOfMine").decode()
    assert not [word for word in (KEY[:14], "Passw0rd", login, "QuerySecret") if word in caplog.text]


def test_masking_keeps_the_words_around() -> None:
    mask = Mask([KEY, "none"])
    assert mask.line(f"Key {KEY[2:20]} of {KEY}\nis bad") == "Key *** of *** is bad"
    assert mask.line("http://u:p@proxy:8080 refused") == "http://***@proxy:8080 refused"
    assert mask.line("none of these") == "none of these"
    assert len(mask.line("x " * 1000)) == 300


@pytest.mark.parametrize("provider", PROVIDERS)
def test_only_what_the_judges_file_says_goes_out(monkeypatch: pytest.MonkeyPatch, provider: str) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    lines = (
        "Authorization: Bearer CORP-SECRET\nX-Corp: SECRET2\nUser-Agent: SECRET3\nanthropic-version: SECRET4"
    )
    for name in ("OPENAI", "ANTHROPIC"):
        monkeypatch.setenv(f"{name}_CUSTOM_HEADERS", lines)
        monkeypatch.setenv(f"{name}_BASE_URL", "http://127.0.0.1:9")
        monkeypatch.setenv(f"{name}_API_KEY", "sk-SECRET5")
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.setenv(name, "SECRET6")
    with FakeServer() as server:
        annotate(judge_spec(provider=provider, api_key_env="JUDGE_KEY"), url=server.url)
        annotate(judge_spec(provider=provider), url=server.url)
    sent = server.headers
    assert "SECRET" not in repr(sent) and not [n for n in sent[0] if n.startswith(("x-corp", "openai-"))]
    assert KEY in sent[0].get("authorization", "") + sent[0].get("x-api-key", "")
    assert KEY not in repr(sent[1])
    assert os.environ["OPENAI_ORG_ID"] == "SECRET6"


# 302 and 303 make a GET of the question: the other host could only show a page.
@pytest.mark.parametrize("status", [302, 303, 307])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_redirect_to_another_host_gets_neither_key_nor_question(
    monkeypatch: pytest.MonkeyPatch, provider: str, status: int
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with FakeServer() as other:
        there = f"{other.url}/v1/elsewhere"
        refused = pytest.raises(UserError, match=rf"{re.escape(there)}; set base_url")
        with FakeServer(lambda body, nth: (status, {"Location": there}, {})) as server, refused:
            annotate(judge_spec(provider=provider, api_key_env="JUDGE_KEY"), url=server.url)
    assert other.bodies == []


def test_a_redirect_within_the_host_is_followed_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with FakeServer(
        lambda body, nth: (308, {"Location": "/v1/moved"}, {}) if nth == 1 else answer_plainly(body, nth)
    ) as server:
        rows, _ = annotate(judge_spec(api_key_env="JUDGE_KEY"), url=server.url)
    assert rows[0]["status"] == "ok" and server.paths[1] == "/v1/moved"
    assert server.headers[1]["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("provider", "path", "asked"),
    [
        ("openai", "/openai/deployments/gpt4?api-version=2024-02-01",
         "/openai/deployments/gpt4/chat/completions?api-version=2024-02-01"),
        ("openai", "/v1/?a=1&b=x%20y", "/v1/chat/completions?a=1&b=x%20y"),
        ("anthropic", "/anthropic?api-version=7", "/anthropic/v1/messages?api-version=7"),
        ("openai", "/v1?code=Secret123", "/v1/chat/completions?code=Secret123"),
    ],
)  # fmt: skip
def test_the_query_of_an_address_stays_behind_the_path(provider: str, path: str, asked: str) -> None:
    with FakeServer() as server:
        judge = judge_spec(provider=provider, base_url=server.url + path)
        rows, _ = annotate(judge)
    assert server.paths[0].replace("+", "%20") == asked and rows[0]["status"] == "ok"
    assert "Secret" not in rows[0]["endpoint_origin"]
    other = judge_spec(provider=provider, base_url=server.url + path.partition("?")[0])
    same = "code" in path
    assert (Judge(judge, {}).address.origin == Judge(other, {}).address.origin) == same


def test_azures_own_hosts_get_the_key_in_their_own_header(monkeypatch: pytest.MonkeyPatch) -> None:
    from rlhf_jax.annotation.calls.guards import Courier

    monkeypatch.setenv("JUDGE_KEY", KEY)
    url = "https://mine.openai.azure.com/openai/deployments/d?api-version=1"
    courier = Courier(Judge(judge_spec(base_url=url, api_key_env="JUDGE_KEY"), {}).address)
    assert courier._headers == {"authorization": "", "api-key": KEY}
    monkeypatch.setenv("JUDGE_KEY", "eyJ0.eyJ1.signature")
    assert Courier(Judge(judge_spec(base_url=url, api_key_env="JUDGE_KEY"), {}).address)._headers == {}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:port/v1", "port"),
        ("http://127.0.0.1:99999/v1", "port"),
        ("http://127.0.0.1:0/v1", "port 0"),
        ("http://[::1/v1", "is no URL"),
        ("htps://host/v1", "http:// or https://"),
        ("ftp://host/v1", "http:// or https://"),
        ("localhost:8000/v1", "http:// or https://"),
        ("api.example.com/v1", "http:// or https://"),
        ("http:///v1", "names no host"),
        ("http://a b/v1", "blank"),
        ("http://host..example/v1", "host that cannot be one"),
        ("http://host/v1/chat/completions", "path of a call"),
        ("http://host/v1#x", "#"),
    ],
)
def test_what_is_no_address_is_told_by_its_field(url: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        annotate(judge_spec(base_url=url))
    assert "base_url" in str(caught.value) and "\n" not in str(caught.value)


def test_addresses_as_people_have_them_are_accepted() -> None:
    for url in ("http://m\u00fcller.example/v1", "http://[::1]:8000/v1", "http://vllm_server:8000/v1",
                "https://host.example./v1?x=1", "http://u:p%40ss@host/v1"):  # fmt: skip
        check_url("base_url", url)
    assert public("http://u:p@Host:80/v1/?key=s&v=1") == "http://host:80/v1?v=1"
    assert public("http://[::1]:8000/v1") == "http://[::1]:8000/v1"


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9", "pip install socksio"),
        ("all_proxy", "socks://127.0.0.1:9", "scheme 'socks'"),
        ("HTTP_PROXY", "http://127.0.0.1:port", "http://HOST:PORT"),
        ("HTTPS_PROXY", "http://me:Secret77@[::1", "http://HOST:PORT"),
        ("https_proxy", "http://", "names no host"),
        ("SSL_CERT_FILE", "/no/such.pem", "does not exist"),
    ],
)
def test_an_environment_that_cannot_work_is_told_by_its_variable(
    bare: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    bare.setattr("importlib.util.find_spec", lambda name: None)
    bare.setenv(name, value)
    with pytest.raises(UserError, match=f"^{name}: .*{words}") as caught:
        annotate(judge_spec(base_url="http://192.0.2.1/v1"))
    assert "Secret77" not in str(caught.value)


def test_broken_certificates_are_told_and_good_proxies_pass(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_text("no certificate")
    bare.setenv("HTTPS_PROXY", "http://u:p@proxy.example:3128")
    bare.setenv("HTTP_PROXY", "proxy.example:3128")
    check_connections()
    bare.setenv("SSL_CERT_FILE", str(tmp_path / "x.pem"))
    with pytest.raises(UserError, match=r"SSL_CERT_FILE: .*cannot be used"):
        check_connections()


def test_a_host_nobody_knows_is_told_by_its_field(bare: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"http://nobody\.invalid/v1: cannot be reached .*base_url"):
        annotate(judge_spec(base_url="http://nobody.invalid/v1"), timeout_s=2.0)


def test_a_proxy_that_is_not_there_is_named(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("http_proxy", "http://me:Secret77@127.0.0.1:9")
    with pytest.raises(UserError, match="cannot be reached") as caught:
        annotate(judge_spec(base_url="http://192.0.2.1/v1"), timeout_s=2.0)
    assert "http_proxy" in str(caught.value).lower() and "Secret77" not in str(caught.value)


def test_anthropic_payloads_are_read_behind_a_login() -> None:
    with FakeServer(lambda body, nth: anthropic_payload("a")) as server:
        url = server.url.replace("//", "//me:pass%40word@")
        rows, _ = annotate(judge_spec(provider="anthropic", base_url=url))
    assert rows[0]["status"] == "ok"
    assert server.headers[0]["authorization"] == "Basic " + base64.b64encode(b"me:pass@word").decode()
