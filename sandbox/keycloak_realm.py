"""The realms of the sandbox's Keycloak: virtual labs and projects as groups, their people, and the clients.

As the platform's realm is (contracts §3.1, §3.2): each group is flat, its name holds slashes, and the ``groups`` claim
has full paths. A second realm with the same people and keys of its own stands for everybody else's.
"""

from __future__ import annotations

from typing import Any

from sandbox.tenants import CLI_CLIENT, PEOPLE, SERVICE_CLIENT

REALM = "SBO"
OTHER_REALM = "OTHER"
PLAIN_CLIENT = "groups-in-userinfo"
"""A public client whose access tokens carry no groups: userinfo does, which is what the platform's services read."""
ACCESS_LIFESPAN_S = 300
_LOOPBACK = ["http://127.0.0.1/*", "http://localhost/*"]
"""Keycloak takes any port of these, as RFC 8252 wants it of loopback addresses."""


def realms(client_secret: str, now: int) -> list[dict[str, Any]]:
    """What Keycloak imports. ``client_secret`` is the service's; ``now`` (Unix seconds) dates the accounts."""
    return [_realm(REALM, client_secret, now), _realm(OTHER_REALM, client_secret, now)]


def _realm(name: str, client_secret: str, now: int) -> dict[str, Any]:
    groups = sorted({group for person in PEOPLE for group in person.groups})
    users = [
        {
            "id": person.sub if name == REALM else None,
            "createdTimestamp": now * 1000,
            "username": person.username,
            "enabled": True,
            "email": f"{person.username}@sandbox.example",
            "emailVerified": True,
            "firstName": person.name.partition(" ")[0],
            "lastName": person.name.partition(" ")[2],
            "credentials": [{"type": "password", "value": person.username, "temporary": False}],
            "groups": list(person.groups),
            "realmRoles": ["offline_access"],
        }
        for person in PEOPLE
    ]
    return {
        "realm": name,
        "enabled": True,
        "sslRequired": "none",
        "accessTokenLifespan": ACCESS_LIFESPAN_S,
        "attributes": {"oauth2DevicePollingInterval": "1"},
        "groups": [{"name": group.removeprefix("/"), "path": group} for group in groups],
        "users": users,
        "clients": [
            _client(
                SERVICE_CLIENT,
                secret=client_secret,
                serviceAccountsEnabled=True,
                # not of the others: Keycloak would want it for the device flow too, which has none (RFC 8628)
                attributes={"pkce.code.challenge.method": "S256"},
            ),
            _client(
                CLI_CLIENT,
                directAccessGrantsEnabled=True,
                attributes={"oauth2.device.authorization.grant.enabled": "true"},
            ),
            _client(PLAIN_CLIENT, in_token=False, directAccessGrantsEnabled=True),
        ],
    }


def _client(client_id: str, *, secret: str = "", in_token: bool = True, **more: Any) -> dict[str, Any]:
    mapper = {
        "name": "groups",
        "protocol": "openid-connect",
        "protocolMapper": "oidc-group-membership-mapper",
        "config": {
            "claim.name": "groups",
            "full.path": "true",
            "access.token.claim": str(in_token).lower(),
            "id.token.claim": str(in_token).lower(),
            "userinfo.token.claim": "true",
        },
    }
    return {
        "clientId": client_id,
        "enabled": True,
        "protocol": "openid-connect",
        "publicClient": not secret,
        **({"secret": secret} if secret else {}),
        "standardFlowEnabled": True,
        "redirectUris": _LOOPBACK,
        "fullScopeAllowed": True,
        "protocolMappers": [mapper],
        **more,
    }
