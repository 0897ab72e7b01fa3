"""CURVE keys as files: who is known, as what, until when.

A key directory holds one private file (``NAME.key``, 0600) and one public certificate
(``NAME.pub``) per key, and the list of revoked keys. A server needs its own private file and the
certificates of whoever may connect; an agent needs its own private file and the server's
certificate. All files are TOML, read with the standard library and written whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tomllib
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import zmq

from interlatent_live.errors import UserError
from interlatent_live.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PUBLIC_PATTERN: Final = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
REVOKED_FILE: Final = "revoked.toml"
PREVIOUS: Final = "~previous"
DEFAULT_DAYS: Final = 365


class KeyRole(StrEnum):
    """What a key is for; it limits which sockets it opens and for whom it speaks."""

    AGENT = "agent"
    """Sends steps, of the agent it is named after and of no other."""
    SERVICE = "service"
    """One of our services: sends what any agent sent."""
    VIEWER = "viewer"
    """Reads feeds."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """The public half of a key. ``public`` is Z85 text of 40 characters."""

    name: str
    role: KeyRole
    public: str
    created: datetime
    expires: datetime | None = None

    @property
    def fingerprint(self) -> str:
        """The first 16 hex digits of the key's SHA-256, for people to compare."""
        return hashlib.sha256(self.public.encode()).hexdigest()[:16]

    @property
    def user_id(self) -> str:
        """What a server is told of a connection made with this key."""
        return f"{self.role}/{self.name}/{self.fingerprint}"


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """Both halves. The secret is kept out of every representation."""

    certificate: Certificate
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """What a connecting socket needs: its own pair and the server's public key, Z85 bytes."""

    name: str
    public: bytes
    secret: bytes = field(repr=False)
    server: bytes

    @classmethod
    def load(cls, key: Path, server: Path) -> ClientKeys:
        """Read a private key file and the certificate of the server it is for.

        Raises:
            UserError: when a file is absent, malformed, or readable by others.
        """
        own = read_private(key)
        known = read_certificate(server)
        if known.role is not KeyRole.SERVICE:
            raise UserError(
                f"{server} is the certificate of {known.role} {known.name!r}, not of a service; "
                "give the file that `interlatent-live keys new NAME --role service` made"
            )
        return cls(
            name=own.certificate.name,
            public=own.certificate.public.encode(),
            secret=own.secret.encode(),
            server=known.public.encode(),
        )


@dataclass(frozen=True, slots=True)
class ServerKeys:
    """What a listening socket needs: its own pair, and the directory of who may connect."""

    name: str
    public: bytes
    secret: bytes = field(repr=False)
    directory: Path

    @classmethod
    def load(cls, directory: Path, name: str | None = None) -> ServerKeys:
        """Read the service key of a directory; ``name`` is needed when there are several.

        Raises:
            UserError: when there is none, or more than one and no name.
        """
        keys = KeyDirectory(directory)
        if name is None:
            names = [
                path.stem
                for path in sorted(directory.glob("*.key"))
                if read_private(path).certificate.role is KeyRole.SERVICE
            ]
            if len(names) != 1:
                found = f"the service keys {', '.join(names)}" if names else "no service key"
                remedy = (
                    "name one of them"
                    if names
                    else f"run `interlatent-live keys new service --role service --dir {directory}`"
                )
                raise UserError(f"{directory} has {found}; {remedy}")
            name = names[0]
        own = keys.private(name)
        if own.certificate.role is not KeyRole.SERVICE:
            raise UserError(
                f"the key {name!r} in {directory} has the role {own.certificate.role}; a listening "
                "socket needs one with the role service"
            )
        return cls(name, own.certificate.public.encode(), own.secret.encode(), directory)

    def client(self) -> ClientKeys:
        """The same key as a client's, for links between services that share it."""
        return ClientKeys(self.name, self.public, self.secret, server=self.public)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a key may connect: ``user_id`` when it may, else ``reason`` says why not."""

    certificate: Certificate | None
    reason: str = ""

    @property
    def user_id(self) -> str:
        """The connection's user id, ``""`` when refused."""
        return self.certificate.user_id if self.certificate is not None else ""


class KeyRing:
    """A snapshot of a key directory: decides without touching a file."""

    def __init__(self, certificates: Iterable[Certificate], revoked: Iterable[str] = ()) -> None:
        self._known = {certificate.public: certificate for certificate in certificates}
        self._revoked = frozenset(revoked)

    def check(self, public: str, now: datetime) -> Verdict:
        """The verdict on a public key at a moment: ``unknown``, ``revoked``, ``expired`` or in."""
        if public in self._revoked:
            return Verdict(None, "revoked")
        certificate = self._known.get(public)
        if certificate is None:
            return Verdict(None, "unknown")
        if certificate.expires is not None and now >= certificate.expires:
            return Verdict(None, "expired")
        return Verdict(certificate)

    def allows(self, user_id: str, now: datetime) -> bool:
        """Whether a connection made earlier under ``user_id`` would still be let in."""
        return any(
            certificate.user_id == user_id and self.check(public, now).certificate is not None
            for public, certificate in self._known.items()
        )


class KeyDirectory:
    """The files of a key directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(
        self,
        name: str,
        role: KeyRole,
        *,
        days: float | None = DEFAULT_DAYS,
        now: datetime | None = None,
    ) -> PrivateKey:
        """Make a key pair and write both files.

        Raises:
            UserError: when the name is not usable or taken.
        """
        _check_name(name)
        if self._certificate_path(name).exists() or self._private_path(name).exists():
            raise UserError(
                f"{self.path} has a key {name!r} already; `interlatent-live keys rotate {name}` "
                "replaces it, or choose another name"
            )
        key = _new_key(name, role, days, now or datetime.now(UTC))
        self._write(key)
        return key

    def rotate(
        self,
        name: str,
        *,
        grace: timedelta,
        days: float | None = DEFAULT_DAYS,
        now: datetime | None = None,
    ) -> PrivateKey:
        """Replace a key; the old one is let in for ``grace`` longer, and never after.

        Raises:
            UserError: when there is no such key.
        """
        now = now or datetime.now(UTC)
        old = self.certificate(name)
        key = _new_key(name, old.role, days, now)
        end = now + grace
        expires = end if old.expires is None else min(end, old.expires)
        _write_certificate(
            self.path / f"{name}{PREVIOUS}.pub",
            replace(old, expires=expires.replace(microsecond=0)),
        )
        self._write(key)
        return key

    def revoke(self, name: str, *, now: datetime | None = None) -> tuple[Certificate, ...]:
        """Refuse a key, and its predecessor, from now on.

        Raises:
            UserError: when there is no such key.
        """
        current = self.certificate(name)
        previous = self.path / f"{name}{PREVIOUS}.pub"
        gone = (current, *((read_certificate(previous),) if previous.exists() else ()))
        entries = dict(self._revoked_entries())
        stamp = (now or datetime.now(UTC)).replace(microsecond=0)
        entries.update({certificate.public: (name, stamp) for certificate in gone})
        blocks = [
            f"[[revoked]]\nname = {json.dumps(who)}\npublic = {json.dumps(public)}\n"
            f"at = {_moment(at)}\n"
            for public, (who, at) in entries.items()
        ]
        _write_file(self.path / REVOKED_FILE, "\n".join(blocks), 0o600)
        return gone

    def certificates(self) -> tuple[Certificate, ...]:
        """Every certificate, by name; files that are none are left out, see :meth:`ring`."""
        return self._scan()[0]

    def certificate(self, name: str) -> Certificate:
        """The certificate of that name.

        Raises:
            UserError: when there is none.
        """
        path = self._certificate_path(name)
        if not path.exists():
            known = ", ".join(sorted(c.name for c in self.certificates())) or "none"
            raise UserError(f"{self.path} has no key {name!r}; it has: {known}")
        return read_certificate(path)

    def private(self, name: str) -> PrivateKey:
        """The private key of that name.

        Raises:
            UserError: when there is none, or others can read it.
        """
        return read_private(self._private_path(name))

    def has_private(self, name: str) -> bool:
        """Whether the private half of a key is here."""
        return self._private_path(name).exists()

    def revoked(self) -> Mapping[str, tuple[str, datetime]]:
        """Revoked public keys, each with its name and since when."""
        return self._revoked_entries()

    def ring(self) -> tuple[KeyRing, tuple[str, ...]]:
        """A snapshot, and one sentence for each file that could not be read.

        A certificate that cannot be read lets nobody in. A list of revoked keys that cannot be read
        would let revoked keys in, so then the ring is empty.
        """
        certificates, problems = self._scan()
        try:
            revoked = self._revoked_entries()
        except UserError as error:
            return KeyRing(()), (*problems, str(error))
        return KeyRing(certificates, revoked), problems

    def signature(self) -> tuple[tuple[str, int, int], ...]:
        """Changes whenever a file of the directory does."""
        found = []
        with contextlib.suppress(OSError), os.scandir(self.path) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    stat = entry.stat()
                    found.append((entry.name, stat.st_mtime_ns, stat.st_size))
        return tuple(sorted(found))

    def _scan(self) -> tuple[tuple[Certificate, ...], tuple[str, ...]]:
        certificates, problems = [], []
        for path in sorted(self.path.glob("*.pub")):
            try:
                certificates.append(read_certificate(path))
            except UserError as error:
                problems.append(str(error))
        return tuple(certificates), tuple(problems)

    def _revoked_entries(self) -> Mapping[str, tuple[str, datetime]]:
        path = self.path / REVOKED_FILE
        if not path.exists():
            return {}
        entries = {}
        for entry in _read_toml(path).get("revoked", []):
            public, at = entry.get("public"), entry.get("at")
            if not isinstance(public, str) or not isinstance(at, datetime):
                raise UserError(f"{path} is not a list of revoked keys; restore it from a backup")
            entries[public] = (str(entry.get("name", "")), at)
        return entries

    def _write(self, key: PrivateKey) -> None:
        make_private_folder(self.path)
        certificate = key.certificate
        text = _certificate_text(certificate) + f"secret = {json.dumps(key.secret)}\n"
        _write_file(self._private_path(certificate.name), text, 0o600)
        _write_certificate(self._certificate_path(certificate.name), certificate)

    def _certificate_path(self, name: str) -> Path:
        return self.path / f"{name}.pub"

    def _private_path(self, name: str) -> Path:
        return self.path / f"{name}.key"


def read_certificate(path: Path) -> Certificate:
    """Read a certificate, or the public half of a private file.

    Raises:
        UserError: when the file is absent or is none.
    """
    return _certificate_of(path, _read_toml(path))


def read_private(path: Path) -> PrivateKey:
    """Read a private key file.

    Raises:
        UserError: when the file is absent, is none, or can be read by others.
    """
    fields = _read_toml(path)
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise UserError(
            f"the private key {path} is open to other users (mode {mode:04o}); "
            f"run `chmod 600 {path}`, and replace the key if it may have been read"
        )
    secret = fields.pop("secret", None)
    if not isinstance(secret, str) or not PUBLIC_PATTERN.fullmatch(secret):
        raise UserError(f"{path} has no secret key; give the .key file, not the .pub file")
    certificate = _certificate_of(path, fields)
    if zmq.curve_public(secret.encode()).decode() != certificate.public:
        raise UserError(f"the two halves of the key in {path} do not belong together")
    return PrivateKey(certificate, secret)


def make_private_folder(path: Path) -> None:
    """Make ``path`` for this user only, with its parents; an existing one is left as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)


def _new_key(name: str, role: KeyRole, days: float | None, now: datetime) -> PrivateKey:
    public, secret = zmq.curve_keypair()
    created = now.replace(microsecond=0)
    expires = None if days is None else created + timedelta(days=days)
    return PrivateKey(Certificate(name, role, public.decode(), created, expires), secret.decode())


def _check_name(name: str) -> None:
    if not NAME_PATTERN.fullmatch(name):
        raise UserError(
            f"{name!r} cannot name a key: up to 64 letters, digits, dots, hyphens and underscores, "
            "beginning with a letter or digit"
        )


def _certificate_of(path: Path, fields: dict[str, Any]) -> Certificate:
    name, role, public = fields.get("name"), fields.get("role"), fields.get("public")
    created, expires = fields.get("created"), fields.get("expires")
    plain = isinstance(name, str) and isinstance(public, str) and role in set(KeyRole)
    timed = _is_moment(created) and (expires is None or _is_moment(expires))
    if not (plain and timed and NAME_PATTERN.fullmatch(str(name))):
        raise UserError(f"{path} is not a certificate of ours; make one with `keys new`")
    if not PUBLIC_PATTERN.fullmatch(str(public)):
        raise UserError(f"{path} has a public key that is not 40 characters of Z85")
    # Checked above; the casts are for the type checker, which does not follow the conjunctions.
    return Certificate(str(name), KeyRole(str(role)), str(public), created, expires)  # type: ignore[arg-type]


def _is_moment(value: object) -> bool:
    return isinstance(value, datetime) and value.tzinfo is not None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise UserError(f"there is no key file {path}") from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"the key file {path} cannot be read: {error}") from None


def _certificate_text(certificate: Certificate) -> str:
    lines = [
        f"name = {json.dumps(certificate.name)}",
        f"role = {json.dumps(certificate.role.value)}",
        f"public = {json.dumps(certificate.public)}",
        f"created = {_moment(certificate.created)}",
    ]
    if certificate.expires is not None:
        lines.append(f"expires = {_moment(certificate.expires)}")
    return "\n".join(lines) + "\n"


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _write_certificate(path: Path, certificate: Certificate) -> None:
    _write_file(path, _certificate_text(certificate), 0o644)


def _write_file(path: Path, text: str, mode: int) -> None:
    make_private_folder(path.parent)
    replace_file(path, text.encode(), mode=mode)
