"""Secrets Manager: the private keys of clusters.

boto3 speaks its protocol; here are the limits, and the words for what can go wrong (``contracts.md`` §2).
"""

from __future__ import annotations

from typing import Any, Protocol

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from pydantic import SecretStr

from bbpwf.errors import SecretUnavailable
from bbpwf.redact import Redactor
from bbpwf.settings import AwsSettings

_CONNECT_S = 5
_READ_S = 10
_ATTEMPTS = 3
_NO_CREDENTIALS = "Give the process a role, a profile, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
_PERMISSION = "The role needs secretsmanager:GetSecretValue, and kms:Decrypt for a key of its own."

# error code → what it means, what to do
_REFUSALS = {
    "ResourceNotFoundException": (
        "does not exist",
        "Keys go when their cluster is deleted: look at the cluster, and at BBPWF_AWS__REGION.",
    ),
    "InvalidRequestException": ("cannot be read as it is; it may be scheduled for deletion", "Restore or renew it."),
    "InvalidParameterException": ("has a name that Secrets Manager does not take", "Give its full ARN."),
    "DecryptionFailure": ("cannot be decrypted", _PERMISSION),
    "AccessDeniedException": ("may not be read by this process", _PERMISSION),
    "UnrecognizedClientException": ("was asked for with unknown credentials", _NO_CREDENTIALS),
    "InvalidSignatureException": ("was asked for with a wrong signature", "Check the credentials and the clock."),
    "ExpiredTokenException": ("was asked for with expired credentials", "Renew the credentials."),
}
_TRANSIENT = frozenset({"InternalServiceError", "InternalServiceErrorException", "ThrottlingException"})


class _Client(Protocol):
    def get_secret_value(self, *, SecretId: str) -> dict[str, Any]:  # noqa: N803  AWS's own parameter name
        ...


class SecretsManager:
    """Reads secrets. Thread-safe. Every value read is registered with ``redactor`` before anybody sees it."""

    def __init__(self, settings: AwsSettings, redactor: Redactor | None = None) -> None:
        self._redactor = redactor
        self._where = settings.endpoint_url or f"Secrets Manager in {settings.region}"
        self._client: _Client = boto3.session.Session().client(
            "secretsmanager",
            region_name=settings.region,
            endpoint_url=settings.endpoint_url or None,
            config=Config(
                connect_timeout=_CONNECT_S,
                read_timeout=_READ_S,
                retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            ),
        )

    def get(self, secret_id: str) -> SecretStr:
        """The current value of a secret, named by its full ARN (or by its name within one account).

        At most three tries of 5 s to connect and 10 s to read each.

        Raises:
            SecretUnavailable: it cannot be had, or is empty; retryable when Secrets Manager did not answer.
        """
        try:
            answer = self._client.get_secret_value(SecretId=secret_id)
        except ClientError as error:
            raise self._refused(secret_id, error) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise SecretUnavailable(
                f"there are no AWS credentials to read the secret {secret_id} with",
                where=self._where,
                hint=_NO_CREDENTIALS,
            ) from error
        except BotoCoreError as error:
            raise SecretUnavailable(
                f"Secrets Manager did not answer about the secret {secret_id} ({type(error).__name__})",
                where=self._where,
                retryable=True,
            ) from error
        value = answer.get("SecretString") or _decoded(answer.get("SecretBinary"))
        if not value or not value.strip():
            raise SecretUnavailable(f"the secret {secret_id} is empty or not text", where=self._where)
        if self._redactor is not None:
            self._redactor.add(value)
        return SecretStr(value)

    def _refused(self, secret_id: str, error: ClientError) -> SecretUnavailable:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code in _REFUSALS:
            meaning, hint = _REFUSALS[code]
            return SecretUnavailable(f"the secret {secret_id} {meaning} ({code})", where=self._where, hint=hint)
        return SecretUnavailable(
            f"Secrets Manager answered about the secret {secret_id} with {code or status}",
            where=self._where,
            retryable=code in _TRANSIENT or status >= 500 or status == 429,
        )


def _decoded(binary: object) -> str:
    """``SecretBinary`` as text; boto3 has undone the base64 of the wire."""
    if not isinstance(binary, bytes):
        return ""
    try:
        return binary.decode()
    except UnicodeDecodeError:
        return ""
