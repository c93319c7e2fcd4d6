"""What no log could keep or a writer commit is refused where it is made, to who makes it."""

from datetime import datetime, timedelta, timezone

import pytest
from eventlog.records import EARLIEST, LATEST, Fence, NewEvent
from synod.common.ids import uuid7


def an_event_at(moment: datetime) -> NewEvent:
    return NewEvent("Paid", 1, b"{}", uuid7(), moment)


@pytest.mark.parametrize(
    "moment",
    [
        datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
    ],
    ids=["before the year 1", "after the year 9999"],
)
def test_a_moment_that_utc_has_no_date_for_is_refused(moment: datetime) -> None:
    with pytest.raises(ValueError, match="no date"):
        an_event_at(moment)


@pytest.mark.parametrize("moment", [EARLIEST, LATEST])
def test_the_first_and_the_last_moment_are_taken(moment: datetime) -> None:
    assert an_event_at(moment).occurred_at == moment


def test_a_fence_whose_name_is_no_token_is_refused() -> None:
    with pytest.raises(ValueError, match="fence 'run 7'"):
        Fence("run 7", 1)
