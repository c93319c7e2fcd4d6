"""Circuit breakers: what fails is left alone for a while. Pure; times are seconds on one monotonic clock.

Each model at each deployment, that is at one endpoint under one key, has a circuit of its own.

      closed ──── failures in a row, or too large a share of them ────▶ open
        ▲                                                                │ its time is over
        │ the probe succeeded                                            ▼
        └──────────────────────────────────────────────────────────── half open: one probe
                                                                         │ the probe failed: open, twice as long
                                                                         └────────────────────────────────────▶ open

What counts is how an attempt ended, for a stream its last event and not its first. A caller who leaves, and a request
that is the caller's own mistake, say nothing about the provider. Refusals of the key, the account or the model open a
circuit as failures do: the next call would meet the same. One alone does not, it may be about what the call asked for.
A rate limit is no failure: the model is only not asked before the provider wants to be, or for a moment that grows if it
does not say. Once a circuit has opened, only its probe decides: what was begun before tells of before.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from llm_gateway.errors import (
    AuthenticationRejected,
    ModelNotFound,
    PaymentRequired,
    PermissionRejected,
    ProviderError,
    ProviderRateLimited,
    ProviderSuspended,
    RetryableProviderError,
)

Phase = Literal["closed", "open", "half_open"]
Verdict = Literal["success", "failure", "refusal", "nothing"]

_REFUSALS: Final = (AuthenticationRejected, PaymentRequired, PermissionRejected, ModelNotFound)
_DOUBLINGS_MAX: Final = 30
"""Waits have reached their longest long before, and no number grows without end."""


@dataclass(frozen=True, slots=True)
class CircuitTerms:
    """`failures_max` in a row open a circuit, `refusals_max` without an answer between them, and `failed_share` of at
    least `outcomes_min` in `window_s`.
    """

    failures_max: int = 5
    refusals_max: int = 3
    failed_share: float = 0.5
    outcomes_min: int = 10
    window_s: float = 30.0
    open_s: float = 5.0
    open_s_max: float = 120.0
    limited_s: float = 1.0
    """The first pause after a rate limit that does not say how long it lasts; each in a row doubles it."""
    limited_s_max: float = 60.0
    """A provider that asks for more is asked again after this time, in case it has changed its mind."""


@dataclass(slots=True)
class Circuit:
    """One model at one provider under one key."""

    terms: CircuitTerms = field(default_factory=CircuitTerms)
    _in_a_row: int = 0
    _refused: int = 0
    _limited: int = 0
    _opened: int = 0
    _open_until: float = 0.0
    _limited_until: float = 0.0
    _paused_until: float = 0.0
    probing: bool = field(default=False, init=False)
    """Half open, and the one attempt that may be made is under way."""
    _outcomes: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=1000))

    def phase(self, now: float) -> Phase:
        if now < self._open_until:
            return "open"
        return "half_open" if self._opened else "closed"

    def suspended_s(self, now: float) -> float:
        """How long no attempt may be made, because too many have failed."""
        if not self._opened and now >= self._open_until:  # closed, as nearly always
            return 0.0
        match self.phase(now):
            case "closed":
                return 0.0
            case "open":
                return self._open_until - now
            case "half_open":
                return self.terms.open_s if self.probing else 0.0

    def limited_s(self, now: float) -> float:
        """How long the provider wants not to be asked."""
        return max(0.0, self._limited_until - now, self._paused_until - now)

    def enter(self, now: float) -> float:
        """An attempt begins, unless it has to wait, as `suspended_s`. Each that begins ends in `leave`; while `probing`,
        the one that just began is the probe.
        """
        waiting = self.suspended_s(now)
        if not waiting:
            self.probing = self._opened > 0
        return waiting

    def leave(self, now: float, verdict: Verdict, *, probe: bool = False) -> None:
        """An attempt ended. `probe` says that it was let through while the circuit was half open."""
        if probe:
            self.probing = False
        elif self._opened:
            return
        match verdict:
            case "success":
                self._in_a_row, self._refused, self._limited, self._opened = 0, 0, 0, 0
                self._paused_until = 0.0
                self._outcomes.append((now, True))
            case "failure":
                self._in_a_row += 1
                self._outcomes.append((now, False))
                if probe or self._is_failing(now):
                    self._open(now)
            case "refusal":
                self._refused += 1
                if probe or self._refused >= self.terms.refusals_max:
                    self._open(now)

    def limit(self, now: float, retry_after_s: float | None) -> None:
        """The provider refused for a rate limit, and wants to be asked again after so long, if it said."""
        if retry_after_s is not None:
            self._limited_until = max(self._limited_until, now + min(retry_after_s, self.terms.limited_s_max))
        elif now >= self._paused_until:  # what was under way as the pause began does not make it longer
            self._paused_until = now + min(self.terms.limited_s * 2.0**self._limited, self.terms.limited_s_max)
            self._limited = min(self._limited + 1, _DOUBLINGS_MAX)

    def _open(self, now: float) -> None:
        self._open_until = now + min(self.terms.open_s * 2.0**self._opened, self.terms.open_s_max)
        self._opened = min(self._opened + 1, _DOUBLINGS_MAX)
        self._in_a_row = self._refused = 0
        self._outcomes.clear()

    def _is_failing(self, now: float) -> bool:
        while self._outcomes and self._outcomes[0][0] < now - self.terms.window_s:
            self._outcomes.popleft()
        failed = sum(not succeeded for _, succeeded in self._outcomes)
        enough = len(self._outcomes) >= self.terms.outcomes_min
        return self._in_a_row >= self.terms.failures_max or (
            enough and failed >= self.terms.failed_share * len(self._outcomes)
        )


class Circuits:
    """The circuits of a process, by Target.circuit. `changed` is told of each that opens, is tried by a probe or closes:
    its new phase, and for how many seconds it is left alone.
    """

    def __init__(
        self, terms: CircuitTerms, changed: Callable[[str, Phase, float], None] = lambda circuit, phase, open_s: None
    ) -> None:
        self._terms = terms
        self._changed = changed
        self._circuits: dict[str, Circuit] = {}

    def suspended_s(self, model: str, now: float) -> float:
        return self._of(model).suspended_s(now)

    def limited_s(self, model: str, now: float) -> float:
        return self._of(model).limited_s(now)

    def enter(self, model: str, now: float) -> bool:
        """Whether the attempt is a probe, which `leave` has to be told. Raises ProviderSuspended."""
        circuit = self._of(model)
        if waiting := circuit.enter(now):
            raise ProviderSuspended(suspension(model, waiting), retry_after_s=waiting)
        if circuit.probing:
            self._changed(model, "half_open", 0.0)
        return circuit.probing

    def leave(
        self, model: str, now: float, error: ProviderError | None = None, *, answered: bool = False, probe: bool = False
    ) -> None:
        """The attempt ended: answered, by `error`, or by neither when its callers left."""
        circuit = self._of(model)
        before = circuit.phase(now)
        circuit.leave(now, "success" if answered else verdict(error), probe=probe)
        if isinstance(error, ProviderRateLimited):
            circuit.limit(now, error.retry_after_s)
        after = circuit.phase(now)
        if after != before:
            self._changed(model, after, circuit.suspended_s(now) if after == "open" else 0.0)

    def phase(self, model: str, now: float) -> Phase:
        return self._of(model).phase(now)

    def known(self) -> tuple[str, ...]:
        """Those that anything was asked of."""
        return tuple(self._circuits)

    def _of(self, model: str) -> Circuit:
        # Asked for several times in each call: a new one is not made only to be thrown away.
        circuit = self._circuits.get(model)
        if circuit is None:
            circuit = self._circuits[model] = Circuit(self._terms)
        return circuit


def verdict(error: ProviderError | None) -> Verdict:
    """What an error says about the provider."""
    if error is None or isinstance(error, ProviderRateLimited):
        return "nothing"
    if isinstance(error, _REFUSALS):
        return "refusal"
    # That a request is wrong is an answer too: the provider is there.
    return "failure" if isinstance(error, RetryableProviderError) else "nothing"


def suspension(circuit: str, wait_s: float) -> str:
    return f"{circuit.partition(' ')[0]} has failed too often and is left alone for {wait_s:.1f} s"
