"""Who calls the edge. An API key is exchanged for a token; the services are called with the caller's own token."""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from servicekit.auth import ANY_TENANT, AUTHORIZATION, Authenticator, Principal
from servicekit.clock import Clock
from servicekit.errors import PermissionDenied, Unauthenticated

RENEW_SHARE: Final = 0.8
"""A token is renewed when this share of its life is over, so that none expires in flight."""
API_KEY: Final = "x-api-key"
_BEARER: Final = "bearer "
_REMEDY: Final = "send the header 'Authorization: Bearer <API key or token>', or 'X-API-Key: <API key>'"


class KeyExchange(Protocol):
    """agent-registry, as far as the edge needs it to know who calls."""

    async def authenticate(self, api_key: str) -> tuple[str, datetime]:
        """A token for the key, and when it expires. Raises Unauthenticated with the reason, or Unavailable."""
        ...


@dataclass(frozen=True, slots=True)
class Caller:
    """A principal of one tenant with the token that proves it."""

    principal: Principal
    token: str

    def require(self, permission: str) -> None:
        """Raises PermissionDenied naming the permission."""
        if not self.principal.may(permission):
            raise PermissionDenied(permission, self.principal.id)


@dataclass(frozen=True, slots=True)
class _Exchanged:
    token: str
    renew_at: datetime


class Callers:
    """Turns credentials into callers. Keeps the tokens of the last `keys_max` keys, under the hash of the key only."""

    def __init__(self, authenticator: Authenticator, exchange: KeyExchange, clock: Clock, keys_max: int) -> None:
        self._authenticator = authenticator
        self._exchange = exchange
        self._clock = clock
        self._keys_max = keys_max
        self._exchanged: OrderedDict[bytes, _Exchanged] = OrderedDict()

    async def identify(self, credential: str) -> Caller:
        """The caller now; ask again before each use of a long connection. Raises Unauthenticated."""
        token = credential if _is_token(credential) else await self._token_of(credential)
        principal = self._authenticator.identify({AUTHORIZATION: f"Bearer {token}"})
        if principal.tenant == ANY_TENANT:
            raise PermissionDenied(
                "tenant",
                principal.id,
                message=f"{principal.id} is a service of all tenants; services call each other by gRPC, not by the edge",
                reason="TENANT_DENIED",
            )
        return Caller(principal, token)

    async def _token_of(self, api_key: str) -> str:
        digest = hashlib.sha256(api_key.encode()).digest()
        now, known = self._clock.now(), self._exchanged.get(digest)
        if known is None or now >= known.renew_at:
            token, expires_at = await self._exchange.authenticate(api_key)
            known = _Exchanged(token, now + (expires_at - now) * RENEW_SHARE)
            self._exchanged[digest] = known
        self._exchanged.move_to_end(digest)
        while len(self._exchanged) > self._keys_max:
            self._exchanged.popitem(last=False)
        return known.token


def credential_of(headers: Mapping[str, str]) -> str | None:
    """The credential in the headers of a request; None when there is none. Header names are lower-case."""
    if key := headers.get(API_KEY, "").strip():
        return key
    value = headers.get(AUTHORIZATION, "")
    return value[len(_BEARER) :].strip() or None if value.lower().startswith(_BEARER) else None


def require_credential(headers: Mapping[str, str]) -> str:
    """Raises Unauthenticated saying which headers are read."""
    credential = credential_of(headers)
    if credential is None:
        raise Unauthenticated(f"the request says not who makes it; {_REMEDY}", reason="CREDENTIAL_MISSING")
    return credential


def _is_token(credential: str) -> bool:
    """JSON web tokens have three parts; our API keys have no dot."""
    return credential.count(".") == 2
