from __future__ import annotations

from typing import cast

import paramiko
import pytest

from bbpwf.transport.ssh_connection import Channel


class Gone:
    """A paramiko channel whose connection has ended: each of these was seen."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def close(self) -> None:
        raise self._error


@pytest.mark.parametrize("error", [EOFError(), OSError("Socket is closed"), paramiko.SSHException("not active")])
def test_hanging_up_on_a_connection_that_is_gone_is_no_error(error: Exception) -> None:
    Channel(cast(paramiko.Channel, Gone(error))).close()
