"""The console's page: the built files, read once, served from memory under a strict policy.

Nothing is looked up on the disk by what a request says, so there is no path to traverse. Files with
a hash in their name never change and are kept by the browser; the page itself is always asked for.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Final

from fastapi import APIRouter, Header, HTTPException, Response

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.resources.abc import Traversable

TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""No inline script or style, nothing from elsewhere: a name that carries markup stays a name."""
_FOR_EVER: Final = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class PageFile:
    """One built file."""

    media_type: str
    body: bytes
    gzipped: bytes
    tag: str
    cache: str


def built_page() -> dict[str, PageFile]:
    """The built files by their path below ``/``.

    Raises:
        UserError: when they are missing, which only happens in a checkout that was cleaned.
    """
    root = files("interlatent_live.console").joinpath("page", "dist")
    if not root.joinpath("index.html").is_file():
        raise UserError(
            "the console's page is not built; in interlatent_live/console/page run "
            "`npm ci && npm run build`"
        )
    found = {"": _read(root.joinpath("index.html"), "no-cache")}
    for folder, cache in (("assets", _FOR_EVER), ("", "no-cache")):
        for one in sorted(
            (root / folder if folder else root).iterdir(), key=lambda file: file.name
        ):
            if one.is_file():
                found[f"{folder}/{one.name}".lstrip("/")] = _read(one, cache)
    return found


def _read(file: Traversable, cache: str) -> PageFile:
    body = file.read_bytes()
    suffix = file.name[file.name.rfind(".") :]
    tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
    return PageFile(TYPES[suffix], body, gzip.compress(body, 9, mtime=0), tag, cache)


def page_router(page: Mapping[str, PageFile]) -> APIRouter:
    """Routes of the page; any other path is the application's own 404."""
    out = APIRouter(include_in_schema=False, default_response_class=Response)

    @out.get("/")
    @out.get("/{path:path}")
    def file(
        path: str = "",
        accept_encoding: Annotated[str, Header()] = "",
        if_none_match: Annotated[str, Header()] = "",
    ) -> Response:
        one = page.get(path)
        if one is None:
            raise HTTPException(404, "there is nothing here")
        headers = {
            "content-security-policy": POLICY,
            "cache-control": one.cache,
            "etag": one.tag,
            "vary": "accept-encoding",
        }
        if if_none_match == one.tag:
            return Response(status_code=304, headers=headers)
        if "gzip" in accept_encoding:
            headers["content-encoding"] = "gzip"
            return Response(one.gzipped, headers=headers, media_type=one.media_type)
        return Response(one.body, headers=headers, media_type=one.media_type)

    return out
