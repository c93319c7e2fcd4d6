"""A cluster's secrets are the files of containers, each given to whom compose gives it."""

import json
from pathlib import Path

import psycopg
import pytest
from launcher.cluster import main, secret_files, secrets
from launcher.containers import write_secrets
from launcher.layout import SERVICES


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("secrets")
    write_secrets(made, {"OPENAI_API_KEY": "sk-1"})
    return made


def contents(directory: Path, **options: str) -> dict[str, dict[str, str]]:
    made = json.loads(json.dumps(secrets(directory, **options)))
    return {each["metadata"]["name"]: each["stringData"] for each in made["items"]}


def test_a_secret_holds_the_files_of_who_mounts_it(directory: Path) -> None:
    for name, files in contents(directory).items():
        expected = secret_files()[name]
        assert files == {key: (directory / "files" / source).read_text() for key, source in expected.items()}
    assert contents(directory)["llm-gateway"]["openai.key"] == "sk-1"


def test_every_file_is_given_to_somebody(directory: Path) -> None:
    given = {source for files in secret_files().values() for source in files.values()}
    assert given == {file.name for file in (directory / "files").iterdir()}


def test_databases_elsewhere_have_the_same_passwords_at_another_address(directory: Path) -> None:
    here = contents(directory)
    there = contents(directory, postgres="db.example.org:6432", sslmode="verify-full")
    for service in SERVICES:
        dsn = psycopg.conninfo.conninfo_to_dict(there[service.name]["postgres.dsn"])
        moved = {"host": "db.example.org", "port": "6432", "sslmode": "verify-full"}
        assert dsn == psycopg.conninfo.conninfo_to_dict(here[service.name]["postgres.dsn"]) | moved
    assert there["postgres"] == here["postgres"]


def test_it_prints_what_kubectl_takes(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(directory)]) == 0
    made = json.loads(capsys.readouterr().out)
    assert {(each["apiVersion"], each["kind"]) for each in made["items"]} == {("v1", "Secret")}


def test_secrets_that_were_not_made_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "public.pem is missing; run `make compose-secrets`" in capsys.readouterr().err
