"""The words of providers out of the bodies of their errors, whatever form these have."""

import re


def said(body: object) -> tuple[str, str]:
    """The provider's code and words out of an error's body, whatever its form; ("", "") for none."""
    if isinstance(body, list):
        body = body[0] if body else ""
    if isinstance(body, bytes):
        body = body.decode("utf-8", "replace")
    if not isinstance(body, dict):
        return "", _page_text(str(body or ""))
    inner = next((body[name] for name in ("error", "errors", "detail") if body.get(name)), None)
    if inner is None or isinstance(inner, dict):
        return _of_mapping(inner or body)
    if isinstance(inner, list) and inner and isinstance(inner[0], dict):
        return _of_validation(inner)
    code, words = _of_mapping({name: value for name, value in body.items() if value is not inner})
    return code, str(inner) if not words else f"{inner} {words}"


def _of_mapping(told: dict) -> tuple[str, str]:
    code = next((told[name] for name in ("code", "type", "status", "Code") if told.get(name)), "")
    if str(code).isdigit() or code == "error":  # The status again; the word beside it says more.
        code = next((told[n] for n in ("type", "status") if told.get(n) and told[n] != "error"), code)
    inner = told.get("innererror")
    words = str(next((told[n] for n in ("message", "msg", "Message", "detail", "title") if told.get(n)), ""))
    if isinstance(inner, dict) and inner.get("code"):
        words += f" ({inner['code']})"
    more = told.get("metadata")
    if isinstance(more, dict):
        words += "".join(f" [{name}: {more[name]}]" for name in ("reasons", "raw") if more.get(name))
    return str(code), words


def _of_validation(items: list) -> tuple[str, str]:
    """Validation errors [{"loc": [...], "msg": "..."}], or a plain list of errors."""
    texts = []
    for item in items[:3]:
        place = item.get("loc") if isinstance(item, dict) else None
        words = _of_mapping(item)[1] if isinstance(item, dict) else str(item)
        texts.append((".".join(map(str, place)) + ": " if isinstance(place, list) else "") + words)
    return _of_mapping(items[0])[0] if "loc" not in items[0] else "", "; ".join(texts)


def _page_text(text: str) -> str:
    """The title of a web page, which is what a proxy or a login in between sends; else the text."""
    if not re.match(r"\s*<(!doctype|html|head|\?xml)", text, re.IGNORECASE):
        return text
    title = re.search(r"<(title|h1)[^>]*>([^<]{1,200})", text, re.IGNORECASE)
    return f"a web page ({' '.join(title[2].split())})" if title else "a web page"
