"""Reports and quotes: what they say, and that nothing is believed which the maker's keys did not sign.

The structures are built here field by field as the specifications lay them out, and signed with keys made here: no processor that
signs real ones was at hand (docs/hardware.md).
"""

import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from confidential_keys import CHIP, Amd, Intel, certificate
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.host.compute.confidential import snp_report, td_quote
from lamella.host.compute.confidential.chain import check_chain, read_chain
from lamella.model.errors import Corrupt

NONCE = b"a nonce of the one who asks"
LAUNCH = hashlib.sha384(b"the launch").digest()


@pytest.fixture(scope="module")
def amd() -> Amd:
    return Amd()


@pytest.fixture(scope="module")
def intel() -> Intel:
    return Intel()


def test_an_snp_report_says_what_is_in_it(amd: Amd) -> None:
    report = snp_report.parse(amd.report(NONCE))
    assert report.measurement == LAUNCH and report.chip_id == CHIP and report.vmpl == 0
    assert report.report_data.rstrip(b"\0") == NONCE and report.host_data.rstrip(b"\0") == b"host data"
    tcb = report.reported_tcb
    assert (tcb.boot_loader, tcb.tee, tcb.snp, tcb.microcode) == (3, 0, 14, 72)
    assert not report.debug
    snp_report.verify(report, amd.chain, nonce=NONCE, root=amd.ark)
    snp_report.verify(report, amd.chain[:2], nonce=NONCE, root=amd.ark)


def test_every_changed_byte_of_an_snp_report_is_seen(amd: Amd) -> None:
    data = amd.report(NONCE)
    for position in [*range(0, snp_report.SIGNED, 37), snp_report.SIGNED, snp_report.SIGNED + 72]:
        changed = bytearray(data)
        changed[position] ^= 1
        with pytest.raises(Corrupt):
            snp_report.verify(snp_report.parse(bytes(changed)), amd.chain, nonce=NONCE, root=amd.ark)


def test_an_snp_report_of_another(amd: Amd) -> None:
    other = Amd()
    report = snp_report.parse(amd.report(NONCE))
    refused = {
        "not signed by": ([amd.vcek, amd.ask, other.ark], other.ark, NONCE),
        "not the VCEK's": (other.chain, other.ark, NONCE),
        "this nonce": (amd.chain, amd.ark, b"another"),
        "no certificate": ([], amd.ark, NONCE),
    }
    for words, (chain, root, nonce) in refused.items():
        with pytest.raises(Corrupt, match=words):
            snp_report.verify(report, chain, nonce=nonce, root=root)
    chip = Amd(chip=bytes(64))
    with pytest.raises(Corrupt, match="another chip"):
        snp_report.verify(snp_report.parse(chip.report(NONCE)), chip.chain, nonce=NONCE, root=chip.ark)
    older = Amd(snp=13)
    with pytest.raises(Corrupt, match="another version of snp"):
        snp_report.verify(snp_report.parse(older.report(NONCE)), older.chain, nonce=NONCE, root=older.ark)
    with pytest.raises(Corrupt, match="debug"):
        snp_report.verify(
            snp_report.parse(amd.report(NONCE, policy=0x30000 | 1 << 19)), amd.chain, nonce=NONCE, root=amd.ark
        )


def test_a_quote_says_what_is_in_it(intel: Intel) -> None:
    quote = td_quote.parse(intel.quote(NONCE))
    assert quote.mrtd == LAUNCH and quote.config_id.rstrip(b"\0") == b"config"
    assert quote.rtmrs == [bytes([number]) * 48 for number in range(4)]
    assert quote.report_data.rstrip(b"\0") == NONCE and not quote.debug
    td_quote.verify(quote, nonce=NONCE, root=intel.root)


def test_every_changed_byte_of_a_quote_is_seen(intel: Intel) -> None:
    data = intel.quote(NONCE)
    certificates = data.index(b"-----BEGIN")
    for position in range(0, certificates, 23):
        changed = bytearray(data)
        changed[position] ^= 1
        with pytest.raises(Corrupt):
            td_quote.verify(td_quote.parse(bytes(changed)), nonce=NONCE, root=intel.root)


def test_a_quote_of_another(intel: Intel) -> None:
    other = Intel()
    quote = td_quote.parse(intel.quote(NONCE))
    with pytest.raises(Corrupt, match="not signed by"):
        td_quote.verify(quote, nonce=NONCE, root=other.root)
    with pytest.raises(Corrupt, match="this nonce"):
        td_quote.verify(quote, nonce=b"another", root=intel.root)
    with pytest.raises(Corrupt, match="names another key"):
        td_quote.verify(td_quote.parse(intel.quote(NONCE, bound=bytes(64))), nonce=NONCE, root=intel.root)
    with pytest.raises(Corrupt, match="debug"):
        td_quote.verify(td_quote.parse(intel.quote(NONCE, attributes=1)), nonce=NONCE, root=intel.root)


def test_chains_have_an_order_and_a_time(amd: Amd) -> None:
    with pytest.raises(Corrupt, match="not signed by"):
        check_chain([amd.ask, amd.vcek, amd.ark], amd.ark)
    with pytest.raises(Corrupt, match="not valid at"):
        check_chain(amd.chain, amd.ark, at=datetime.now(UTC) + timedelta(days=100))
    key = ec.generate_private_key(ec.SECP256R1())
    stranger = certificate("root", key, "root", key)
    with pytest.raises(Corrupt):
        check_chain(amd.chain, stranger)
    with pytest.raises(Corrupt, match="no certificates"):
        read_chain(b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n")


@settings(deadline=None)
@given(st.binary(max_size=1500))
def test_no_bytes_do_harm(data: bytes) -> None:
    for parse in (snp_report.parse, td_quote.parse):
        try:
            parse(data)
        except Corrupt as error:
            assert error.message


@settings(deadline=None)
@given(data=st.data())
def test_torn_quotes_do_no_harm(data: st.DataObject, intel: Intel) -> None:
    whole = bytearray(intel.quote(NONCE))
    for _ in range(3):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    torn = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        td_quote.verify(td_quote.parse(torn), nonce=NONCE, root=intel.root)
    except Corrupt as error:
        assert error.message
