"""Keys of providers at rest: encrypted under the service's master key, so that a file may lie where others read.

    python -m llm_gateway.keys openai-eu < key.txt        # SYNOD_MASTER_KEY_FILE; prints what to put into the file

A sealed key is bound to the name of its deployment and is of no use under another.
"""

import argparse
import asyncio
import hashlib
import os
import sys
from base64 import b64decode, b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from eventlog.errors import KeyUnusable
from eventlog.master_keys import FileMasterKey, MasterKey

PREFIX: Final = "sealed.v1."
KEY_BYTES_MAX: Final = 4096


async def seal(master: MasterKey, deployment: str, key: str) -> str:
    """The key as it may lie in a file."""
    return PREFIX + b64encode(await master.wrap(key.encode(), _context(deployment))).decode()


async def unseal(masters: Sequence[MasterKey], deployment: str, sealed: str) -> str:
    """The key; the master keys are tried in turn, those of before a rotation last. Raises KeyUnusable."""
    if not sealed.startswith(PREFIX):
        raise KeyUnusable(deployment, f"a sealed key begins with {PREFIX}")
    if not masters:
        raise KeyUnusable(deployment, "its key is sealed: set SYNOD_MASTER_KEY_FILE")
    try:
        wrapped = b64decode(sealed.removeprefix(PREFIX), validate=True)
    except ValueError:
        raise KeyUnusable(deployment, "its sealed key is damaged") from None
    for master in masters[:-1]:
        try:
            return (await master.unwrap(wrapped, _context(deployment))).decode()
        except KeyUnusable:
            continue
    return (await masters[-1].unwrap(wrapped, _context(deployment))).decode()


def key_id(key: str) -> str:
    """Tells keys apart in logs and events; nothing of the key can be learned from it."""
    return hashlib.sha256(b"synod.llm-gateway.key-id.v1\n" + key.encode()).hexdigest()[:8] if key else ""


def _context(deployment: str) -> bytes:
    return f"synod.llm-gateway.provider-key.v1\n{deployment}".encode()


def main(arguments: Sequence[str] | None = None) -> int:
    """Seals the key on standard input."""
    parser = argparse.ArgumentParser(prog="python -m llm_gateway.keys", description="Seals a provider's key.")
    parser.add_argument("deployment", help="the name of the deployment that uses it")
    options = parser.parse_args(arguments)
    master = FileMasterKey(Path(os.environ.get("SYNOD_MASTER_KEY_FILE", "")))
    key = sys.stdin.read(KEY_BYTES_MAX).strip()
    sys.stdout.write(asyncio.run(seal(master, options.deployment, key)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
