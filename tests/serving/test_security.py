"""Tokens, exposure, certificates, hosts and rates, without a socket."""

from __future__ import annotations

import ipaddress
import ssl
import stat

import pytest
from cryptography import x509

from steppe.errors import ConfigError
from steppe.serving.certificates import make_cert
from steppe.serving.gate import Gate, Head, accepted
from steppe.serving.limits import Bucket, Limits
from steppe.serving.messages import Refused
from steppe.serving.security import Tokens, check_exposure, is_loopback, make_token_file, tls_context

SECRET = "a-secret-of-a-client"


def written(path, text, mode=0o600):
    path.write_text(text)
    path.chmod(mode)
    return path


# --- tokens


def test_a_file_of_tokens_is_made_for_its_owner_alone(tmp_path):
    path = tmp_path / "tokens"
    make_token_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    tokens = Tokens(path)
    found = [tokens.find(line.split()[0].encode()) for line in path.read_text().splitlines()]
    assert [(token.name, token.scopes) for token in found] == [
        ("clients", {"act", "submit", "weights"}),
        ("operator", {"admin"}),
    ]
    text = path.read_text()
    with pytest.raises(ConfigError, match="exists"):
        make_token_file(path)
    assert path.read_text() == text
    make_token_file(tmp_path / "others")
    assert (tmp_path / "others").read_text() != text


def test_lines_have_names_comments_and_several_scopes(tmp_path):
    path = written(tmp_path / "t", f"\n# all\n{SECRET}1 act,weights  the shop # of June\n{SECRET}2\tadmin\n")
    tokens = Tokens(path)
    assert tokens.find(f"{SECRET}1".encode()).name == "the shop"
    assert tokens.find(f"{SECRET}1".encode()).scopes == {"act", "weights"}
    assert len(tokens.find(f"{SECRET}2".encode()).name) == 8
    for wrong in (b"", SECRET.encode(), f"{SECRET}3".encode(), f"{SECRET}1 ".encode(), b"\xff" * 300):
        assert tokens.find(wrong) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"{SECRET} act\n{SECRET}\n", "line 2"),
        (f"{SECRET} act,fly\n", "line 1"),
        (f"{SECRET} act,\n", "line 1"),
        ("short act\n", "line 1"),
        (f"{SECRET}/+= act\n", "line 1"),
        ("# nobody\n", "has no token"),
        ("", "has no token"),
        ("\udcff".encode("utf-8", "surrogateescape").decode("latin-1"), "line 1"),
    ],
)
def test_lines_of_another_form_are_said_without_the_secret(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says) as error:
        Tokens(written(tmp_path / "t", text))
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666, 0o610])
def test_a_file_that_others_can_read_is_refused(tmp_path, mode):
    with pytest.raises(ConfigError, match="chmod 600"):
        Tokens(written(tmp_path / "t", f"{SECRET} act", mode))


def test_a_file_that_is_missing_is_said(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the tokens"):
        Tokens(tmp_path / "t")


def test_tokens_stay_when_the_new_file_is_no_good_and_keep_their_rates(tmp_path):
    path = written(tmp_path / "t", f"{SECRET} act")
    tokens = Tokens(path, rate=2)
    assert not tokens.changed()
    old = tokens.find(SECRET.encode())
    assert [old.bucket.take(0.0) for _ in range(3)] == [0, 0, 0.5]
    written(path, f"{SECRET} act,fly")
    assert tokens.changed()
    with pytest.raises(ConfigError):
        tokens.reload()
    assert not tokens.changed()
    assert tokens.find(SECRET.encode()) is old
    written(path, f"{SECRET} admin")
    tokens.reload()
    new = tokens.find(SECRET.encode())
    assert new.scopes == {"admin"}
    assert new.bucket.take(0.0) == 0.5
    assert (old in tokens, new in tokens) == (False, True)
    path.unlink()
    assert tokens.changed()


def test_secrets_are_not_kept(tmp_path):
    tokens = Tokens(written(tmp_path / "t", f"{SECRET} act me"))
    kept = [*vars(tokens).values(), *vars(tokens.find(SECRET.encode())).values()]
    assert not any(SECRET in str(value) for value in kept)


# --- exposure


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.7", False),
        ("example.org", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_which_addresses_only_this_machine_can_reach(host, inside):
    assert is_loopback(host) == inside
    assert (check_exposure(host, tokens=True, tls=True, insecure=False)) is None
    if inside:
        assert check_exposure(host, tokens=False, tls=False, insecure=False) is None
        return
    for tokens, tls in ((False, False), (True, False), (False, True)):
        with pytest.raises(ConfigError) as error:
            check_exposure(host, tokens=tokens, tls=tls, insecure=False)
        assert ("token_file" in str(error.value), "tls_cert" in str(error.value)) == (not tokens, not tls)
        assert "insecure" in check_exposure(host, tokens=tokens, tls=tls, insecure=True)


def test_a_certificate_is_for_its_hosts_and_its_key_for_its_owner(tmp_path):
    cert, key = make_cert(tmp_path / "tls", ["shop.example", "10.0.0.7", "[::1]"])
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    read = x509.load_pem_x509_certificate(cert.read_bytes())
    names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["shop.example"]
    addresses = [ipaddress.ip_address(text) for text in ("10.0.0.7", "::1")]
    assert names.get_values_for_type(x509.IPAddress) == addresses
    assert read.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert 700 < (read.not_valid_after_utc - read.not_valid_before_utc).days < 800
    assert tls_context(cert, key).minimum_version == ssl.TLSVersion.TLSv1_2
    secret = key.read_bytes()
    with pytest.raises(ConfigError, match="exists"):
        make_cert(tmp_path / "tls", ["shop.example"])
    assert key.read_bytes() == secret


def test_files_that_are_no_certificate_are_said(tmp_path):
    cert, key = make_cert(tmp_path / "a", ["localhost"])
    _, other = make_cert(tmp_path / "b", ["localhost"])
    for wrong in ((cert, other), (key, cert), (tmp_path / "missing", key)):
        with pytest.raises(ConfigError, match="cannot use the certificate"):
            tls_context(*wrong)


# --- the gate


def admit(gate, *, method="GET", target=b"/v1/spaces", now=0.0, **headers):
    named = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    return gate.admit(Head(method, target, {b"host": b"localhost"} | named), "1.2.3.4", "10.0.0.7", now)


@pytest.mark.parametrize(
    ("host", "known"),
    [
        (b"localhost", True),
        (b"LOCALHOST:9900", True),
        (b"127.0.0.1:1", True),
        (b"[::1]", True),
        (b"[::1]:9900", True),
        (b"shop.example", True),
        (b"10.0.0.7:9900", True),
        (b"10.0.0.8", False),
        (b"shop.example.evil", False),
        (b"shop.example:80:80", False),
        (b"localhost:80a", False),
        (b"localhost ", False),
        (b"", False),
        (b":80", False),
    ],
)
def test_hosts_that_are_known(host, known):
    gate = Gate(Tokens(None), Limits(), hosts=["Shop.Example"])
    if known:
        assert admit(gate, host=host).verb == "spaces"
    else:
        with pytest.raises(Refused) as refused:
            admit(gate, host=host)
        assert (refused.value.status, refused.value.code) == (403, "host")


def test_origins_are_compared_as_a_whole():
    gate = Gate(Tokens(None), Limits(), origins=["https://shop.example:8443/"])
    assert admit(gate, origin=b"https://SHOP.example:8443").origin == "https://SHOP.example:8443"
    assert admit(gate).origin == ""
    for other in (b"https://shop.example", b"http://shop.example:8443", b"null", b"*"):
        with pytest.raises(Refused, match="may not use this server"):
            admit(gate, origin=other)


def test_addresses_with_wrong_tokens_are_forgotten_after_a_while(tmp_path):
    gate = Gate(Tokens(written(tmp_path / "t", f"{SECRET} act")), Limits(wrong_tokens=2))
    codes = []
    for now in (10.0, 10.0, 10.0, 10.4, 10.5, 10.5):
        with pytest.raises(Refused) as refused:
            admit(gate, now=now)
        codes.append(refused.value.code)
    # A second holds two, and half a second brings one back.
    assert codes == ["unauthorized", "unauthorized", "rate", "rate", "unauthorized", "rate"]
    gate.sweep(10.6)
    assert len(gate._wrong) == 1
    gate.sweep(12.0)
    assert len(gate._wrong) == 0
    assert admit(gate, authorization=f"bearer {SECRET}".encode()).verb == "spaces"
    assert admit(gate, sec_websocket_protocol=f"steppe.v1, steppe.token.{SECRET}".encode()).token.scopes == {
        "act"
    }


def test_addresses_with_wrong_tokens_are_not_too_many_to_remember(tmp_path, monkeypatch):
    monkeypatch.setattr("steppe.serving.gate._MOST_ADDRESSES", 10)
    gate = Gate(Tokens(written(tmp_path / "t", f"{SECRET} act")), Limits())
    for number in range(35):
        with pytest.raises(Refused):
            gate.admit(Head("GET", b"/v1/spaces", {b"host": b"localhost"}), f"1.2.3.{number}", "", 0.0)
    assert len(gate._wrong) <= 10


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        (b"", "json"),
        (b"*/*", "json"),
        (b"application/msgpack", "msgpack"),
        (b"text/html, application/MSGPACK;q=0.5, application/json", "msgpack"),
        (b"application/json, application/msgpack", "json"),
        (b"application/msgpackage", "json"),
        (b",;,", "json"),
    ],
)
def test_the_first_known_kind_of_accept_counts(header, kind):
    assert accepted(header, "json") == kind


def test_a_bucket_holds_a_second_and_fills_with_time():
    bucket = Bucket(4)
    assert [bucket.take(0.0) for _ in range(5)] == [0, 0, 0, 0, 0.25]
    assert not bucket.full(0.9)
    assert bucket.full(1.0)
    assert bucket.take(0.25) == 0
    assert bucket.take(0.25) == 0.25
    assert [bucket.take(100.0) for _ in range(5)] == [0, 0, 0, 0, 0.25]
    slow = Bucket(0.1)
    assert (slow.take(0.0), slow.take(5.0), slow.take(10.0)) == (0, 5.0, 0)
