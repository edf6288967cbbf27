"""What ceilings become: buckets that hold a frame, and hooks for those directions alone that are asked for."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from lamella.host.network.driver import DesiredPort
from lamella.host.network.names import port_name, shaper_name
from lamella.host.network.traffic.plan import bucket, traffic
from lamella.model.bit_rate import LARGEST, SMALLEST
from lamella.model.ids import new_id

RATES = st.integers(SMALLEST, LARGEST)
MTUS = st.integers(576, 65535)


def port(rate_in: int | None, rate_out: int | None) -> DesiredPort:
    return DesiredPort(
        id=new_id("port"),
        network=new_id("network"),
        address="10.0.0.2/24",
        mac="02:00:00:00:00:01",
        publish=[],
        rate_in=rate_in,
        rate_out=rate_out,
    )


@given(RATES, MTUS)
def test_a_bucket_holds_a_frame_and_fits_the_kernels_numbers(rate: int, mtu: int) -> None:
    made = bucket(rate, mtu)
    assert made is not None and made.rate == rate // 8
    assert made.burst >= mtu + 18 and made.queue >= made.burst + mtu + 18
    # What passes at once beyond the rate is 20 ms of it, or a few frames.
    assert made.burst <= max(made.rate // 50 + 1, 8 * (mtu + 18))
    assert made.queue < 1 << 32


@given(st.none() | RATES, st.none() | RATES, MTUS)
def test_only_what_is_asked_for_is_held_back(rate_in: int | None, rate_out: int | None, mtu: int) -> None:
    one = port(rate_in, rate_out)
    made = traffic(one, mtu)
    assert (made.into is None, made.out_of is None) == (rate_in is None, rate_out is None)
    assert [hook.to for hook in made.hooks] == ([] if rate_out is None else [shaper_name(one.id)])
    assert all(hook.inward and not hook.copies for hook in made.hooks)


@given(st.none() | RATES, MTUS)
def test_hooks_of_both_directions_have_priorities_of_their_own(rate_out: int | None, mtu: int) -> None:
    one = replace(port(None, rate_out), mirror=new_id("port"))
    hooks = traffic(one, mtu).hooks
    assert len({hook.priority for hook in hooks}) == len(hooks) == (2 if rate_out is None else 3)
    copies = [hook for hook in hooks if hook.copies]
    assert {hook.inward for hook in copies} == {True, False} and {hook.to for hook in copies} == {port_name(one.mirror)}
    # A copy is of what came, before a ceiling takes it away.
    assert all(copy.priority < hook.priority for copy in copies for hook in hooks - {*copies})
