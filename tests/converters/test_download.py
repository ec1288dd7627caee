"""Downloads from a server on loopback: each file once, resumed and checked."""

import fcntl
import hashlib
import http.server
import threading

import numpy as np
import pytest

from detlab import errors
from detlab.converters import download, published

DATA = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves DATA, with the faults that the server's attributes ask for."""

    def do_GET(self):
        server = self.server
        first = 0
        if self.path.startswith("/gone"):
            self.send_error(404)
            return
        if server.ranges and "Range" in self.headers:
            first = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if first >= len(DATA):
                self.send_error(416)
                return
        server.starts.append(first)
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(DATA) - first))
        self.end_headers()
        last = server.breaks.pop(0) if server.breaks else len(DATA)
        self.wfile.write(DATA[first:last])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.ranges, server.breaks, server.starts = True, [], []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def refusal(*arguments):
    with pytest.raises(errors.UserError) as caught:
        download.fetch(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("digits", [8, 64])
def test_a_file_is_fetched_once(server, tmp_path, digits):
    url = f"{server.url}/some%20folder/weights.pth"
    path = download.fetch(url, SHA256[:digits], tmp_path)
    assert path.read_bytes() == DATA and path.name.endswith("weights.pth")
    assert download.fetch(url, SHA256[:digits].upper(), tmp_path) == path
    assert server.starts == [0]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_published_file_needs_no_checksum_and_another_file_in_its_place_is_refused(
    server, tmp_path, monkeypatch
):
    url = f"{server.url}/yolov5n.pt"
    monkeypatch.setitem(published.SHA256, url, SHA256)
    assert download.fetch(url, "", tmp_path).read_bytes() == DATA
    monkeypatch.setitem(published.SHA256, url, "0" * 64)
    assert f"SHA-256 {SHA256}" in refusal(url, "", tmp_path)


def test_the_checksum_may_be_in_the_name_as_publishers_write_it(server, tmp_path):
    path = download.fetch(f"{server.url}/resnet50-{SHA256[:8]}.pth", "", tmp_path)
    assert path.read_bytes() == DATA
    assert "needs --sha256" in refusal(f"{server.url}/resnet50.pth", "", tmp_path)


def test_a_download_that_broke_off_goes_on_where_it_stopped(server, tmp_path):
    server.breaks = [100_000, 200_000]
    url = f"{server.url}/weights.pth"
    for _ in range(2):
        text = refusal(url, SHA256, tmp_path)
        assert "was interrupted" in text and "repeat the command to resume it" in text
    assert download.fetch(url, SHA256, tmp_path).read_bytes() == DATA
    assert server.starts == [0, 100_000, 200_000]


def test_a_server_without_ranges_begins_anew(server, tmp_path):
    server.ranges, server.breaks = False, [100_000]
    url = f"{server.url}/weights.pth"
    refusal(url, SHA256, tmp_path)
    assert download.fetch(url, SHA256, tmp_path).read_bytes() == DATA
    assert server.starts == [0, 0]


def test_a_complete_part_is_only_checked(server, tmp_path):
    url = f"{server.url}/weights.pth"
    (tmp_path / f"{SHA256[:8]}-weights.pth.part").write_bytes(DATA)
    assert download.fetch(url, SHA256, tmp_path).read_bytes() == DATA
    assert server.starts == []


def test_another_checksum_is_refused_and_nothing_stays(server, tmp_path):
    text = refusal(f"{server.url}/weights.pth", "0" * 64, tmp_path)
    assert SHA256 in text and "was removed" in text
    assert not list(tmp_path.iterdir())


def test_two_processes_do_not_write_one_file(server, tmp_path):
    lock = tmp_path / f"{SHA256[:8]}-weights.pth.lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        text = refusal(f"{server.url}/weights.pth", SHA256, tmp_path)
        assert "another process is downloading this file" in text
    assert download.fetch(f"{server.url}/weights.pth", SHA256, tmp_path).read_bytes() == DATA


def test_a_file_in_the_place_of_the_cache_is_named(server, tmp_path):
    (tmp_path / "cache").write_text("")
    text = refusal(f"{server.url}/weights.pth", SHA256, tmp_path / "cache")
    assert "cannot be downloaded (File exists)" in text


def test_a_file_damaged_in_the_cache_is_fetched_again(server, tmp_path):
    url = f"{server.url}/weights.pth"
    path = download.fetch(url, SHA256, tmp_path)
    path.write_bytes(DATA[:-1])
    assert download.fetch(url, SHA256, tmp_path).read_bytes() == DATA


@pytest.mark.parametrize(
    "url, sha256, words",
    [
        ("{}/gone.pth", SHA256, "cannot be downloaded (Not Found)"),
        ("{}/weights.pth", "xyz", "8 to 64 hex digits"),
        ("{}/", SHA256, "is not the http or https URL of a file"),
        ("ftp://127.0.0.1/weights.pth", SHA256, "is not the http or https URL of a file"),
        ("http://127.0.0.1:9/weights.pth", SHA256, "cannot be downloaded (["),
        ("http://[::1/weights.pth", SHA256, "is not a valid URL (Invalid IPv6 URL)"),
        ("{}/gewichte-ä.pth", SHA256, "is not a valid URL ("),
        ("http://" + "a" * 70 + "/weights.pth", SHA256, "("),
        ("{}/" + "a" * 300, SHA256, "cannot be downloaded (File name too long)"),
        ("{}/model_20200130.pth", "", "needs --sha256"),
        ("{}/model-20200130.pth", "", "needs --sha256"),
    ],
)
def test_mistakes_are_named_in_a_sentence(server, tmp_path, url, sha256, words):
    assert words in refusal(url.format(server.url), sha256, tmp_path)


def test_urls_are_told_from_paths():
    assert download.is_url("https://a.b/c.pth") and download.is_url("ftp://a/b")
    assert not download.is_url("weights/c.pth") and not download.is_url("C:\\weights")
