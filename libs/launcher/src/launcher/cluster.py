"""The secrets of a cluster, made of the files that containers are given: a Secret for each who is given any.

    python -m launcher.cluster DIRECTORY | kubectl apply --namespace synod --filename -
    python -m launcher.cluster DIRECTORY --postgres db.example.org:5432 --sslmode require | ...

DIRECTORY is that of `python -m launcher.containers secrets`. A Secret has the name of the workload that mounts it, and its
keys are the names of the files under /run/secrets, as in compose.yaml; with its certificate, if DIRECTORY/tls has one
(`synod tls init`). What is printed is secret: keep it in a pipe.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from launcher.certificates import files_of
from launcher.containers import POSTGRES_ADDRESS, PROVIDER_KEYS
from launcher.layout import AUTHORITY, MODELS, SERVICES, Service

OF_SERVERS: Mapping[str, Mapping[str, str]] = {
    "postgres": {"postgres.password": "postgres.password", "postgres.roles": "postgres.roles"},
    "nats": {"passwords.conf": "nats.passwords"},
    "nats-admin": {"nats.password": "administrator.nats"},
}
AUTHORITY_FILES = ("signing.pem", "service-keys.json", "dev.key")


def secret_files(services: Sequence[Service] = SERVICES) -> Mapping[str, Mapping[str, str]]:
    """Who is given what: the name in /run/secrets to the name in DIRECTORY/files."""
    return {**{service.name: _of_service(service.name) for service in services}, **OF_SERVERS}


def secrets(directory: Path, postgres: str = POSTGRES_ADDRESS, sslmode: str = "") -> Mapping[str, object]:
    """A List of Secrets. The databases are at `postgres`, reached with `sslmode` of libpq if one is given.

    Raises FileNotFoundError for a secret that was not made.
    """
    items = [
        _secret(name, {**_contents(directory, files, postgres, sslmode), **_certificate(directory, name)})
        for name, files in secret_files().items()
    ]
    return {"apiVersion": "v1", "kind": "List", "items": items}


def _of_service(name: str) -> Mapping[str, str]:
    own = {
        "public.pem": "public.pem",
        "postgres.dsn": f"{name}.dsn",
        "nats.password": f"{name}.nats",
        "checkpoint.pem": f"{name}.checkpoint",
        "former-checkpoints.pem": f"{name}.former-checkpoints",
        "master.key": f"{name}.master",
        "former-masters.keys": f"{name}.former-masters",
    }
    if name == AUTHORITY:
        return own | {file: file for file in AUTHORITY_FILES}
    providers = {file: file for file in PROVIDER_KEYS} if name == MODELS else {}
    return own | {"service.key": f"{name}.key"} | providers


def _contents(directory: Path, files: Mapping[str, str], postgres: str, sslmode: str) -> Mapping[str, str]:
    texts = {name: (directory / "files" / source).read_text() for name, source in files.items()}
    if "postgres.dsn" in texts:
        texts["postgres.dsn"] = _moved(texts["postgres.dsn"], postgres, sslmode)
    return texts


def _certificate(directory: Path, name: str) -> Mapping[str, str]:
    """ca.crt, tls.crt and tls.key, of whom has any."""
    files = files_of(directory / "tls", name)
    paths = (files.ca, files.certificate, files.key)
    return {path.name: path.read_text() for path in paths if files.key.exists()}


def _moved(dsn: str, postgres: str, sslmode: str) -> str:
    parts = urlsplit(dsn)
    login, _, _ = parts.netloc.rpartition("@")
    return parts._replace(
        netloc=f"{login}@{postgres}", query=urlencode({"sslmode": sslmode} if sslmode else {})
    ).geturl()


def _secret(name: str, contents: Mapping[str, str]) -> Mapping[str, object]:
    labels = {"app.kubernetes.io/part-of": "synod"}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "labels": labels}, "stringData": contents}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        made = secrets(options.directory, options.postgres, options.sslmode)
    except FileNotFoundError as error:
        sys.stderr.write(f"error {error.filename} is missing; run `make compose-secrets`\n")
        return 1
    sys.stdout.write(json.dumps(made) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m launcher.cluster", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--postgres", default=POSTGRES_ADDRESS, metavar="HOST:PORT", help="where PostgreSQL is")
    parser.add_argument("--sslmode", default="", help="how to reach it, as libpq has it; for example verify-full")
    return parser


if __name__ == "__main__":
    sys.exit(main())
