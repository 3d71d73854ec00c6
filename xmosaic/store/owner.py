"""Who writes a store: a process, told apart from every other, and whether it is still there."""

from __future__ import annotations

import functools
import json
import os
import socket
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path

# Locks that this process holds: one of its own that isn't among them was left by a call that is over.
HELD: set[str] = set()


@dataclass(frozen=True)
class Owner:
    """One holder of a lock.

    Attributes
    ----------
    token : str
        Of this lock alone.
    host, boot, space : str
        Machine, its last start, and the space its process numbers are from: containers of a machine share the first
        two at most.
    pid : int
    began : str
        When the process began, as the kernel counts: a number that is used again is another process.
    beat : float
        Seconds since 1970 when the holder last said that it is there.
    """

    token: str
    host: str
    boot: str
    space: str
    pid: int
    began: str
    beat: float

    @classmethod
    def me(cls) -> Owner:
        """The process that asks, with a new token."""
        host, boot, space = _machine()
        return cls(uuid.uuid4().hex, host, boot, space, os.getpid(), _began(os.getpid()), time.time())

    @classmethod
    def read(cls, text: bytes | str) -> Owner | None:
        """What stands in a lock; None for what can't be read."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def text(self) -> bytes:
        """What to write into a lock."""
        return json.dumps(asdict(self)).encode()

    def beating(self) -> Owner:
        """The same with the time of now."""
        return replace(self, beat=time.time())

    def gone(self) -> bool | None:
        """Whether this holder is no longer there; None where only its beat can tell."""
        if (self.host, self.boot, self.space) != _machine() or not self.space:
            return None
        if self.pid == os.getpid() and self.began == _began(self.pid):
            return self.token not in HELD
        return _began(self.pid) != self.began

    def __str__(self) -> str:
        if not self.host:
            return "a process that hasn't written its name yet"
        return f"process {self.pid} on {self.host}, last seen {max(0.0, time.time() - self.beat):.0f} s ago"


@functools.cache
def _machine() -> tuple[str, str, str]:
    """Host, boot and process space; empty strings where the system doesn't say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        boot = space = ""
    return socket.gethostname(), boot, space


def _began(pid: int) -> str:
    """When a process began; empty if it is gone, or dead and not yet waited for."""
    try:
        # the name in brackets may hold anything, brackets and spaces too
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
