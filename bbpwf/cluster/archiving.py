"""How the agent archives: looking as the ordinary user, requesting as a job of the administrator.

:mod:`bbpwf.data.archive` decides what is archived; this gives it the hands. The administrator's connection is
opened for a request and closed after it, and runs nothing but one submitted script.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from bbpwf.clock import Clock
from bbpwf.cluster.jobs import Archived
from bbpwf.cluster.runtime import Connected
from bbpwf.data.archive import ArchiveLocation, Archiver
from bbpwf.data.s3 import Objects
from bbpwf.errors import ArchiveError, DeadlineExceeded
from bbpwf.slurm.client import SlurmClient
from bbpwf.slurm.sbatch import SbatchOptions
from bbpwf.transport.protocol import Completed, Transport

_POLL_S = 1.0


class ArchiveCommands:
    """:class:`bbpwf.data.archive.ClusterCommands` over a connected cluster.

    ``folder`` is where the privileged job leaves its output: on the shared disk, below the spool.
    """

    def __init__(self, connected: Connected, clock: Clock, *, folder: str, partition: str) -> None:
        self._connected = connected
        self._clock = clock
        self._folder = folder
        self._partition = partition

    def run(self, argv: Sequence[str], *, stdin: bytes, timeout: float) -> Completed:
        """Look at something as the ordinary user."""
        return self._connected.backend.transport.run(argv, stdin=stdin, timeout=timeout)

    def privileged(self, script: str, *, name: str, timeout: float) -> Completed:
        """Run a script as a job of the administrator and wait for its end."""
        if self._connected.privileged is None:
            raise ArchiveError("there is no administrator's login on this cluster")
        with self._connected.privileged() as transport:
            return self._job(transport, script, name, self._clock.monotonic() + timeout)

    def _job(self, transport: Transport, script: str, name: str, deadline: float) -> Completed:
        base = f"{self._folder}/a{secrets.token_hex(8)}"
        transport.write(f"{base}.sh", script.encode())
        body = f"bash {base}.sh >{base}.out 2>&1; echo $? >{base}.tmp; mv {base}.tmp {base}.code\n"
        options = SbatchOptions(
            job_name="bbpwf-archive", comment=f"bbpwf: {name}", partition=self._partition, output="/dev/null"
        )
        job_id = SlurmClient(transport).submit(options, body)
        while transport.stat([f"{base}.code"])[0] is None:
            if self._clock.monotonic() > deadline:
                SlurmClient(transport).cancel([job_id])
                raise DeadlineExceeded(f"{name}: the archive job {job_id} did not end in time", where=transport.where)
            self._clock.sleep(_POLL_S)
        code = int(transport.read(f"{base}.code").strip() or b"1")
        output = transport.read(f"{base}.out")
        transport.run(["rm", "-f", f"{base}.sh", f"{base}.out", f"{base}.code"])
        return Completed(code, output, b"")


def archive(
    connected: Connected,
    paths: Sequence[str],
    objects: Objects,
    location: ArchiveLocation,
    clock: Clock,
    *,
    folder: str,
    partition: str,
    timeout: float,
) -> list[Archived]:
    """Archive and confirm ``paths``; see :meth:`bbpwf.data.archive.Archiver.archive` for what it raises."""
    commands = ArchiveCommands(connected, clock, folder=folder, partition=partition)
    archiver = Archiver(commands, objects, location, clock=clock, privileged=connected.privileged is not None)
    return archiver.archive(paths, timeout=timeout)
