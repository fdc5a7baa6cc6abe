"""Downloads against a real HTTP server that breaks off, lies, and has or has no ranges."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from alignbeam.errors import ConfigError
from alignbeam.eval import datasets
from alignbeam.eval.datasets import DataSet, Origin, locate
from alignbeam.eval.download import DownloadError, download

BODY = b"prompt\n" + b"".join(b"request %d\n" % i for i in range(40_000))
SHA = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves BODY; ``cuts`` are the bytes after which successive answers break off."""

    def __init__(self, cuts=(), ranges=True, status=200, body=BODY):
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts, self.ranges, self.status, self.body = list(cuts), ranges, status, body
        self.asked: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/set.csv"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        start = int(wanted[6:-1]) if wanted and self.server.ranges else 0
        if start > len(self.server.body):
            self.send_error(416)
            return
        rest = self.server.body[start:]
        self.send_response(206 if wanted and self.server.ranges else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if self.server.cuts:
            rest = rest[: self.server.cuts.pop(0)]
        self.wfile.write(rest)

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
    assert [p.name for p in path.parent.iterdir()] == ["set.csv"]


def test_download_resumes_a_broken_transfer_where_it_broke(serve, tmp_path):
    server = serve(cuts=[100_000, 150_000])
    download(server.url, tmp_path / "set.csv", SHA, pause_s=0)
    assert (tmp_path / "set.csv").read_bytes() == BODY
    assert server.asked == [None, "bytes=100000-", "bytes=250000-"]


def test_download_takes_up_what_an_earlier_process_left(serve, tmp_path):
    (tmp_path / "set.csv.part").write_bytes(BODY[:1234])
    server = serve()
    download(server.url, tmp_path / "set.csv", SHA)
    assert server.asked == ["bytes=1234-"]
    assert (tmp_path / "set.csv").read_bytes() == BODY


def test_download_begins_anew_where_the_server_has_no_ranges(serve, tmp_path):
    server = serve(cuts=[5000], ranges=False)
    download(server.url, tmp_path / "set.csv", SHA, pause_s=0)
    assert (tmp_path / "set.csv").read_bytes() == BODY


def test_download_drops_a_part_that_is_longer_than_the_file(serve, tmp_path):
    (tmp_path / "set.csv.part").write_bytes(BODY + b"more")
    download(serve().url, tmp_path / "set.csv", SHA, pause_s=0)
    assert (tmp_path / "set.csv").read_bytes() == BODY


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


def declared(server, sha=SHA):
    return DataSet(
        name="own",
        label="benign",
        file="own/set.csv",
        sha256=sha,
        origin=Origin(server.url, sha),
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
