"""FakeHub: the Hub's API for models over HTTP, and a CDN beside it; counts calls, and spoils those it is told to."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

SIGNATURE = "canary-signature"  # of a private file's URL at the CDN


@dataclass(frozen=True)
class Answer:
    """What is sent back; after `num_sent` bytes of the body the connection is cut or left hanging."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    num_sent: int | None = None
    hangs: bool = False
    is_silent: bool = False


@dataclass(frozen=True)
class Call:
    """A request as it came; `is_cdn` tells the two servers apart."""

    method: str
    path: str
    headers: Mapping[str, str]
    is_cdn: bool

    def __str__(self) -> str:
        return f"{self.method} {'cdn' if self.is_cdn else 'hub'}{self.path}"


@dataclass
class Repo:
    """Commits by their sha, and the branches and tags that name them; files ending in `.safetensors` are in LFS."""

    commits: dict[str, Mapping[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], *, ref: str = "main") -> str:
        """Add a commit, and let the branch or tag name it."""
        sha = hashlib.sha1(f"{len(self.commits)} {sorted(files.items())}".encode()).hexdigest()
        self.commits[sha] = files
        self.refs[ref] = sha
        return sha


Fault = Callable[[Answer], Answer]


def answered(status: int, code: str = "", **headers: str) -> Fault:
    """Answer with an error; its own words are to be shown nowhere."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    coded = {"X-Error-Code": code} if code else {}
    return lambda answer: Answer(status, {"X-Error-Message": "canary words", **coded, **given}, b'{"error": "canary"}')


def cut(num_sent: int) -> Fault:
    """Cut the connection after some bytes of the body."""
    return lambda answer: replace(answer, num_sent=num_sent)


def hanging(num_sent: int) -> Fault:
    """Send some bytes of the body, and nothing more until the client goes."""
    return lambda answer: replace(answer, num_sent=num_sent, hangs=True)


def silent(answer: Answer) -> Answer:
    """Take the request, and never answer."""
    return replace(answer, is_silent=True)


def with_body(body: bytes) -> Fault:
    """Send another body, with a length that agrees with it."""
    return lambda answer: replace(answer, body=body)


class FakeHub:
    """Use `running`. `url` is the Hub's endpoint, `repos` are its repositories, `calls` all requests so far."""

    url: str
    cdn_url: str

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.moved: dict[str, str] = {}  # from a repository's former name to its present one
        self.calls: list[Call] = []
        self.is_hanging = threading.Event()
        self.is_over = threading.Event()
        self._faults: list[tuple[str, Fault]] = []

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[FakeHub]:
        """Serve on two free ports until the end of the block."""
        hub = cls()
        with _served(hub, is_cdn=False) as hub.url, _served(hub, is_cdn=True) as hub.cdn_url:
            try:
                yield hub
            finally:
                hub.is_over.set()

    def spoil(self, text: str, fault: Fault) -> None:
        """Spoil every answer to a call that has this text in it, as in `GET hub/api` or `GET cdn`."""
        self._faults.append((text, fault))

    def answer(self, call: Call) -> Answer:
        """Answer as the Hub or its CDN does, and spoil that."""
        self.calls.append(call)
        path = unquote(urlsplit(call.path).path)
        answer = self._of_cdn(path) if call.is_cdn else self._of_hub(path)
        for text, fault in self._faults:
            if text in str(call):
                answer = fault(answer)
        return answer

    def _of_hub(self, path: str) -> Answer:
        is_api = path.startswith("/api/models/")
        org, name, *rest = path.removeprefix("/api/models" if is_api else "")[1:].split("/")
        repo_id = f"{org}/{name}"
        if repo_id in self.moved:
            return Answer(307, {"Location": path.replace(repo_id, self.moved[repo_id], 1) + "?blobs=true"})
        if repo_id not in self.repos:
            return answered(401, "RepoNotFound")(Answer())
        repo = self.repos[repo_id]
        if is_api:
            return _commit(repo_id, repo, "/".join(rest[1:]) or "main")
        return self._file(repo, rest[1], "/".join(rest[2:]))

    def _file(self, repo: Repo, revision: str, path: str) -> Answer:
        sha = repo.refs.get(revision, revision)
        if sha not in repo.commits:
            return answered(404, "RevisionNotFound")(Answer())
        if path not in repo.commits[sha]:
            return answered(404, "EntryNotFound")(Answer())
        content = repo.commits[sha][path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{git_sha1(content)}"'}
        if not path.endswith(".safetensors"):
            return Answer(200, headers, content)
        sha256 = hashlib.sha256(content).hexdigest()
        linked = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
        location = f"{self.cdn_url}/{sha256}?Signature={SIGNATURE}"
        return Answer(302, {**headers, **linked, "Location": location})

    def _of_cdn(self, path: str) -> Answer:
        contents = (c for repo in self.repos.values() for files in repo.commits.values() for c in files.values())
        content = next(content for content in contents if hashlib.sha256(content).hexdigest() == path[1:])
        return Answer(200, {"ETag": f'"{path[1:]}"'}, content)


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _commit(repo_id: str, repo: Repo, revision: str) -> Answer:
    sha = repo.refs.get(revision, revision)
    if sha not in repo.commits:
        return answered(404, "RevisionNotFound")(Answer())
    siblings = [_sibling(path, content) for path, content in repo.commits[sha].items()]
    described = {"id": repo_id, "modelId": repo_id, "sha": sha, "private": False, "tags": [], "siblings": siblings}
    return Answer(200, {"Content-Type": "application/json"}, json.dumps(described).encode())


def _sibling(path: str, content: bytes) -> dict[str, Any]:
    if not path.endswith(".safetensors"):
        return {"rfilename": path, "size": len(content), "blobId": git_sha1(content)}
    sha256 = hashlib.sha256(content).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
    lfs = {"sha256": sha256, "size": len(content), "pointerSize": len(pointer)}
    return {"rfilename": path, "size": len(content), "blobId": git_sha1(pointer), "lfs": lfs}


@contextmanager
def _served(hub: FakeHub, *, is_cdn: bool) -> Iterator[str]:
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub, "is_cdn": is_cdn}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # with the usual 5 a client that is turned away comes again only after a second

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave early are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub
    is_cdn: bool

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.hub.answer(Call(self.command, self.path, headers, self.is_cdn))
        if answer.is_silent:
            self._hang()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(answer.body[: answer.num_sent])
        self.wfile.flush()
        if answer.hangs:
            self._hang()
        self.close_connection = answer.num_sent is not None

    do_HEAD = do_GET  # noqa: N815 - the base class wants this name

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def _hang(self) -> None:
        self.hub.is_hanging.set()
        self.hub.is_over.wait()
