"""AWS credentials, and Signature Version 4 on requests that boto3 does not send itself."""

from __future__ import annotations

from collections.abc import Callable

import botocore.session
import requests
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import BotoCoreError
from requests.auth import AuthBase

from bbpwf.errors import ProvisionerError

CredentialsProvider = Callable[[], ReadOnlyCredentials]
"""Answers the credentials to sign the next request with; they change when temporary ones are renewed."""


def ambient_credentials() -> CredentialsProvider:
    """Credentials from botocore's own chain (environment, profile, container, instance).

    The provider raises ProvisionerError when there are none, or retryably when their source does not answer.
    """
    session = botocore.session.get_session()

    def provide() -> ReadOnlyCredentials:
        try:
            credentials = session.get_credentials()
            if credentials is not None:
                return credentials.get_frozen_credentials()  # afresh each time: contracts §2
        except BotoCoreError as error:
            raise ProvisionerError("AWS credentials could not be obtained", retryable=True) from error
        raise ProvisionerError(
            "there are no AWS credentials to sign requests with",
            hint="Give the process a role, a profile, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
        )

    return provide


class SigV4(AuthBase):
    """Signs a request exactly as it is about to be sent, so that nothing re-encodes it afterwards (contracts §2)."""

    def __init__(self, credentials: ReadOnlyCredentials, service: str, region: str) -> None:
        self._signer = SigV4Auth(credentials, service, region)

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add date, security token and signature."""
        signed = AWSRequest(method=r.method, url=r.url, data=r.body or b"")
        self._signer.add_auth(signed)
        for name, value in signed.headers.items():
            r.headers[name] = value
        return r
