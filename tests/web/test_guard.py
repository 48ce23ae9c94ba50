"""The middleware before gradio, called as a server would."""

import asyncio
from collections.abc import Mapping

import pytest

from diffunet.web.guard import MAX_BODY, POLICY, Guard


def response_to(
    path: str, headers: Mapping[str, str] = {}, chunks: tuple[bytes, ...] = (b"",)
) -> tuple[int, dict, int]:
    """Return status, headers and the number of bytes that the application behind the guard received."""
    sent, waiting, received = [], list(chunks), 0

    async def receive() -> dict:
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message: dict) -> None:
        sent.append(message)

    async def application(scope: dict, receive, send) -> None:
        nonlocal received
        while (message := await receive())["type"] == "http.request":
            received += len(message["body"])
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200, "headers": [(b"server", b"x")]})
        await send({"type": "http.response.body", "body": b""})

    named = [(name.encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(Guard(application)({"type": "http", "path": path, "headers": named}, receive, send))
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}, received


def test_a_request_passes_with_headers():
    status, headers, received = response_to("/", {"content-length": "3"}, (b"a", b"bc"))
    assert (status, received) == (200, 3)
    assert headers["content-security-policy"] == POLICY
    assert headers["server"] == "x"


@pytest.mark.parametrize("length", [str(MAX_BODY + 1), "-1", "1e9", "many"])
def test_a_large_body_is_refused_by_its_length(length):
    assert response_to("/", {"content-length": length})[::2] == (413, 0)


def test_a_large_body_without_length_is_cut_off():
    part = bytes(2**20)
    assert response_to("/", chunks=(part,) * 100)[2] <= MAX_BODY


@pytest.mark.parametrize(
    "path", ["/gradio_api/file=http://example.org", "/gradio_api/file=HTTPS://a", "/gradio_api/proxy=https://a"]
)
def test_other_addresses_are_not_fetched(path):
    assert response_to(path)[0] == 403
