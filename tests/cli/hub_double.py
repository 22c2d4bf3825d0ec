"""As much of the Hugging Face Hub as an upload needs, on a loopback port, with what it was sent.

It speaks to the genuine `huggingface_hub`: who am I, repositories, branches, cards, large files by
the LFS protocol, and commits.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_the_token_of_the_tests"
COMMIT = "a" * 40
Answer: TypeAlias = tuple[int, dict[str, str], bytes]
FIXED: dict[str, Any] = {
    "/api/whoami-v2": {"name": "somebody", "type": "user"},
    "/api/validate-yaml": {"errors": [], "warnings": []},
}


@dataclass
class Repository:
    """One repository."""

    visibility: str
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    messages: list[str] = field(default_factory=list)
    pull_requests: int = 0


class HubDouble:
    """What the hub holds."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        """Contents by SHA-256, as they were sent before the commit."""
        self.requests: list[str] = []
        self.broken: dict[str, int] = {}
        """Statuses by the beginning of a path."""
        self.url = ""

    def add(self, name: str, **files: bytes) -> None:
        """Have a repository already. `README_md` is `README.md`."""
        named = {key.replace("_", "."): content for key, content in files.items()}
        self.repositories[name] = Repository("private", {"main": named})

    def answer(self, method: str, target: str, body: bytes) -> Answer:
        """Answer one request."""
        parts = urlsplit(target)
        path = unquote(parts.path)
        self.requests.append(f"{method} {path}")
        for beginning, status in self.broken.items():
            if path.startswith(beginning):
                return status, {}, b'{"error": "broken by the test"}'
        if path in FIXED:
            return _json(FIXED[path])
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.startswith("/api/"):
            return self._of_repository(path, parts.query, body)
        return self._of_files(path, body)

    def _of_files(self, path: str, body: bytes) -> Answer:
        if path.startswith("/lfs/"):
            self.large[path.removeprefix("/lfs/")] = body
            return 200, {}, b""
        if path.endswith("/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        return self._file(*path.lstrip("/").split("/resolve/"))

    def _of_repository(self, path: str, query: str, body: bytes) -> Answer:
        """`/api/models/OWNER/NAME/KIND/REST`."""
        owner, name, *rest = path.split("/")[3:]
        repository = self.repositories.get(f"{owner}/{name}")
        if repository is None:
            return 404, {"x-error-code": "RepoNotFound"}, b"{}"
        kind = rest.pop(0)
        if kind == "preupload":
            return _json({"files": [_mode(file) for file in json.loads(body)["files"]]})
        branch = "/".join(rest)
        if kind == "branch":
            repository.branches[branch] = dict(repository.branches["main"])
            return _json({})
        assert kind == "commit", path
        create_pr = "create_pr" in parse_qs(query)
        return self._commit(f"{owner}/{name}", repository, branch, body, create_pr=create_pr)

    def _create(self, wanted: dict[str, Any]) -> Answer:
        name = f"{wanted.get('organization') or 'somebody'}/{wanted['name']}"
        there = name in self.repositories
        self.repositories.setdefault(name, Repository(wanted.get("visibility", "public")))
        status, headers, content = _json({"url": f"{self.url}/{name}", "name": name})
        return 409 if there else status, headers, content

    def _batch(self, wanted: dict[str, Any]) -> Answer:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.url}/lfs/{one['oid']}"}}}
            for one in wanted["objects"]
        ]
        return _json({"transfer": "basic", "objects": objects})

    def _file(self, name: str, rest: str) -> Answer:
        branch, _, file = rest.partition("/")
        repository = self.repositories.get(name)
        if repository is None:
            return 404, {"x-error-code": "RepoNotFound"}, b""
        if branch not in repository.branches:
            return 404, {"x-error-code": "RevisionNotFound"}, b""
        content = repository.branches[branch].get(file)
        if content is None:
            return 404, {"x-error-code": "EntryNotFound"}, b""
        tag = hashlib.sha1(content).hexdigest()
        return 200, {"etag": f'"{tag}"', "x-repo-commit": COMMIT}, content

    def _commit(
        self, name: str, repository: Repository, branch: str, body: bytes, *, create_pr: bool
    ) -> Answer:
        if create_pr:
            repository.pull_requests += 1
            branch = f"refs/pr/{repository.pull_requests}"
        if branch not in repository.branches and not create_pr:
            return 404, {"x-error-code": "RevisionNotFound"}, b"{}"
        files = repository.branches.setdefault(branch, {})
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repository.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.large[value["oid"]]
        answer = {"commitUrl": f"{self.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT}
        if create_pr:
            answer["pullRequestUrl"] = f"{self.url}/{name}/discussions/1"
        return _json(answer)


def _mode(file: dict[str, Any]) -> dict[str, Any]:
    large = file["path"].endswith((".safetensors", ".bin"))
    mode = "lfs" if large else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}


def _json(value: Any) -> Answer:
    return 200, {"content-type": "application/json"}, json.dumps(value).encode()


@contextmanager
def serve_hub() -> Iterator[HubDouble]:
    """Serve for the length of a block."""
    hub = HubDouble()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            needs_token = not self.path.startswith("/lfs/")
            if needs_token and self.headers.get("authorization") != f"Bearer {TOKEN}":
                status, headers, content = (
                    401,
                    dict[str, str](),
                    b'{"error": "Invalid username or password."}',
                )
            else:
                status, headers, content = hub.answer(self.command, self.path, body)
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815  # their names there

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name there
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
