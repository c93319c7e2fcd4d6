"""Keys of providers at rest: encrypted under the service's master key, so that a file may lie where others read.

    python -m llm_gateway.keys openai-eu < key.txt        # SYNOD_MASTER_KEY_FILE; prints what to put into the file

A sealed key is bound to the name of its deployment and is of no use under another.
"""

import argparse
import asyncio
import hashlib
import os
import re
import sys
from base64 import b64decode, b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from eventlog.errors import KeyUnusable
from eventlog.master_keys import FileMasterKey, MasterKey

PREFIX: Final = "sealed.v1."
KEY_BYTES_MAX: Final = 4096
MASTER_KEY_FILE: Final = "SYNOD_MASTER_KEY_FILE"
_PRINTABLE: Final = re.compile(rb"[ -~]+")


def key_of(source: str, held: bytes) -> str:
    """The key that `source` holds, without the white space around it. Raises KeyUnusable, which does not show it, for what
    cannot go out in a header of HTTP: each call would fail as if its provider could not be reached.
    """
    if len(held) > KEY_BYTES_MAX:
        raise KeyUnusable(source, f"a key has no more than {KEY_BYTES_MAX} bytes; give nothing but the key")
    key = held.strip()
    if not key:
        raise KeyUnusable(source, "the key is empty; give it, or name none where none is needed")
    if not _PRINTABLE.fullmatch(key):
        raise KeyUnusable(source, "a key is one line of printable ASCII; give nothing but the key")
    return key.decode("ascii")


async def seal(master: MasterKey, deployment: str, key: str) -> str:
    """The key as it may lie in a file."""
    return PREFIX + b64encode(await master.wrap(key.encode(), _context(deployment))).decode()


async def unseal(masters: Sequence[MasterKey], deployment: str, sealed: str) -> str:
    """The key; the master keys are tried in turn, those of before a rotation last. Raises KeyUnusable."""
    if not sealed.startswith(PREFIX):
        raise KeyUnusable(deployment, f"a sealed key begins with {PREFIX}")
    if not masters:
        raise KeyUnusable(deployment, f"its key is sealed: set {MASTER_KEY_FILE}")
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
    """Seals the key on standard input. 1 if it, or the master key, is of no use; 2 if no master key is named."""
    parser = argparse.ArgumentParser(prog="python -m llm_gateway.keys", description="Seals a provider's key.")
    parser.add_argument("deployment", help="the name of the deployment that uses it")
    options = parser.parse_args(arguments)
    file = os.environ.get(MASTER_KEY_FILE)
    if not file:
        sys.stderr.write(f"set {MASTER_KEY_FILE} to the file of the master key\n")
        return 2
    try:
        master = FileMasterKey(Path(file))
        key = key_of("standard input", sys.stdin.buffer.read(KEY_BYTES_MAX + 1))
        sealed = asyncio.run(seal(master, options.deployment, key))
    except KeyUnusable as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{sealed}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
