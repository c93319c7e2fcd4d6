"""Who calls and what they may do: Ed25519 JWTs, verified offline, deny by default.

A token is issued by agent-registry (RFC 7519, EdDSA as in RFC 8037). Claims: iss "synod", sub the principal, tid its
tenant, knd its kind, prm its permissions, obo whom it acts for, iat, exp, jti. A permission is "<things>.<action>", for
example "runs.create"; a principal holds patterns with `*`. A service principal has the tenant "*" and names the tenant
it acts for in each call.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, Protocol

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import BaseModel, ConfigDict, ValidationError
from synod.common.ids import new_id

from servicekit.clock import Clock
from servicekit.errors import PermissionDenied, Unauthenticated

ISSUER = "synod"
ALGORITHM = "EdDSA"
ANY_TENANT = "*"
PUBLIC = ""
"""The permission of a method that anyone may call without a token."""

AUTHORIZATION = "authorization"
TENANT = "synod-tenant"
ACTOR = "synod-actor"
_BEARER = "bearer "
_REMEDY = "authenticate again (synod.agent_registry.v1.AgentRegistry/Authenticate) and repeat with the new token"

Kind = Literal["user", "agent", "service"]


@dataclass(frozen=True, slots=True)
class Principal:
    """A user, an agent or a service. `permissions` are glob patterns; `on_behalf_of` is whom it acts for."""

    id: str
    tenant: str
    kind: Kind
    permissions: tuple[str, ...] = ()
    on_behalf_of: str | None = None
    speaks_for_others: bool = False
    """A service of the platform, which itself belongs to no tenant: it says in whose name it acts."""

    @property
    def actor(self) -> str:
        """Who is answerable for what this principal does: for a service in someone's name, that someone."""
        return self.on_behalf_of if self.kind == "service" and self.on_behalf_of else self.id

    def may(self, permission: str) -> bool:
        return any(fnmatchcase(permission, pattern) for pattern in self.permissions)


def service_principal(service: str) -> str:
    """The id of the principal that agent-registry gives a service."""
    return f"svc-{service}"


ANONYMOUS = Principal(id="anonymous", tenant="", kind="user")


class _Claims(BaseModel):
    """The claims of a token, validated, because a signature does not prove a shape."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    sub: str
    tid: str
    knd: Kind
    prm: tuple[str, ...]
    exp: int
    obo: str | None = None


def issue(
    private_key: Ed25519PrivateKey, principal: Principal, ttl: timedelta, *, now: datetime, token_id: str | None = None
) -> str:
    """Sign a token for `principal`, valid from `now` (aware) for `ttl`."""
    claims = {
        "iss": ISSUER,
        "sub": principal.id,
        "tid": principal.tenant,
        "knd": principal.kind,
        "prm": list(principal.permissions),
        "iat": int(now.timestamp()),
        "exp": int((now + ttl).timestamp()),
        "jti": token_id or new_id("tok"),
    }
    if principal.on_behalf_of:
        claims["obo"] = principal.on_behalf_of
    return jwt.encode(claims, private_key, algorithm=ALGORITHM)


@dataclass(slots=True)
class _Verified:
    """A token whose signature was checked, with its answers about permissions so far."""

    principal: Principal
    expires_at: float
    allowed: dict[str, bool] = field(default_factory=dict)

    def may(self, permission: str) -> bool:
        # Permissions are named by methods in code, so this dictionary cannot grow without bound.
        if (answer := self.allowed.get(permission)) is None:
            answer = self.allowed[permission] = self.principal.may(permission)
        return answer


class Authenticator:
    """Turns the metadata of a call into the principal that makes it, or refuses.

    Holds the last `cache_max` verified tokens: a signature costs some 100 µs, a look-up less than one.
    """

    def __init__(self, public_key: Ed25519PublicKey, clock: Clock, *, cache_max: int = 4096) -> None:
        self._key = public_key
        self._clock = clock
        self._cache: OrderedDict[str, _Verified] = OrderedDict()
        self._cache_max = cache_max

    def authorize(self, metadata: Mapping[str, str], permission: str) -> Principal:
        """The caller, who holds `permission`. Raises Unauthenticated or PermissionDenied, saying what to do."""
        verified = self._verified(metadata.get(AUTHORIZATION, ""))
        self._refuse_expired(verified)
        if not verified.may(permission):
            raise PermissionDenied(permission, verified.principal.id)
        return _in_tenant(verified.principal, metadata.get(TENANT), metadata.get(ACTOR))

    def identify(self, metadata: Mapping[str, str]) -> Principal:
        """Who calls, whatever it may do: for an edge that passes the caller's token on. Raises Unauthenticated."""
        verified = self._verified(metadata.get(AUTHORIZATION, ""))
        self._refuse_expired(verified)
        return verified.principal

    def _verified(self, authorization: str) -> _Verified:
        """By the whole value of the header, so that one that is known need not be taken apart."""
        if found := self._cache.get(authorization):
            self._cache.move_to_end(authorization)
            return found
        verified = self._verify(_bearer(authorization))
        self._cache[authorization] = verified
        if len(self._cache) > self._cache_max:
            self._cache.popitem(last=False)
        return verified

    def _verify(self, token: str) -> _Verified:
        try:
            # Expiry is checked by the injected clock, and on every call, not only on the first.
            payload = jwt.decode(
                token,
                self._key,
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                options={"verify_exp": False, "verify_iat": False, "require": ["exp", "sub", "iss"]},
            )
            claims = _Claims.model_validate(payload)
        except (jwt.InvalidTokenError, ValidationError) as error:
            raise Unauthenticated(
                f"the bearer token is not valid ({_first_line(error)}); {_REMEDY}", reason="TOKEN_INVALID"
            ) from error
        return _Verified(Principal(claims.sub, claims.tid, claims.knd, claims.prm, claims.obo), claims.exp)

    def _refuse_expired(self, verified: _Verified) -> None:
        now = self._clock.now().timestamp()
        if now < verified.expires_at:
            return
        at = datetime.fromtimestamp(verified.expires_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        ago = timedelta(seconds=int(now - verified.expires_at))
        raise Unauthenticated(
            f"the token of {verified.principal.id} expired at {at} ({ago} ago); {_REMEDY}",
            reason="TOKEN_EXPIRED",
            metadata={"expired_at": at, "principal": verified.principal.id},
        )


class KeyFileInvalid(Exception):
    """The file of the verification key is missing or holds no Ed25519 public key in PEM."""


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Raises KeyFileInvalid with the path and what to do."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileInvalid(
            f"SYNOD_AUTH_PUBLIC_KEY_FILE={path} cannot be read ({_first_line(error)}); "
            "it must be the PEM file of the Ed25519 public key whose private half agent-registry signs with"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileInvalid(
            f"SYNOD_AUTH_PUBLIC_KEY_FILE={path} holds a {type(key).__name__}, not an Ed25519 public key"
        )
    return key


class TokenSource(Protocol):
    """Where a channel gets the token it identifies itself with."""

    async def token(self) -> str:
        """A token with life left in it. Raises ServiceError when none can be had."""
        ...


class StaticToken:
    """One token for the life of the process, for tests and tools."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def token(self) -> str:
        return self._token


class SelfIssued:
    """Tokens a process signs for itself, which only the holder of the private key, agent-registry, can do."""

    def __init__(self, private_key: Ed25519PrivateKey, principal: Principal, clock: Clock, ttl: timedelta) -> None:
        self._sign: Callable[[datetime], str] = lambda now: issue(private_key, principal, ttl, now=now)
        self._clock = clock
        self._renew_after_s = ttl.total_seconds() * 0.8
        self._issued: tuple[str, float] | None = None

    async def token(self) -> str:
        now_s = self._clock.monotonic()
        if self._issued is None or now_s - self._issued[1] >= self._renew_after_s:
            self._issued = (self._sign(self._clock.now()), now_s)
        return self._issued[0]


def _bearer(value: str) -> str:
    if not value.lower().startswith(_BEARER):
        raise Unauthenticated(
            "the call has no bearer token; send the metadata key authorization with 'Bearer <token>', a token from "
            "synod.agent_registry.v1.AgentRegistry/Authenticate",
            reason="TOKEN_MISSING",
        )
    return value[len(_BEARER) :].strip()


def _in_tenant(principal: Principal, tenant: str | None, actor: str | None) -> Principal:
    if principal.tenant != ANY_TENANT:
        if tenant and tenant != principal.tenant:
            raise PermissionDenied(
                f"tenant:{tenant}",
                principal.id,
                message=f"{principal.id} belongs to tenant {principal.tenant} and may not act in tenant {tenant}",
                reason="TENANT_DENIED",
            )
        return principal
    if not tenant:
        return principal
    # Named one by one: dataclasses.replace asks for every field by itself, and every call of a service comes by here.
    return Principal(
        id=principal.id,
        tenant=tenant,
        kind=principal.kind,
        permissions=principal.permissions,
        on_behalf_of=actor or principal.on_behalf_of,
        speaks_for_others=principal.kind == "service",
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
