"""What the same system needs in containers: its secrets as files, and NATS's configuration with its users.

    python -m launcher.containers secrets DIRECTORY    makes what is missing, keeps what is there
    python -m launcher.containers nats                 prints deploy/nats/nats.conf: accounts, users and permissions
    python -m launcher.containers streams              prints deploy/nats/jetstream.json: streams and consumers
    python -m launcher.containers check < NATS.CONF    prints where accounts, users and permissions are others; exit code 1 then

DIRECTORY/keys holds what keys.py makes, for people and the synod command, which takes DIRECTORY as its --data.
DIRECTORY/files holds what containers are
given, one secret in one file:

| file | what | who is given it |
|---|---|---|
| public.pem, signing.pem, service-keys.json, dev.key, <service>.key | as in keys.py | as in keys.py |
| <service>.dsn | the address of its database, with the password of its role | that service |
| <service>.nats | the password of its NATS user | that service |
| <service>.checkpoint, <service>.master | as <service>.checkpoint.pem and <service>.master.key in keys.py | that service |
| <service>.former-checkpoints, <service>.former-masters | all former ones, empty before a rotation | that service |
| openai.key, anthropic.key | OPENAI_API_KEY and ANTHROPIC_API_KEY of the caller, empty if never set | llm-gateway |
| postgres.password, postgres.roles | the superuser's; a line "role password" for each service | PostgreSQL |
| nats.passwords | the variables of nats.conf: passwords, and the key of its files | NATS |
| administrator.nats | the password of NATS's administrator | nats-admin, which makes the streams |
| monitor.password | the password of the role that reads PostgreSQL's statistics | postgres-monitor, postgres-exporter |
| grafana.password | the password of Grafana's user admin | Grafana |
"""

import argparse
import difflib
import json
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from launcher.bus import compact, rendered, stream_plans
from launcher.errors import KeyLost
from launcher.keys import (
    ADMINISTRATOR,
    KEY_BYTES,
    NATS_CLIENTS,
    SUPERUSER,
    Credentials,
    checkpoint_key_file,
    ensure_keys,
    former_checkpoint_key_files,
    former_master_key_files,
    master_key_file,
    nats_file,
    write_secret,
)
from launcher.layout import AUTHORITY, NATS_OFFSET, PORT_BASE, SERVICES, Service, asks_for_encryption
from launcher.nats import MEMORY_STORE_BYTES_MAX, PAYLOAD_BYTES_MAX, STORAGE_CIPHER, NatsUser, url

POSTGRES_ADDRESS = "postgres:5432"
MADE_HERE = ("monitor.password", "grafana.password")
"""Of containers that only these have; made once, and in no other place."""
PROVIDER_KEYS: Mapping[str, str] = {"openai.key": "OPENAI_API_KEY", "anthropic.key": "ANTHROPIC_API_KEY"}
NATS_HEAD = f"""\
# Made by `make nats-conf` from the table of services in libs/launcher (layout.py, bus.py); edit those.
# All streams are in the account SYNOD; every service and every kind of client is in one of its own and reaches what is
# exported to it. A service publishes no events but its own, so that a reader may trust who wrote what it reads.
include "passwords.conf"

server_name: synod
listen: "0.0.0.0:4222"
http: "127.0.0.1:8222"
max_payload: {PAYLOAD_BYTES_MAX}
# An empty key encrypts nothing; SYNOD_ENCRYPT_AT_REST makes one.
jetstream {{ store_dir: "/data", max_mem: {MEMORY_STORE_BYTES_MAX}, key: $storage_key, cipher: {STORAGE_CIPHER} }}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    match options.what:
        case "nats":
            sys.stdout.write(nats_configuration())
            return 0
        case "streams":
            sys.stdout.write(jetstream_document())
            return 0
        case "check":
            return _report(configuration_drift(sys.stdin.read()))
    try:
        write_secrets(options.directory, os.environ)
    except KeyLost as error:
        sys.stderr.write(f"error {error}\n")
        return 1
    return 0


def write_secrets(
    directory: Path, environment: Mapping[str, str], services: tuple[Service, ...] = SERVICES
) -> Credentials:
    """Makes the secrets that are missing, and the files of containers anew from all of them.

    A container reads its files as a user that this machine does not know, so they are readable by all; `directory` is
    closed to everybody else, and a container is given its own files only.
    """
    keys, files = directory / "keys", directory / "files"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    for part in (keys, files):
        part.mkdir(exist_ok=True)
    names = (service.name for service in services)
    credentials = ensure_keys(keys, names, encrypt_at_rest=asks_for_encryption(environment))
    for user in NATS_CLIENTS:
        login = NatsUser(user, credentials.nats[user])
        write_secret(nats_file(keys, user), url(PORT_BASE + NATS_OFFSET, login))
    contents = dict(_contents(keys, credentials, services)) | _provider_keys(files, environment) | _made_here(files)
    for name, text in contents.items():
        _write(files / name, text)
    return credentials


def nats_configuration(services: tuple[Service, ...] = SERVICES) -> str:
    """nats.conf, whose passwords are variables of a file beside it."""
    names = (*(service.name for service in services), *NATS_CLIENTS)
    return f"{NATS_HEAD}\n{rendered(services, {name: _variable(name) for name in names})}"


def configuration_drift(found: str, services: tuple[Service, ...] = SERVICES) -> tuple[str, ...]:
    """The lines of a nats.conf that should not be there, after "+", and those that should, after "-"; none if all is well."""
    lines = difflib.unified_diff(nats_configuration(services).splitlines(), found.splitlines(), n=0, lineterm="")
    return tuple(line for line in lines if not line.startswith(("---", "+++", "@@")))


def jetstream_document(services: tuple[Service, ...] = SERVICES) -> str:
    """jetstream.json, which servicekit.nats_admin applies."""
    return compact(stream_plans(services)) + "\n"


def _contents(keys: Path, credentials: Credentials, services: tuple[Service, ...]) -> Iterator[tuple[str, str]]:
    for name in ("public.pem", "signing.pem", "service-keys.json", "dev.key"):
        yield name, (keys / name).read_text()
    for service in services:
        if service.name != AUTHORITY:  # it signs tokens itself
            yield f"{service.name}.key", (keys / f"{service.name}.key").read_text()
        yield f"{service.name}.dsn", _dsn(service, credentials.postgres[service.module])
        yield f"{service.name}.nats", credentials.nats[service.name]
        yield f"{service.name}.checkpoint", checkpoint_key_file(keys, service.name).read_text()
        yield f"{service.name}.former-checkpoints", _joined(former_checkpoint_key_files(keys, service.name))
        yield f"{service.name}.master", master_key_file(keys, service.name).read_text()
        yield f"{service.name}.former-masters", _joined(former_master_key_files(keys, service.name))
    roles = (f"{service.module} {credentials.postgres[service.module]}\n" for service in services)
    yield f"{ADMINISTRATOR}.nats", credentials.nats[ADMINISTRATOR]
    yield "postgres.password", credentials.postgres[SUPERUSER]
    yield "postgres.roles", "".join(roles)
    variables = {_variable(name): word for name, word in credentials.nats.items()}
    variables["storage_key"] = credentials.nats_storage
    yield "nats.passwords", "".join(f"{name}: {json.dumps(word)}\n" for name, word in variables.items())


def _joined(files: Sequence[Path]) -> str:
    return "".join(f"{file.read_text().strip()}\n" for file in files)


def _provider_keys(files: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Those that the caller has; the others stay as they are, or become empty files, which mean none."""
    given = {file: environment[variable] for file, variable in PROVIDER_KEYS.items() if environment.get(variable)}
    missing = {file: "" for file in PROVIDER_KEYS if not (files / file).exists()}
    return missing | given


def _made_here(files: Path) -> dict[str, str]:
    return {file: secrets.token_urlsafe(KEY_BYTES) for file in MADE_HERE if not (files / file).exists()}


def _dsn(service: Service, password: str) -> str:
    return f"postgresql://{service.module}:{quote(password, safe='')}@{POSTGRES_ADDRESS}/{service.module}"


def _variable(user: str) -> str:
    return f"password_{user.replace('-', '_')}"


def _write(file: Path, text: str) -> None:
    # In place, for a running container sees this file, not one that replaces it.
    file.touch()
    file.write_text(text)
    file.chmod(0o644)


def _report(drift: Sequence[str]) -> int:
    for line in drift:
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(f"nats.conf: {len(drift)} lines differ\n" if drift else "nats.conf: all in step\n")
    return 1 if drift else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m launcher.containers", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="what", required=True)
    commands.add_parser("secrets", help="make the secrets as files").add_argument("directory", type=Path)
    commands.add_parser("nats", help="print the configuration of NATS")
    commands.add_parser("streams", help="print the streams and consumers of NATS")
    commands.add_parser("check", help="compare a configuration of NATS with what it should be")
    return parser


if __name__ == "__main__":
    sys.exit(main())
