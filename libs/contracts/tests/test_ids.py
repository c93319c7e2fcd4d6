import pickle
from uuid import UUID

from synod.common.ids import derived_id, derived_uuid, new_id, uuid7, uuid_of


def test_ids_sort_by_the_time_they_were_made() -> None:
    made = [uuid7() for _ in range(2)]
    later = uuid7().int >> 80
    assert made[0].int >> 80 <= later
    assert made[0].version == 7
    assert made[0].variant == "specified in RFC 4122"


def test_text_keeps_the_order_of_the_ids() -> None:
    first, second = new_id("run"), new_id("run")
    assert len(first) == len("run_") + 26
    assert first[:11] <= second[:11]


def test_derived_ids_are_a_function_of_their_parts() -> None:
    assert derived_id("tool", "run_1", "0") == "tool_28jlnr2jitgsao398iokq6u0m5"
    assert derived_uuid("ab", "c") != derived_uuid("a", "bc")
    assert derived_uuid("a").version == 8


def test_an_id_of_a_number_is_the_one_that_uuid_makes() -> None:
    for number in (0, 1, uuid7().int, (1 << 128) - 1):
        made, theirs = uuid_of(number), UUID(int=number)
        assert (made, hash(made), str(made), made.bytes, made.is_safe) == (
            theirs,
            hash(theirs),
            str(theirs),
            theirs.bytes,
            theirs.is_safe,
        )
        assert pickle.loads(pickle.dumps(made)) == theirs
