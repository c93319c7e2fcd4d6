"""Keys of providers at rest."""

import asyncio
import io
import os
from base64 import b64encode
from pathlib import Path

import pytest
from eventlog.errors import KeyUnusable
from eventlog.master_keys import LocalMasterKey
from llm_gateway.keys import KEY_BYTES_MAX, PREFIX, key_id, main, seal, unseal

KEY = "sk-of-a-test-0123456789"
OLD, NEW = (LocalMasterKey(bytes([fill]) * 32, "test") for fill in (1, 2))


async def test_a_sealed_key_is_opened_by_the_master_key_that_sealed_it_even_after_a_rotation() -> None:
    sealed = await seal(OLD, "openai-eu", KEY)
    assert KEY not in sealed
    assert await unseal([OLD], "openai-eu", sealed) == KEY
    assert await unseal([NEW, OLD], "openai-eu", sealed) == KEY


@pytest.mark.parametrize("sealed", ["plain", f"{PREFIX}%%%", f"{PREFIX}AAAA"])
async def test_what_was_not_sealed_is_refused_without_being_shown(sealed: str) -> None:
    with pytest.raises(KeyUnusable) as caught:
        await unseal([OLD], "openai-eu", sealed)
    assert sealed not in str(caught.value) or sealed == "plain"


async def test_a_sealed_key_is_of_no_use_under_another_name_or_master_key() -> None:
    sealed = await seal(OLD, "openai-eu", KEY)
    for masters, name in (([OLD], "openai-us"), ([NEW], "openai-eu"), ([], "openai-eu")):
        with pytest.raises(KeyUnusable):
            await unseal(masters, name, sealed)


def test_a_key_id_tells_keys_apart_and_shows_nothing_of_them() -> None:
    assert key_id(KEY) != key_id(KEY + "x")
    assert (len(key_id(KEY)), key_id("")) == (8, "")


async def test_the_command_seals_what_it_reads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    raw = os.urandom(32)
    file = tmp_path / "master.key"
    file.write_bytes(b64encode(raw))
    monkeypatch.setenv("SYNOD_MASTER_KEY_FILE", str(file))
    given(monkeypatch, f"{KEY}\n".encode())
    assert await asyncio.to_thread(main, ["openai-eu"]) == 0
    sealed = capsys.readouterr().out.strip()
    assert await unseal([LocalMasterKey(raw, "test")], "openai-eu", sealed) == KEY


def given(monkeypatch: pytest.MonkeyPatch, held: bytes) -> None:
    """On standard input."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(held)))


@pytest.mark.parametrize(
    ("held", "problem"),
    [
        (b"", "standard input: the key is empty"),
        (b" \n", "standard input: the key is empty"),
        (b"sk-a\nsk-b\n", "standard input: a key is one line of printable ASCII"),
        (b"sk-\xff", "standard input: a key is one line of printable ASCII"),
        (b"k" * (KEY_BYTES_MAX + 1), "standard input: a key has no more than 4096 bytes"),
    ],
)
def test_the_command_seals_nothing_that_is_no_key_and_says_so_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, held: bytes, problem: str
) -> None:
    file = tmp_path / "master.key"
    file.write_bytes(b64encode(os.urandom(32)))
    monkeypatch.setenv("SYNOD_MASTER_KEY_FILE", str(file))
    given(monkeypatch, held)

    assert main(["openai-eu"]) == 1

    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert told.err.startswith(problem)


@pytest.mark.parametrize(
    ("file", "status", "problem"),
    [("", 2, "set SYNOD_MASTER_KEY_FILE to the file"), ("/no/such/file", 1, "/no/such/file: the master key cannot be")],
)
def test_the_command_without_a_master_key_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: str, status: int, problem: str
) -> None:
    monkeypatch.setenv("SYNOD_MASTER_KEY_FILE", file)
    given(monkeypatch, KEY.encode())

    assert main(["openai-eu"]) == status
    assert capsys.readouterr().err.startswith(problem)
