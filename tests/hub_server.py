"""A Hub on the loopback interface, for the real clients: huggingface_hub and transformers.

Implements the protocol of huggingface.co: models and Spaces, large files in parts, commits, pull
requests, branches, tags, collections, ranges, redirects, gated and private repositories. It checks
tokens, records every request, and fails as a `Fault` asks it to.

    with serving() as hub:
        hub.accounts["hf_some"] = Account("me")
        hub.fail(Fault("GET", "/resolve/", status=429, headers={"Retry-After": "0"}))
        subprocess.run(..., env=environment(hub, home, token="hf_some"))
"""

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tests.hub_routes import Answer, Fault, Hub, Request, Seen

TOKEN = "hf_aVerySecretToken"  # of the user `me` in the fixture `hub`


class Handler(BaseHTTPRequestHandler):
    """HTTP for a Hub: parses requests, sends answers, and applies the faults of the test."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do(self) -> None:
        url = urlsplit(self.path)
        fault = self._fault(unquote(url.path))
        time.sleep(fault.delay if fault else 0)
        body = self._body(fault)
        headers = {key.lower(): value for key, value in self.headers.items()}
        token = headers.get("authorization", "").removeprefix("Bearer ")
        account = self.hub.accounts.get(token)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        request = Request(self.command, url.path, query, headers, body, account)
        name = account.name if account else None
        self.hub.seen.append(Seen(self.command, unquote(url.path), name, headers, body))
        if self._is_upload(fault) and self.close_connection:
            return
        if fault is not None and fault.status is not None:
            self._send(Answer(fault.body, fault.status, fault.headers), None, fault.trickle)
        else:
            self._send(self.hub.answer(request), fault, fault.trickle if fault else 0)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do

    def _fault(self, path: str) -> Fault | None:
        with self.hub.lock:
            for fault in self.hub.faults:
                same = fault.method == self.command and re.search(fault.path, path)
                if same and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def _body(self, fault: Fault | None) -> bytes:
        """The body of the request, or its beginning where a fault drops the connection."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(parts)
        else:
            length = int(self.headers.get("Content-Length", 0))
            if self._is_upload(fault) and fault is not None and fault.drop_after is not None:
                length = min(length, fault.drop_after)
            body = self.rfile.read(length)
        if self._is_upload(fault) and fault is not None:
            self.close_connection = fault.drop_after is not None
            if fault.corrupt:
                body = body[:-1] + bytes([body[-1] ^ 1])
        return body

    def _is_upload(self, fault: Fault | None) -> bool:
        """Whether there is a fault and it applies to the body of the request."""
        return fault is not None and self.command in ("PUT", "POST")

    def _send(self, answer: Answer, fault: Fault | None, trickle: float = 0) -> None:
        body = answer.body
        if fault is not None and not self._is_upload(fault):
            if fault.corrupt:
                body = body[:-1] + bytes([body[-1] ^ 1])
            if fault.drop_after is not None:
                self.close_connection = True
                body = body[: fault.drop_after]
        self.send_response(answer.status)
        for key, value in answer.headers.items():
            self.send_header(key, value)
        if "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            for part in (bytes([byte]) for byte in body) if trickle else (body,):
                self.wfile.write(part)
                time.sleep(trickle)
        except OSError:  # the client closed the connection
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@contextmanager
def serving() -> Iterator[Hub]:
    """A Hub that serves requests until the block ends."""
    hub = Hub()
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(hub: Hub, home: Path, token: str | None = None) -> dict[str, str]:
    """Environment variables for a process that uses this Hub."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    settings = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return {**kept, **settings, **({"HF_TOKEN": token} if token else {})}


def talk_to(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, home: Path, token: str | None = None
) -> None:
    """Make the running process use this Hub, and retry without delays."""
    from huggingface_hub import close_session, constants

    close_session()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    # These clients are created when the modules are imported.
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.url)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(home / "assets"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    time_without_sleep = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", time_without_sleep)
    monkeypatch.setattr("huggingface_hub.file_download.time", time_without_sleep)
    monkeypatch.setattr("minitron.files.hub_retry._WAITING.has_answered", False)
    monkeypatch.setattr("minitron.files.hub_retry.time", time_without_sleep)
    monkeypatch.setattr("minitron.publish.upload.time", time_without_sleep)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
