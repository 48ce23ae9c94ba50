"""What every request to the page has to pass."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

MAX_BODY = 32 * 2**20
"""Bytes of a request: a file, or what is painted on an image."""
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
"""A browser loads nothing from elsewhere, whatever a page or a name in a run says."""
LOCAL = ("127.0.0.1", "localhost")
HEADERS = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
}

Message = MutableMapping[str, Any]


class Guard:
    """An ASGI middleware: limits the size of a request, and adds headers to each response.

    Requests for files at other addresses, which gradio would fetch on behalf of a client, are refused.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: Message, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_BODY:
            return await _refuse(send, 413, b"too large")
        if "file=http" in scope["path"].lower() or "/proxy=" in scope["path"]:
            return await _refuse(send, 403, b"not allowed")
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message if received <= MAX_BODY else {"type": "http.disconnect"}

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS.items()]
            await send(message)

        await self.app(scope, receive_limited, send_with_headers)


async def _refuse(send: Callable, status: int, text: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": text})


def guards(host: str) -> list:
    """Return the middlewares of a page at a host: at an address of this computer alone, other names are refused.

    Otherwise a site in another tab could reach the page by a name of its own that leads to 127.0.0.1.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    local = [Middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL])] if host in LOCAL else []
    return [*local, Middleware(Guard)]
