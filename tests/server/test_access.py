"""Who may come in: keys, default deny, loopback only, no other web page."""

from __future__ import annotations

import hashlib
import os
import socket

import pytest
from serving import KEY, METRICS_KEY, OTHER, Running, chat, judge_of, serving, unnamed
from tiny_models import random_pair

from alignbeam import AlignBeam, BeamConfig
from alignbeam.config import ServerConfig, load_settings
from alignbeam.errors import ConfigError
from alignbeam.server.app import Server
from alignbeam.server.keys import Keys
from alignbeam.server.run import check_exposure


@pytest.fixture(scope="module")
def pair():
    return random_pair()


@pytest.fixture(scope="module")
def running(pair):
    with serving(pair, playground=True) as server:
        yield server


def test_every_route_but_health_and_ready_needs_a_key(running):
    with running.client(None) as client:
        for route in running.server.app.routes:
            path = route.path.replace("{name}", "alignbeam")
            for method in route.methods:
                said = client.request(method, path)
                if path in ("/health", "/ready"):
                    assert said.status_code in (200, 405)
                else:
                    assert said.status_code == 401, path
        assert client.get("/nowhere").status_code == 401
        assert client.get("/openapi.json").status_code == 401
        assert client.get("/metrics").json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer  {KEY}"},
        {"x-api-key": KEY},
    ],
)
def test_key_is_taken_as_bearer_or_header(running, headers):
    with running.client(None) as client:
        assert client.get("/v1/models", headers=headers).status_code == 200


def test_key_is_taken_as_basic_password_for_browsers(running):
    with running.client(None) as client:
        assert client.get("/", auth=("anyone", KEY)).status_code == 200
        refused = client.get("/", auth=("anyone", "wrong"))
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Basic")


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Basic !!!", "Bearer \xff\xfe", f"Token {KEY}", KEY]
)
def test_odd_authorization_is_401(running, value):
    with running.client(None) as client:
        headers = [(b"authorization", value.encode("latin-1"))]
        assert client.get("/v1/models", headers=headers).status_code == 401


def test_another_web_page_may_not_ask(running):
    with running.client() as client:
        for origin in ("https://evil.example", "null", "http://localhost:1"):
            said = client.get("/v1/models", headers={"origin": origin})
            assert (said.status_code, said.json()["error"]["code"]) == (403, "cross_origin")
        assert client.get("/v1/models", headers={"origin": running.url}).status_code == 200


def test_without_keys_only_loopback_names_are_answered(pair):
    trio = AlignBeam(*pair, judge_of(), BeamConfig(max_new_tokens=8))
    server = Server(trio, ServerConfig(), keys=Keys(environ={}))
    running = Running(server)
    try:
        with running.client(None) as client:
            assert client.get("/v1/models").status_code == 200
            rebound = client.get("/v1/models", headers={"host": "evil.example"})
            assert rebound.json()["error"]["code"] == "host_not_allowed"
            assert rebound.status_code == 403
    finally:
        running.close()


def test_public_bind_without_a_key_is_refused(tmp_path):
    nobody, somebody = Keys(environ={}), Keys(environ={"ALIGNBEAM_API_KEYS": KEY})
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"):
        with pytest.raises(ConfigError, match="without an API key"):
            check_exposure(ServerConfig(host=host), nobody)
        check_exposure(ServerConfig(host=host), somebody)
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        check_exposure(ServerConfig(host=host), nobody)


def test_keys_file_holds_names_hashes_and_comments_and_is_read_again(tmp_path):
    path = tmp_path / "keys"
    hashed = hashlib.sha256(b"another-key-long-enough").hexdigest()
    path.write_text(f"# keys\nalice: {KEY}  # hers\n\nbob: sha256:{hashed}\nplain-key-0123456789\n")
    keys = Keys(str(path), environ={})
    assert keys.name_of(KEY) == "alice"
    assert keys.name_of("another-key-long-enough") == "bob"
    assert keys.name_of("plain-key-0123456789") == unnamed("plain-key-0123456789")
    assert keys.name_of(hashed) is None
    assert keys.name_of("") is None
    path.write_text("carol: a-new-key-for-carol\n")
    os.utime(path, (1, 1))
    assert keys.name_of("a-new-key-for-carol") == "carol"
    assert keys.name_of(KEY) is None
    path.unlink()
    assert keys.name_of("a-new-key-for-carol") is None
    assert keys.required


def test_keys_file_put_in_place_with_an_old_time_and_the_same_length_is_read(tmp_path):
    path, fresh = tmp_path / "keys", tmp_path / "fresh"
    old, new = "an-old-key-for-alice", "a-new-key-for-alice!"
    for file, key in ((path, old), (fresh, new)):
        file.write_text(f"alice: {key}\n")
        os.utime(file, (1, 1))  # as file systems do that are built to be the same each time
    keys = Keys(str(path), environ={})
    assert keys.name_of(old) == "alice"
    fresh.rename(path)
    assert (keys.name_of(old), keys.name_of(new)) == (None, "alice")
    path.write_text(f"alice: {old}\n")
    os.utime(path, (1, 1))
    assert (keys.name_of(old), keys.name_of(new)) == ("alice", None)


def test_keys_file_that_went_away_and_comes_back_as_it_was_is_taken(tmp_path):
    path, away = tmp_path / "keys", tmp_path / "away"
    path.write_text(f"alice: {KEY}\n")
    keys = Keys(str(path), environ={})
    path.rename(away)
    assert keys.name_of(KEY) is None
    os.link(away, path)
    assert keys.name_of(KEY) == "alice"


def test_keys_without_a_name_never_share_one(tmp_path):
    path = tmp_path / "keys"
    path.write_text("a-key-of-the-first-one\na-key-of-the-second-one\n")
    keys = Keys(str(path), environ={"ALIGNBEAM_API_KEYS": "a-key-of-the-third-one"})
    second = keys.name_of("a-key-of-the-second-one")
    assert len({keys.name_of(f"a-key-of-the-{n}-one") for n in ("first", "second", "third")}) == 3
    path.write_text("a-key-of-the-second-one\n")  # whoever comes later does not get its name
    assert keys.name_of("a-key-of-the-second-one") == second


def test_keys_that_are_too_short_or_unreadable_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least 16"):
        Keys(environ={"ALIGNBEAM_API_KEYS": "short"})
    with pytest.raises(ConfigError, match="cannot read the API keys"):
        Keys(str(tmp_path / "none"), environ={})


def test_empty_keys_file_lets_nobody_in(pair, tmp_path):
    path = tmp_path / "keys"
    path.write_text("")
    keys = Keys(str(path), environ={})
    assert keys.required
    assert keys.name_of("") is None
    with pytest.raises(ConfigError):
        check_exposure(ServerConfig(host="0.0.0.0"), keys)


def test_server_table_is_read_and_checked(tmp_path):
    path = tmp_path / "alignbeam.toml"
    path.write_text('[beam]\nalpha = 0.4\n[server]\nport = 9000\nallow = ["alpha"]\n')
    settings = load_settings(path, {"server": {"host": "127.0.0.2"}}, environ={})
    config = settings.server
    assert (config.port, config.host, config.allow) == (9000, "127.0.0.2", ("alpha",))
    assert settings.beam.alpha == 0.4
    for bad in ("port = 70000", "prot = 1", 'release = "soon"', 'allow = ["threshold"]',
                "shadow = 1", "keep_alive_s = 0", "allow = 3"):  # fmt: skip
        path.write_text(f"[server]\n{bad}\n")
        with pytest.raises(ConfigError):
            load_settings(path, environ={})


def test_refused_requests_do_not_reach_the_models(running):
    before = running.server.service.metrics.page()
    with running.client("wrong-key-wrong-key") as client:
        assert client.post("/v1/chat/completions", json=chat()).status_code == 401
    steps = [line for line in before.splitlines() if line.startswith(b"alignbeam_decode_steps")]
    after = running.server.service.metrics.page().splitlines()
    assert all(line in after for line in steps if b"created" not in line)


def keys_of(tmp_path, *lines):
    path = tmp_path / "keys"
    path.write_text("\n".join(lines), encoding="utf-8")
    return Keys(str(path), environ={})


def test_key_with_a_hash_sign_in_it_is_not_cut_in_silence(tmp_path):
    keys = keys_of(tmp_path, f"alice: {KEY}#rest", f"{KEY}-2 # bob's", "#off", " # off")
    assert keys.name_of(f"{KEY}#rest") == "alice"
    assert keys.name_of(KEY) is None
    assert keys.name_of(f"{KEY}-2") == unnamed(f"{KEY}-2")


@pytest.mark.parametrize("spelling", ["sha256:{}", "SHA256:{}", "sha256: {}", "bob: sha256: {}"])
@pytest.mark.parametrize("case", [str.lower, str.upper])
def test_hashed_key_is_the_key_and_never_its_own_text(tmp_path, spelling, case):
    digest = case(hashlib.sha256(KEY.encode()).hexdigest())
    keys = keys_of(tmp_path, spelling.format(digest))
    assert keys.name_of(KEY) == ("bob" if spelling.startswith("bob") else unnamed(KEY))
    for text in (digest, f"sha256:{digest}", f" {digest}", spelling.format(digest)):
        assert keys.name_of(text) is None


@pytest.mark.parametrize("rest", ["", "abc", "0" * 63, "0" * 65, "g" * 64, "0" * 64 + " 1"])
def test_hash_that_is_none_is_refused(tmp_path, rest):
    for line in (f"sha256:{rest}", f"bob: sha256:{rest}", f"bob: sha256: {rest}"):
        with pytest.raises(ConfigError, match="64 hexadecimal digits"):
            keys_of(tmp_path, line)


def test_two_keys_of_one_name_both_open(tmp_path):
    keys = keys_of(tmp_path, f"alice: {KEY}", f"alice: {KEY}-the-next")
    assert [keys.name_of(k) for k in (KEY, f"{KEY}-the-next", f"{KEY}-none")] == [
        "alice",
        "alice",
        None,
    ]


def test_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    assert keys_of(tmp_path, f"\ufeff{KEY}").name_of(KEY) == unnamed(KEY)


def every_byte(running, key, path, method="GET", host="localhost"):
    """What a server sends to one request until it closes the connection, head and body."""
    head = f"{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n"
    head += f"authorization: Bearer {key}\r\ncontent-length: 0\r\n\r\n"
    with socket.create_connection(("127.0.0.1", running.port), timeout=60) as raw:
        raw.sendall(head.encode())
        return b"".join(iter(lambda: raw.recv(65_536), b""))


#: Ways to ask for the metrics that a proxy, or a parser, may take for them.
SPELLINGS = [
    *(
        "/metrics",
        "/metrics?a=b",
        "/metrics/",
        "//metrics",
        "/%6detrics",
        "/METRICS",
        "/metrics%00",
    ),
    *("/v1/../metrics", "/./metrics", "http://localhost/metrics", "/metrics;a", "/metrics#a"),
]


def test_no_byte_of_the_metrics_leaves_for_a_clients_key(running):
    told = running.metrics()
    names = {line.split()[2] for line in told.splitlines() if line.startswith("# HELP")}
    assert len(names) > 20
    for key in (KEY, OTHER, "", "no-key-of-anybodys"):
        for path in SPELLINGS:
            for method in ("GET", "HEAD", "POST", "OPTIONS"):
                said = every_byte(running, key, path, method)
                assert said.startswith((b"HTTP/1.1 401", b"HTTP/1.1 404", b"HTTP/1.1 400")), path
                assert not [name for name in names if name.encode() in said]
    with running.client() as client:  # nor by a header that somebody else may go by
        for header in ("x-original-url", "x-rewrite-url", "x-forwarded-path"):
            said = client.get("/v1/models", headers={header: "/metrics"})
            assert "alignbeam_" not in said.text


def test_metrics_key_opens_the_metrics_and_nothing_else(running):
    with running.client(METRICS_KEY) as client:
        assert "alignbeam_requests_total" in client.get("/metrics").text
        for route in running.server.app.routes:
            path = route.path.replace("{name}", "alignbeam")
            if path in ("/health", "/ready", "/metrics"):
                continue
            for method in route.methods:
                assert client.request(method, path).status_code == 401, path
        said = client.post("/v1/chat/completions", json=chat(stream=True))
        assert (said.status_code, set(said.json())) == (401, {"error"})


def test_metrics_are_closed_where_clients_need_a_key_and_no_scraper_has_one(pair, tmp_path):
    trio = AlignBeam(*pair, judge_of(), BeamConfig(max_new_tokens=8))
    clients, path = Keys(environ={"ALIGNBEAM_API_KEYS": KEY}), tmp_path / "metrics-keys"
    none = Keys(environ={}, variable="ALIGNBEAM_METRICS_KEYS")
    path.write_text("")
    of_file = Keys(str(path), environ={})
    for scrapers in (none, of_file):
        path.write_text("")
        running = Running(Server(trio, ServerConfig(), keys=clients, metrics_keys=scrapers))
        try:
            for key in (KEY, METRICS_KEY, ""):
                assert every_byte(running, key, "/metrics").startswith(b"HTTP/1.1 401")
            path.write_text(f"prometheus: {METRICS_KEY}\n")  # read without a restart
            said = every_byte(running, METRICS_KEY, "/metrics")
            assert said.startswith(b"HTTP/1.1 200") is (scrapers is of_file)
        finally:
            running.close()


def test_metrics_without_any_key_are_read_by_loopback_names_only(pair):
    trio = AlignBeam(*pair, judge_of(), BeamConfig(max_new_tokens=8))
    nobody = Keys(environ={})
    only = Keys(environ={"ALIGNBEAM_METRICS_KEYS": METRICS_KEY}, variable="ALIGNBEAM_METRICS_KEYS")
    for scrapers, without in ((nobody, b"200"), (only, b"401")):
        server = Server(trio, ServerConfig(), keys=nobody, metrics_keys=scrapers)
        running = Running(server)
        try:
            assert every_byte(running, "", "/metrics").split()[1] == without
            rebound = every_byte(running, "", "/metrics", host="evil.example")
            assert rebound.split()[1] in (b"401", b"403")
            assert b"alignbeam_" not in rebound
            assert every_byte(running, METRICS_KEY, "/metrics").split()[1] == b"200"
            assert every_byte(running, "", "/v1/models").split()[1] == b"200"
        finally:
            running.close()
