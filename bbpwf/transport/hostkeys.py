"""Which host key belongs to which head node: pinned at first sight, refused when it changes.

The file is OpenSSH's ``known_hosts`` format, so that an operator can read, prepare and mend it with the usual tools.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import paramiko

from bbpwf.errors import HostKeyChanged, InvalidConfig


class HostKeyPins:
    """The pins in one file, shared by processes: every change is made under a lock and appears at once.

    Args:
        path: the file; it and its folder are made when the first key is pinned.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def types(self, host: str, port: int) -> list[str]:
        """Key types that are pinned for a host; the server is to be asked for one of these. Empty: none yet."""
        return sorted(self._pinned(self._load(), host, port))

    def check(self, host: str, port: int, key: paramiko.PKey, *, trust_new: bool) -> bool:
        """Compare the key that a host shows with the one pinned for it; ``True`` if it was pinned just now.

        Args:
            host: name or address as it is connected to.
            port: its SSH port.
            key: the public key that it proved to have.
            trust_new: whether the first key of a host that was never seen is taken on trust.

        Raises:
            HostKeyChanged: another key is pinned, or none is and the first is not to be trusted.
        """
        with self._locked():
            keys = self._load()
            pinned = self._pinned(keys, host, port)
            if key.get_name() in pinned and pinned[key.get_name()].asbytes() == key.asbytes():
                return False
            name = _entry_name(host, port)
            if pinned:
                known = ", ".join(str(each.fingerprint) for each in pinned.values())
                raise HostKeyChanged(
                    f"the host key changed: pinned is {known}, the server shows {key.fingerprint}",
                    where=f"{host}:{port}",
                    hint="Somebody may be listening in. If the cluster was made anew, remove the old key with "
                    f"`ssh-keygen -R '{name}' -f {self._path}` and try again.",
                )
            if not trust_new:
                raise HostKeyChanged(
                    f"no host key is pinned, and the first is not to be trusted; the server shows {key.fingerprint}",
                    where=f"{host}:{port}",
                    hint=f"Compare this fingerprint with the server's, and add the key to {self._path}.",
                )
            keys.add(name, key.get_name(), key)
            self._save(keys)
            return True

    def forget(self, host: str, port: int) -> None:
        """Remove a host's pins: its cluster is known to have been made anew."""
        with self._locked():
            keys = self._load()
            name = _entry_name(host, port)
            if keys.lookup(name) is not None:
                kept = paramiko.HostKeys()
                for other in keys.keys():  # noqa: SIM118 - the mapping's iterator repeats hosts with several keys
                    if other != name:
                        for kind, key in (keys.lookup(other) or {}).items():
                            kept.add(other, kind, key)
                self._save(kept)

    def _pinned(self, keys: paramiko.HostKeys, host: str, port: int) -> dict[str, paramiko.PKey]:
        found = keys.lookup(_entry_name(host, port))
        return dict(found.items()) if found is not None else {}

    def _load(self) -> paramiko.HostKeys:
        keys = paramiko.HostKeys()
        try:
            keys.load(str(self._path))
        except FileNotFoundError:
            pass
        except (OSError, UnicodeDecodeError, paramiko.SSHException) as error:
            raise InvalidConfig(f"the host key file cannot be read: {error}", where=str(self._path)) from error
        return keys

    def _save(self, keys: paramiko.HostKeys) -> None:
        handle, draft = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name)
        os.close(handle)
        try:
            keys.save(draft)
            Path(draft).replace(self._path)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self._path.with_name(self._path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise InvalidConfig(f"the host key file cannot be locked: {error}", where=str(self._path)) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # held for a few file operations only
            yield
        finally:
            os.close(descriptor)


def _entry_name(host: str, port: int) -> str:
    return host if port == 22 else f"[{host}]:{port}"
