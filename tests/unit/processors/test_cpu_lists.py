from hypothesis import given
from hypothesis import strategies as st

from lamella.model.cpulist import format_list, parse_list, parse_map


@given(st.sets(st.integers(0, 500)))
def test_a_list_there_and_back(cpus: set[int]) -> None:
    assert parse_list(format_list(cpus)) == sorted(cpus)


def test_lists_and_maps_as_linux_writes_them() -> None:
    assert parse_list("0-2,8\n") == [0, 1, 2, 8]
    assert parse_list("") == []
    assert parse_map("00000000,00000003") == [0, 1]
    assert parse_map("80000000,00000000,00000001") == [0, 95]
    assert parse_map("f") == [0, 1, 2, 3]
    assert format_list([3, 1, 2, 7]) == "1-3,7"
