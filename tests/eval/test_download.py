"""Downloads against a real HTTP server that breaks off, lies, and says too little or too much."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from alignbeam.errors import ConfigError
from alignbeam.eval import datasets
from alignbeam.eval.datasets import DataSet, locate
from alignbeam.eval.download import DownloadError, download

BODY = b"prompt\n" + b"".join(b"request %d\n" % i for i in range(40_000))
SHA = hashlib.sha256(BODY).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_FILE = "hf://datasets/some/sets@main/in/set.csv"


class Server(ThreadingHTTPServer):
    """Serves BODY; ``cuts`` are the bytes after which successive answers break off.

    ``says`` is the length that is told: None tells none.
    """

    def __init__(self, cuts=(), status=200, body=BODY, says=-1):
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts, self.status, self.body = list(cuts), status, body
        self.says = len(body) if says == -1 else says
        self.asked: list[str] = []
        self.root = f"http://127.0.0.1:{self.server_address[1]}"
        self.url = f"{self.root}/set.csv"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self):
        self.server.asked.append(f"{self.command} {self.path}")
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        self.send_response(200)
        if self.server.says is not None:
            self.send_header("Content-Length", str(self.server.says))
        self.send_header("ETag", '"tag"')
        self.send_header("X-Repo-Commit", COMMIT)  # as the hub does
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        if self.server.status == 200:
            cut = self.server.cuts.pop(0) if self.server.cuts else None
            with contextlib.suppress(ConnectionError):  # who was told too much has left
                self.wfile.write(self.server.body[:cut])

    def log_message(self, *args):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(**settings):
        server = Server(**settings)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_download_brings_the_file_and_tells_how_far_it_is(serve, tmp_path):
    told: list[tuple[int, int | None]] = []
    path = tmp_path / "deep" / "set.csv"
    sha = download(serve().url, path, SHA, progress=lambda n, of: told.append((n, of)))
    assert sha == SHA
    assert path.read_bytes() == BODY
    assert told[-1] == (len(BODY), len(BODY))
    assert [n for n, _ in told] == sorted({n for n, _ in told})
    assert len(told) > 2
    assert [p.name for p in path.parent.iterdir()] == ["set.csv"]


def test_download_begins_anew_where_a_transfer_broke(serve, tmp_path):
    server = serve(cuts=[100_000, 0])
    download(server.url, tmp_path / "set.csv", SHA, pause_s=0)
    assert (tmp_path / "set.csv").read_bytes() == BODY
    assert len(server.asked) == 3


def test_download_gives_up_on_a_server_that_gives_a_byte_a_try(serve, tmp_path):
    server = serve(cuts=range(1, 100))
    with pytest.raises(DownloadError, match="broke off"):
        download(server.url, tmp_path / "set.csv", SHA, pause_s=0)
    assert len(server.asked) == 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("says", [len(BODY), None])
def test_download_refuses_a_file_that_is_too_long(serve, tmp_path, says):
    server, told = serve(says=says), []
    with pytest.raises(DownloadError, match="100,000 are allowed"):
        download(
            server.url,
            tmp_path / "set.csv",
            SHA,
            max_bytes=100_000,
            progress=lambda n, of: told.append(n),
        )
    assert told == [] if says else max(told) <= 200_000
    assert len(server.asked) == 1
    assert list(tmp_path.iterdir()) == []


def test_download_takes_a_file_as_long_as_is_allowed(serve, tmp_path):
    download(serve().url, tmp_path / "set.csv", SHA, max_bytes=len(BODY))
    assert (tmp_path / "set.csv").read_bytes() == BODY


def test_download_of_unknown_length_is_taken_only_where_a_hash_is_pinned(serve, tmp_path):
    server = serve(says=None)
    with pytest.raises(DownloadError, match="does not say how long it is"):
        download(server.url, tmp_path / "set.csv", None)
    assert list(tmp_path.iterdir()) == []
    assert download(server.url, tmp_path / "set.csv", SHA) == SHA


@pytest.mark.parametrize("suffix", [".part", ".sha256", ""])
def test_download_writes_through_no_planted_link(serve, tmp_path, suffix):
    precious = tmp_path / "precious"
    precious.write_text(SHA)
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / f"set.csv{suffix}").symlink_to(precious)
    download(serve().url, folder / "set.csv", None)
    assert precious.read_text() == SHA
    assert (folder / "set.csv").read_bytes() == BODY


def test_download_refuses_a_wrong_hash_and_keeps_nothing(serve, tmp_path):
    with pytest.raises(DownloadError, match="not the pinned file"):
        download(serve().url, tmp_path / "set.csv", "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_download_without_a_pin_holds_to_the_first_file(serve, tmp_path):
    path = tmp_path / "set.csv"
    assert download(serve().url, path, None) == SHA
    path.unlink()
    with pytest.raises(DownloadError, match="not the pinned file"):
        download(serve(body=BODY + b"changed\n").url, path, None)
    assert not path.exists()


@pytest.mark.parametrize("status", [403, 404])
def test_download_gives_up_at_once_where_the_server_says_no(serve, tmp_path, status):
    server = serve(status=status)
    with pytest.raises(DownloadError, match=str(status)):
        download(server.url, tmp_path / "set.csv", SHA)
    assert len(server.asked) == 1


def test_download_tries_again_when_the_server_is_in_trouble(serve, tmp_path):
    server = serve(status=503)
    with pytest.raises(DownloadError, match="503"):
        download(server.url, tmp_path / "set.csv", SHA, pause_s=0)
    assert len(server.asked) == 4


@pytest.fixture
def hub(serve, monkeypatch):
    """A server in the hub's place."""
    from huggingface_hub import constants

    def start(**settings):
        server = serve(**settings)
        template = f"{server.root}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", server.root)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        return server

    return start


def test_download_from_the_hub_brings_the_file_of_the_commit_that_was_looked_up(hub, tmp_path):
    server, told = hub(), []
    path = tmp_path / "own" / "set.csv"
    sha = download(HUB_FILE, path, SHA, progress=lambda n, of: told.append((n, of)))
    assert sha == SHA
    assert path.read_bytes() == BODY
    assert told == [(len(BODY), len(BODY))]
    assert [p.name for p in path.parent.iterdir()] == ["set.csv"]
    asked = [line for line in server.asked if "/datasets/" in line]
    assert asked[0] == "HEAD /datasets/some/sets/resolve/main/in/set.csv"
    assert asked[-1] == f"GET /datasets/some/sets/resolve/{COMMIT}/in/set.csv"


def test_download_from_the_hub_refuses_a_file_that_is_too_long_unread(hub, tmp_path):
    server = hub()
    with pytest.raises(DownloadError, match="100,000 are allowed"):
        download(HUB_FILE, tmp_path / "set.csv", SHA, max_bytes=100_000)
    assert "GET /datasets" not in " ".join(server.asked)
    assert list(tmp_path.iterdir()) == []


def test_download_from_the_hub_holds_to_the_first_file(hub, tmp_path):
    path = tmp_path / "set.csv"
    hub()
    download(HUB_FILE, path, None)
    hub(body=BODY + b"changed\n")
    with pytest.raises(DownloadError, match="not the pinned file"):
        download(HUB_FILE, path, None)


def test_download_from_the_hub_says_what_the_hub_says(hub, tmp_path):
    hub(status=404)
    with pytest.raises(DownloadError, match=r"cannot fetch in/set.csv of some/sets .*404"):
        download(HUB_FILE, tmp_path / "set.csv", SHA)


def declared(server, sha=SHA):
    return DataSet(
        name="own",
        label="benign",
        file="own/set.csv",
        sha256=sha,
        url=server.url,
        measures="",
        source="a server",
        licence="",
    )


def test_locate_prefers_the_data_folder_then_the_cache_then_the_network(
    serve, tmp_path, monkeypatch
):
    monkeypatch.setenv("ALIGNBEAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ALIGNBEAM_DATA", raising=False)
    server = serve()
    own = declared(server)
    with pytest.raises(ConfigError, match="downloads are switched off"):
        locate(own, fetch=False)
    fetched = locate(own)
    assert fetched == tmp_path / "cache" / "data" / "own" / "set.csv"
    assert locate(own) == fetched
    assert len(server.asked) == 1
    data = tmp_path / "data" / "own"
    data.mkdir(parents=True)
    (data / "set.csv").write_bytes(BODY)
    assert locate(own, tmp_path / "data") == data / "set.csv"


def test_locate_refuses_a_file_of_another_hash(serve, tmp_path):
    data = tmp_path / "own"
    data.mkdir()
    (data / "set.csv").write_bytes(BODY + b"one more\n")
    with pytest.raises(ConfigError, match="not the pinned file of own"):
        locate(declared(serve()), tmp_path)


def test_locate_names_what_must_be_fetched_by_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNBEAM_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="gated"):
        locate(datasets.DATASETS["sorry-bench"], tmp_path)


def test_locate_without_a_home_says_what_to_set(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "cache_folder", lambda name: None)
    with pytest.raises(ConfigError, match="set ALIGNBEAM_CACHE"):
        locate(declared(serve()), tmp_path)
