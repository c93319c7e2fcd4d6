"""A log verified from outside: what its service finds, compared with public keys and kept copies of one's own."""

from collections.abc import Sequence
from dataclasses import dataclass

from synod.eventlog.v1.eventlog_pb2 import Checkpoint, VerifyResponse

from synod_client.checkpoints import PublicKeys, sampled
from synod_client.client import Synod


@dataclass(frozen=True, slots=True)
class LogVerdict:
    """What was found about one log: `broken_at` is the first position that does not hold, 0 if all do."""

    found: VerifyResponse
    broken_at: int = 0
    reason: str = ""
    signed_by: str = ""
    """Key id of the last checkpoint that holds, its signature checked here; empty where there is none."""

    @property
    def ok(self) -> bool:
        return not self.broken_at

    @property
    def words(self) -> str:
        return "holds" if self.ok else f"BROKEN at {self.broken_at}: {self.reason}"


async def verify_log(synod: Synod, service: str, keys: PublicKeys, kept: Sequence[Checkpoint] = ()) -> LogVerdict:
    """Let the service verify its log, also against the copies in `kept`, and check by `keys` who signed."""
    if problem := _foreign(kept, keys, service):
        return LogVerdict(VerifyResponse(), problem[0], f"the kept checkpoint is not of this log: {problem[1]}")
    found = await synod.verify_log(service, witnessed=sampled(kept))
    if not found.ok:
        return LogVerdict(found, found.broken_position, found.reason)
    if not (found.attested_position and keys):
        return LogVerdict(found)
    last = await synod.checkpoints(service, after=found.attested_position - 1, limit=1)
    if problem := _foreign(last, keys, service):
        return LogVerdict(found, problem[0], f"the checkpoint is forged: {problem[1]}")
    return LogVerdict(found, signed_by="".join(checkpoint.key_id for checkpoint in last))


def _foreign(checkpoints: Sequence[Checkpoint], keys: PublicKeys, service: str) -> tuple[int, str] | None:
    """The first checkpoint that is not believed, with the reason."""
    if not keys:
        return None
    problems = ((checkpoint.position, keys.problem(checkpoint, service)) for checkpoint in checkpoints)
    return next(((position, problem) for position, problem in problems if problem), None)
