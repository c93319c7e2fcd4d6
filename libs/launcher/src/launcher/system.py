"""The whole system on one machine: up, down, and what a test or a person needs of it in between."""

import asyncio
import json
import signal
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from time import monotonic
from types import TracebackType
from typing import Self

from launcher import certificates
from launcher.datadir import claimed
from launcher.errors import DataLocked, LauncherError
from launcher.keys import (
    ADMINISTRATOR,
    CLIENT,
    NATS_CLIENTS,
    OBSERVER,
    Credentials,
    ensure_keys,
    nats_file,
    write_secret,
)
from launcher.layout import Layout
from launcher.logs import Logs, Record
from launcher.nats import NatsUser, url
from launcher.ports import check_ports
from launcher.processes import POLL_S, Warden
from launcher.programs import NATS, postgres_of, programs
from launcher.supervisor import OnChange, Status, Supervisor

SYSTEM_FILE = "system.json"
"""In the data directory while the system is up: {"endpoints": {...}, "dev_key_file": ..., "nats_observer_file": ...,
"nats_client_file": ..., "nats_administrator_file": ...}, for the synod command and the SDK; with TLS "tls_ca_file",
"tls_certificate_file" and "tls_key_file" too."""
RENEWAL_CHECK_S = 3600.0
CHANGE_CHECK_S = 1.0
FORMER_SERVER_TIMEOUT_S = 30.0


class System:
    """`async with System(Layout(data=...)) as system:` is a running system; at the end nothing of it is left running.

    It must be used on the main thread's event loop: children die with the thread that started them.
    """

    def __init__(self, layout: Layout, *, fresh: bool = False) -> None:
        # Programs have working directories of their own, so that a relative path would mean another place to each.
        self.layout = replace(layout, data=layout.data.absolute())
        self._fresh = fresh
        self._held = ExitStack()
        self._supervisor: Supervisor | None = None
        self._stopping: Supervisor | None = None
        self._credentials: Credentials | None = None
        self._renewal: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.up()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.down()

    async def up(self, on_progress: OnChange | None = None, on_record: Callable[[Record], None] | None = None) -> None:
        """Returns when everything is ready; on a failure everything is stopped again and a LauncherError raised.

        `on_progress` hears of every change of a program's status, `on_record` each line that a program logs, both until
        `down`.
        """
        try:
            await self._up(on_progress, on_record)
        except BaseException:
            await self.down()
            raise

    async def down(self, grace_s: float | None = None) -> None:
        """Stops everything in reverse order and releases the data directory. Does nothing when nothing is up."""
        if self._renewal is not None:
            self._renewal.cancel()
        self._stopping, self._supervisor = self._supervisor, None
        if self._stopping is not None:
            await self._stopping.stop(grace_s)
            self._stopping = None
        self._held.close()

    @property
    def services(self) -> Mapping[str, Status]:
        """How every program is now, the servers included."""
        return self._running.statuses

    @property
    def endpoints(self) -> Mapping[str, str]:
        """The addresses that people and clients use, by name."""
        return self.layout.endpoints()

    @property
    def dev_key(self) -> str:
        """The API key of the person at this machine."""
        return self.credentials.dev_key

    @property
    def observer_url(self) -> str:
        """The NATS address of a user that may read all events and publish none."""
        return self._nats_url(OBSERVER)

    @property
    def client_url(self) -> str:
        """The NATS address of a user that carries tasks to agents outside and their answers, and nothing else."""
        return self._nats_url(CLIENT)

    @property
    def administrator_url(self) -> str:
        """The NATS address of a user that makes and changes streams."""
        return self._nats_url(ADMINISTRATOR)

    @property
    def credentials(self) -> Credentials:
        assert self._credentials is not None, "the system is not up"
        return self._credentials

    def kill(self, service: str) -> None:
        """Kills a program as a crash would; it is then restarted."""
        self._running.kill(service)

    def hurry(self) -> None:
        """Makes a `down` that is under way end at once, by killing what still runs."""
        if self._stopping is not None:
            self._stopping.kill_all()

    async def restart(self, service: str) -> None:
        """Stops a program, starts it again, and returns when it is ready."""
        await self._running.restart(service)

    async def switch_off(self, service: str) -> None:
        """Stops a program until the system is down, and leaves the others running."""
        await self._running.switch_off(service)

    async def wait_ready(self, service: str, timeout_s: float = 60.0) -> None:
        """Returns when the program is ready; TimeoutError if it is not within the time."""
        await self._running.wait_ready(service, timeout_s)

    async def wait_failed(self) -> None:
        """Waits for as long as the system keeps itself running."""
        await self._running.wait_failed()

    async def _up(self, on_progress: OnChange | None, on_record: Callable[[Record], None] | None) -> None:
        layout = self.layout
        self._held.enter_context(claimed(layout, fresh=self._fresh))
        names = (service.name for service in layout.services)
        self._credentials = ensure_keys(layout.keys, names, encrypt_at_rest=layout.encrypt_at_rest)
        if layout.tls:
            certificates.ensure(layout.certificates, certificates.utc_now(), certificates.holders(layout.services))
        await self._wait_for_former_server(self._credentials)
        check_ports(layout.port_base, layout.ports())
        warden = Warden(layout.limits.stop_grace_s)
        self._held.callback(warden.close)
        logs = Logs(layout.logs, layout.limits, on_record)
        self._held.callback(logs.close)
        all_programs = programs(layout, self._credentials)
        self._supervisor = Supervisor(all_programs, layout.limits, logs, warden, on_progress)
        await self._supervisor.start()
        if layout.tls:
            self._renewal = asyncio.create_task(self._renew_certificates(self._supervisor))
        self._publish()

    async def _wait_for_former_server(self, credentials: Credentials) -> None:
        # A launcher that was killed leaves PostgreSQL shutting down for a moment.
        server = postgres_of(self.layout, credentials)
        end = monotonic() + FORMER_SERVER_TIMEOUT_S
        while (pid := server.running_pid()) is not None:
            if monotonic() > end:
                remedy = f"Stop it: kill -INT {pid}."
                raise DataLocked("data", server.data, f"PostgreSQL of process {pid} still runs on it", remedy)
            await asyncio.sleep(POLL_S)

    async def _renew_certificates(self, supervisor: Supervisor) -> None:
        """Renews what is due, and has NATS read its certificate again when somebody renewed it; services do so themselves."""
        directory = self.layout.certificates
        everybody = certificates.holders(self.layout.services)
        server = certificates.files_of(directory, certificates.NATS)
        renewed_at, seen = monotonic(), server.stamp()
        while True:
            await asyncio.sleep(CHANGE_CHECK_S)
            if monotonic() - renewed_at > RENEWAL_CHECK_S:
                renewed_at = monotonic()
                # What cannot be renewed is told by the health of who needs it, days before its end.
                with suppress(LauncherError, OSError):
                    await asyncio.to_thread(certificates.ensure, directory, certificates.utc_now(), everybody)
            if seen != (seen := server.stamp()):
                supervisor.signal(NATS, signal.SIGHUP)

    def _publish(self) -> None:
        keys = self.layout.keys
        for user in NATS_CLIENTS:
            write_secret(nats_file(keys, user), self._nats_url(user))
        files = {f"nats_{user}_file": str(nats_file(keys, user)) for user in NATS_CLIENTS}
        if self.layout.tls:
            for name, path in certificates.settings_of(self.layout.certificates, certificates.CLIENT).items():
                files[name.removeprefix("SYNOD_").lower()] = path
        published = {"endpoints": dict(self.endpoints), "dev_key_file": str(keys / "dev.key"), **files}
        file = self.layout.data / SYSTEM_FILE
        file.write_text(json.dumps(published, indent=2))
        self._held.callback(file.unlink, missing_ok=True)

    def _nats_url(self, user: str) -> str:
        return url(self.layout.nats_port, NatsUser(user, self.credentials.nats[user]))

    @property
    def _running(self) -> Supervisor:
        assert self._supervisor is not None, "the system is not up"
        return self._supervisor
