"""The containers with encryption at rest: their disks tell nothing of what agents were told."""

from collections.abc import Iterator

import pytest

from .conftest import Containers, up
from .disks import where_it_is_readable

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def encrypting(port_base: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    folder = tmp_path_factory.mktemp("encrypting")
    with up(Containers.installed(port_base, folder, encrypt_at_rest=True)) as started:
        yield started


async def test_encryption_at_rest_leaves_no_payload_readable_on_disk(encrypting: Containers) -> None:
    """test_compose.py has that the same search finds it without."""
    assert await where_it_is_readable(encrypting) == set()
