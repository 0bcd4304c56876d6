"""The page: the files that Vite built into ``controller/web/static``, held in memory and served by exact path.

Only what was there when the controller started is served, so no path of a request ever reaches the file system.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aiohttp import hdrs, web

STATIC = Path(__file__).parent / "static"

#: A page of ours is below 2 MB; more is a mistake, and would stay in memory.
MAX_PAGE_BYTES = 32 * 1024 * 1024

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".map": "application/json",
    ".md": "text/markdown; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".png": "image/png",
    ".ico": "image/vnd.microsoft.icon",
    ".woff2": "font/woff2",
    ".webmanifest": "application/manifest+json",
}

#: Vite's names of what never changes under its name: ``assets/index-D6khFcrT.js``
_HASHED = re.compile(r"/assets/[^/]+-[A-Za-z0-9_-]{8,}\.[a-z0-9.]+")

NOT_BUILT = """\
The page is not built. Everything else works: this is the API's address for the hedgerow command.

To build the page, run `make setup` where Node.js 20.19 or later with npm is installed, and start the controller again.
"""


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    type: str
    tag: str
    caching: str


def load(folder: Path = STATIC) -> Mapping[str, _File]:
    """The files of a built page by the path under which they are served; empty when it is not built.

    :raises ValueError: when the folder holds far more than a page
    """
    files: dict[str, _File] = {}
    size = 0
    for path in sorted(folder.rglob("*")):
        name = "/" + path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in name[1:].split("/")) or path.is_symlink() or not path.is_file():
            continue
        content = path.read_bytes()
        size += len(content)
        if size > MAX_PAGE_BYTES:
            raise ValueError(f"{folder} holds more than {MAX_PAGE_BYTES} bytes")
        files[name] = _File(
            content,
            _TYPES.get(path.suffix, "application/octet-stream"),
            f'"{hashlib.sha256(content).hexdigest()[:32]}"',
            "public, max-age=31536000, immutable" if _HASHED.fullmatch(name) else "no-cache",
        )
    return files if "/index.html" in files else {}


class Page:
    """Serves the page's files."""

    def __init__(self, files: Mapping[str, _File]) -> None:
        self._files = dict(files)
        if files:
            self._files["/"] = files["/index.html"]

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/{path:(?!api/).*}", self.serve)]

    async def serve(self, request: web.Request) -> web.Response:
        file = self._files.get(request.path)
        if file is None:
            if request.path == "/" and not self._files:
                return web.Response(text=NOT_BUILT, status=503)
            raise web.HTTPNotFound
        headers = {hdrs.ETAG: file.tag, hdrs.CACHE_CONTROL: file.caching}
        if file.tag in request.headers.get(hdrs.IF_NONE_MATCH, ""):
            return web.Response(status=304, headers=headers)
        return web.Response(body=file.content, headers=headers | {hdrs.CONTENT_TYPE: file.type})
