"""Every error that bbpwf raises on purpose.

::

    BbpwfError
    ├── InvalidInput            the caller's to mend
    │   ├── UnknownTask         no such module or task
    │   ├── InvalidParameter    missing, ill-typed or unknown parameter
    │   ├── InvalidConfig       settings or a Luigi .cfg that make no sense
    │   └── UnsafeUpload        an attachment that escapes, collides or is too large
    ├── NotFound                run, job, task or file that does not exist (or may not be seen)
    ├── Conflict                the request contradicts what is already recorded
    ├── AccessError
    │   ├── NotAuthenticated    no valid token
    │   │   └── LoginNeeded     a run can act for its owner no more until they log in again
    │   └── NotAuthorized       a valid token that does not allow this
    ├── LimitExceeded           an output or upload over its cap
    │   └── TooManyRuns         as many runs wait already as may
    ├── DeadlineExceeded        a wait that reached its limit
    ├── TransportError          reaching a cluster
    │   ├── ConnectFailed       nobody answered, or not as an SSH server
    │   ├── ConnectionLost      it broke on the way: what was asked may or may not have happened
    │   ├── LoginRefused        the key or user was refused
    │   ├── HostKeyChanged      the head node shows another host key than the pinned one
    │   └── CommandTimeout      a remote command ran out of its time: it may or may not have taken effect
    ├── CommandFailed           a command ended with a non-zero exit code
    ├── SlurmError
    │   ├── SlurmBusy           the controller could not answer now
    │   ├── SubmitLimited       a submission limit was reached; wait, then submit
    │   ├── SubmitRejected      Slurm refused the job for good
    │   ├── SubmitAmbiguous     the job may or may not exist: look it up before anything else
    │   └── AccountingDisabled  the cluster keeps no accounting
    ├── PlatformError
    │   ├── ProvisionerError    the provisioner failed or answered nonsense
    │   ├── ClusterFailed       the project's cluster cannot be used
    │   ├── SecretUnavailable   Secrets Manager has no usable key
    │   ├── NoRoom              as many project instances as may be run at once
    │   ├── InstanceFailed      a project's instance could not be started or reached
    │   └── IdentityUnavailable the identity provider cannot be reached or trusted
    ├── DataError
    │   ├── NexusError          the knowledge graph refused or failed
    │   └── ArchiveError        a file could not be confirmed in the archive
    ├── LedgerError             the database contradicts itself or cannot be used
    └── JobFailed               a job ended otherwise than well

Code that catches an error looks at its type and at :attr:`BbpwfError.retryable`, never at its text.
How each becomes an HTTP status or an exit code is written in one table of the service and one of the CLI.
"""

from __future__ import annotations


class BbpwfError(Exception):
    """What happened, where, whether trying again can help, and what to do.

    Args:
        message: one sentence naming the thing that is wrong; never contains a secret.
        where: host, path, endpoint or component, if that helps to find it.
        hint: what the reader can do about it.
        retryable: overrides the class's own answer to "can the same call succeed later?".
    """

    retryable: bool = False

    def __init__(self, message: str, *, where: str = "", hint: str = "", retryable: bool | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint
        if retryable is not None:
            self.retryable = retryable

    def __str__(self) -> str:
        text = f"{self.message} [{self.where}]" if self.where else self.message
        return f"{text} {self.hint}" if self.hint else text


class InvalidInput(BbpwfError):
    """The caller asked for something that cannot be."""


class UnknownTask(InvalidInput):
    """No such task module, or no such task in it."""


class InvalidParameter(InvalidInput):
    """A task parameter is missing, unknown or of the wrong type."""


class InvalidConfig(InvalidInput):
    """A settings file, environment variable or Luigi ``.cfg`` makes no sense."""


class UnsafeUpload(InvalidInput):
    """An uploaded file has a name, size or content that is refused."""


class NotFound(BbpwfError):
    """The run, job, task or file does not exist, or this caller may not see it."""


class Conflict(BbpwfError):
    """The request contradicts what is already recorded."""


class AccessError(BbpwfError):
    """The caller may not do this."""


class NotAuthenticated(AccessError):
    """There is no valid token."""


class LoginNeeded(NotAuthenticated):
    """There is no way left to act for a run's owner: they have to log in again. Until then the run can wait."""

    retryable = True


class NotAuthorized(AccessError):
    """The token is valid but does not allow this."""


class LimitExceeded(BbpwfError):
    """An output or upload is larger than its cap."""


class TooManyRuns(LimitExceeded):
    """As many runs are unfinished already, of the instance or of this user, as may be at once."""

    retryable = True


class DeadlineExceeded(BbpwfError):
    """A wait reached its limit."""

    retryable = True


class TransportError(BbpwfError):
    """A cluster could not be reached, or was lost."""

    retryable = True


class ConnectFailed(TransportError):
    """Nobody answered, or not as an SSH server."""


class ConnectionLost(TransportError):
    """The connection broke. Whatever was under way may or may not have happened."""


class LoginRefused(TransportError):
    """The head node refused the user or key."""

    retryable = False


class HostKeyChanged(TransportError):
    """The head node's host key is not the one that was pinned."""

    retryable = False


class CommandTimeout(TransportError):
    """A remote command ran out of its time. It may or may not have taken effect."""


class CommandFailed(BbpwfError):
    """A command ended with a non-zero exit code.

    Args:
        message: what was being done.
        exit_code: as the shell reports it (128 + n for signal n).
        stderr: the end of what it said, already capped.
    """

    def __init__(self, message: str, *, exit_code: int, stderr: str = "", where: str = "", hint: str = "") -> None:
        super().__init__(message, where=where, hint=hint)
        self.exit_code = exit_code
        self.stderr = stderr


class SlurmError(BbpwfError):
    """Slurm did not do what was asked."""


class SlurmBusy(SlurmError):
    """The controller could not answer now; nothing was changed."""

    retryable = True


class SubmitLimited(SlurmError):
    """A submission limit of the site, partition or user was reached; nothing was submitted."""

    retryable = True


class SubmitRejected(SlurmError):
    """Slurm refused the job, and will refuse the same job again."""


class SubmitAmbiguous(SlurmError):
    """No clear answer to a submission: the job may or may not exist. Look it up before trying again."""


class AccountingDisabled(SlurmError):
    """The cluster keeps no accounting (ParallelCluster's default)."""


class PlatformError(BbpwfError):
    """A service of the platform failed."""


class ProvisionerError(PlatformError):
    """The provisioner failed, or answered what its contract does not allow."""


class ClusterFailed(PlatformError):
    """The project's cluster exists but cannot be used, e.g. CREATE_FAILED."""


class SecretUnavailable(PlatformError):
    """Secrets Manager has no usable value for a secret that is needed."""


class NoRoom(PlatformError):
    """As many project instances run as may at once."""

    retryable = True


class InstanceFailed(PlatformError):
    """The instance of a project could not be started, or cannot be reached."""

    retryable = True


class IdentityUnavailable(PlatformError):
    """The identity provider cannot be reached, or its answer cannot be trusted."""

    retryable = True


class DataError(BbpwfError):
    """Results could not be brought home."""


class NexusError(DataError):
    """Nexus Delta refused or failed.

    Args:
        message: the sentence for the reader.
        status: HTTP status, 0 if there was no answer.
        kind: the ``@type`` of Delta's error body, e.g. ``IncorrectRev``; empty if there was none.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        kind: str = "",
        where: str = "",
        hint: str = "",
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message, where=where, hint=hint, retryable=retryable)
        self.status = status
        self.kind = kind


class ArchiveError(DataError):
    """A file could not be confirmed in the archive."""


class LedgerError(BbpwfError):
    """The database contradicts itself, or cannot be used."""


class JobFailed(BbpwfError):
    """A job ended otherwise than well. Its explanation says how and why."""
