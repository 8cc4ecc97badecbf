"""``evenflow keys``: make, list and revoke API keys in clients.toml. A key is printed once; its hash is kept.

The file is edited in place of the reader: comments, order and everything that is not a key stay as they
are. What would not load again is not written.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import tempfile
from collections.abc import Generator
from pathlib import Path

from evenflow.base.errors import ConfigError

ADMIN = "admin"
SHOWN_CHARACTERS = 12
"""Of a hash in a listing: enough to tell keys apart and to name one for ``revoke``."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "keys",
        help="make, list and revoke clients' API keys",
        description="API keys in clients.toml. A running server reads the file again on SIGHUP.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    new = actions.add_parser("new", help="make a key, print it once, store its hash")
    new.add_argument("name", metavar="NAME", help="the client; admin: a key that may load and unload adapters")
    new.add_argument("--weight", type=float, metavar="W", help="share weight of a client that is new in the file (1)")
    listing = actions.add_parser("list", help="clients and the beginnings of their keys' hashes")
    revoke = actions.add_parser("revoke", help="take a client's keys away")
    revoke.add_argument("name", metavar="NAME")
    revoke.add_argument("--key", metavar="HASH", help="only the key whose hash starts so (see keys list); default: all of them")
    for action in (new, listing, revoke):
        action.add_argument("--clients", type=Path, required=True, metavar="FILE", help="clients.toml")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do what was asked. Raises ConfigError for a file that cannot be read or written."""
    if args.action == "new":
        print(new_client_key(args.clients, args.name, args.weight))
    elif args.action == "list":
        for line in list_keys(args.clients):
            print(line)
    else:
        num_revoked = revoke_keys(args.clients, args.name, args.key)
        print(f"revoked {num_revoked} key{'' if num_revoked == 1 else 's'} of {args.name}")
    return 0


def new_client_key(path: Path, name: str, weight: float | None = None) -> str:
    """Make a key for ``name``, store its hash in ``path`` (made if missing) and return the key."""
    with _locked(path):
        return _add_key(path, name, weight)


def _add_key(path: Path, name: str, weight: float | None) -> str:
    import tomlkit

    from evenflow.access.keys import hash_key, new_key

    document = _read(path)
    if name == ADMIN:
        section = document.setdefault("admin", tomlkit.table())
    else:
        clients = document.setdefault("clients", tomlkit.table(is_super_table=True))
        is_new = name not in clients
        section = clients.setdefault(name, tomlkit.table())
        if weight is not None:
            if not is_new:
                raise ConfigError(f"{path} has a client {name!r} already; change its weight there")
            section["weight"] = weight
    key = new_key()
    section.setdefault("api_keys", tomlkit.array()).append(hash_key(key))
    _write(path, document)
    return key


def list_keys(path: Path) -> list[str]:
    """One line per client: name, weight and the beginnings of its keys' hashes."""
    document = _read(path, must_exist=True)
    sections = {**document.get("clients", {})}
    if "admin" in document:
        sections[ADMIN] = document["admin"]
    lines = []
    for name, section in sections.items():
        hashes = [text.removeprefix("sha256:")[:SHOWN_CHARACTERS] for text in section.get("api_keys", [])]
        lines.append(f"{name}\t{', '.join(hashes) or 'no key'}")
    return lines


def revoke_keys(path: Path, name: str, key: str | None = None) -> int:
    """Take away the keys of ``name`` whose hash starts with ``key``, or all; how many. Raises ConfigError if there is none."""
    with _locked(path):
        return _take_keys(path, name, key)


def _take_keys(path: Path, name: str, key: str | None) -> int:
    document = _read(path, must_exist=True)
    section = document.get("admin") if name == ADMIN else document.get("clients", {}).get(name)
    hashes = list(section.get("api_keys", [])) if section is not None else []
    prefix = (key or "").removeprefix("sha256:")
    gone = [text for text in hashes if text.removeprefix("sha256:").startswith(prefix)]
    if not gone:
        which = f"a key that starts with {prefix}" if prefix else "a key"
        raise ConfigError(f"{path} has no client {name!r} with {which}")
    if key is not None and len(gone) > 1:
        raise ConfigError(f"{len(gone)} keys of {name!r} start with {prefix}; give more of the hash")
    for text in gone:
        section["api_keys"].remove(text)
    _write(path, document)
    return len(gone)


def _read(path: Path, *, must_exist: bool = False):  # type: ignore[no-untyped-def]  # tomlkit's documents are untyped mappings
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    from evenflow.access.identity import read_directory

    if not path.exists() and not must_exist:
        return tomlkit.document()
    read_directory(path)  # says what is wrong with the file before it is touched
    try:
        return tomlkit.parse(path.read_text("utf-8"))
    except TOMLKitError as error:
        raise ConfigError(f"{path}: {error}") from None


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None, None, None]:
    """One at a time, however many are run at once: each sees what the one before has written."""
    target = path.resolve()
    try:
        descriptor = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)  # the file itself is replaced under the lock
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, document: object) -> None:
    """Replace the file in one move, its owner and mode kept, readable by its owner alone if it is new, if it would load."""
    import tomlkit

    from evenflow.access.identity import read_directory

    target = path.resolve()
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from None
    draft = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(tomlkit.dumps(document))  # type: ignore[arg-type]
        read_directory(draft)
        if target.exists():
            before = target.stat()
            draft.chmod(before.st_mode & 0o777)
            if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                _give_to(draft, path, before.st_uid, before.st_gid)
        os.replace(draft, target)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from None
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(draft), str(path))) from None
    finally:
        draft.unlink(missing_ok=True)


def _give_to(draft: Path, path: Path, uid: int, gid: int) -> None:
    """Raises ConfigError if this user may not: a file that changes hands would be unreadable for the server."""
    try:
        os.chown(draft, uid, gid)
    except PermissionError:
        raise ConfigError(f"{path} belongs to user {uid} and group {gid}; only they, or root, may change it") from None
