"""The published files: fetched once, verified, resumed; failures are told and leave no junk."""

import _thread
import errno
import hashlib
import random
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cytomad_lib.data import download
from cytomad_lib.data import fetch as fetching
from cytomad_lib.data.download import download_dataset, published_files, read_table
from cytomad_lib.data.fetch import DownloadError, Patience, download_files, git_blob_sha1
from cytomad_lib.data.layouts import DRUG, LAYOUTS, LUNG, SPLITS

PATH = "7LungCancerDataset/Batch1/H69/Test/H69_BF.mat"
OTHER = "7LungCancerDataset/Batch1/H69/Test/H69_QPI.mat"
HURRIED = Patience(timeout=5, tries=4, damaged_tries=3, first_wait=0.01, longest_wait=0.05)
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 30\n"


def sha1_of(content):
    return hashlib.sha1(b"blob " + str(len(content)).encode() + b"\0" + content).hexdigest()


def wait_until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def bytes_of(name, size=20_000):
    return random.Random(name).randbytes(size)


class Server(ThreadingHTTPServer):
    """Serves bytes from memory; `faults` says what goes wrong in the next answers for a path."""

    daemon_threads = True

    def __init__(self, contents):
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents = contents
        self.table = {path: sha1_of(content) for path, content in contents.items()}
        self.faults = {path: [] for path in contents}  # used up from the left; "… always" stays
        self.answers = []  # (path, first byte asked for, bytes sent)
        self.retry_after = "0"
        self.released = threading.Event()  # ends a stall
        self.taken = lambda: True  # whether the client has what was sent before an interruption
        self.url = f"http://127.0.0.1:{self.server_port}/mirror"

    def next_fault(self, path):
        faults = self.faults.get(path, [])
        if not faults:
            return ""
        return faults[0].removesuffix(" always") if "always" in faults[0] else faults.pop(0)

    def sent(self, path=None):
        return [sent for asked, _, sent in self.answers if path in (None, asked)]

    def starts(self, path):
        return [start for asked, start, _ in self.answers if asked == path]

    def handle_error(self, request, client_address):
        pass  # a client that goes away is part of the tests


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        path = self.path.removeprefix("/mirror/")
        fault = self.server.next_fault(path)
        content = self.server.contents.get(path)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        status, headers = 200, {}
        if content is None:
            fault = "404"
        elif fault == "corrupt":
            content = content[:100] + b"!!!" + content[103:]
        elif fault == "lfs":
            content = LFS_POINTER
        elif fault == "login page":
            content = b"<!DOCTYPE html><p>Please log in</p>"

        if fault.isdecimal():
            return self.answer(
                path, start, int(fault), b"no", {"Retry-After": self.server.retry_after}
            )
        if fault.startswith("to "):
            return self.answer(path, start, 302, b"", {"Location": fault.removeprefix("to ")})
        if asked and fault != "no range":
            if start >= len(content):
                return self.answer(path, start, 416, b"", {})
            status = 206
            first = start + 7 if fault == "wrong range" else start
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            content = content[first:]
        self.answer(path, start, status, content, headers, fault)

    def answer(self, path, start, status, content, headers, fault=""):
        cut = fault.startswith(("truncate", "stall", "interrupt", "chunked truncate"))
        now = content[: len(content) // 2] if cut else content
        self.server.answers.append((path, start, len(now)))
        chunked = fault.startswith("chunked")
        self.protocol_version = "HTTP/1.1" if chunked else "HTTP/1.0"
        self.close_connection = True
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif fault != "no length":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if chunked:
            now = b"%x\r\n%s\r\n" % (len(now), now) + (b"" if cut else b"0\r\n\r\n")
        self.wfile.write(now)
        self.wfile.flush()
        if fault.startswith("interrupt"):
            wait_until(self.server.taken)
            _thread.interrupt_main()  # as Ctrl-C does
        if fault.startswith(("stall", "interrupt")):
            self.server.released.wait(30)
        if fault.endswith("then go on"):
            self.wfile.write(content[len(now) :])


@pytest.fixture
def start_server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def start(contents):
        server = Server(contents)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server

    yield start
    for server in servers:
        server.released.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def server(start_server):
    return start_server({path: bytes_of(path) for path in (PATH, OTHER)})


def fetch(server, out, patience=HURRIED, **options):
    return download_files(server.table, out, server.url, patience=patience, **options)


def files_in(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def assert_complete(server, out):
    assert files_in(out) == sorted(server.contents)
    for path, content in server.contents.items():
        assert (out / path).read_bytes() == content


# --- The table -------------------------------------------------------------------------------


def test_the_table_holds_brightfield_and_phase_of_every_group_in_all_three_splits():
    expected = {
        f"{layout.root_folder}/{group.file(split, kind)}"
        for layout in LAYOUTS.values()
        for group in layout.groups
        for split in ("Train", "Valid", "Test")
        for kind in ("BF", "QPI")
    }
    table = {r["path"]: r["git_blob_sha1"] for name in LAYOUTS for r in read_table(name)}
    assert set(table) == expected and len(expected) == 342
    assert len(set(table.values())) == 342  # no two files are the same
    assert {**published_files("lung"), **published_files("drug")} == table
    fetching._refuse_unsafe(table)
    # As `git ls-tree` lists it at the pinned commit.
    assert table[PATH.replace("H69", "H2170")] == "8242840afb70cfd822fe88c2c1bcfa4e1c63ad14"


def test_split_and_groups_choose_files():
    assert set(published_files("lung", "Test", ["Batch1/H69"])) == {PATH, OTHER}
    drug = published_files("drug", groups=["B1/Docetaxel/D3", "B6/DMSO/Control"])
    assert len(drug) == 2 * 3 * 2
    assert "H2170DrugTreatmentDataset/Docetaxel/B1/D3/Valid/D3_QPI.mat" in drug
    assert len(published_files("drug", "Train")) == 2 * len(DRUG.groups)
    assert published_files("lung", groups="Batch1/H69") == published_files(
        "lung", groups=["Batch1/H69"]
    )


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("liver",), "'liver'; expected lung or drug or jurkat or phenotypes"),
        (("lung", "test"), "'test'; expected Train, Valid, Test"),
        (("lung", None, ["Batch1/H69", "Batch1/H1"]), "'Batch1/H1'. The lung dataset has these"),
        (("drug", None, ["Batch1/H69"]), "B6/Gemcitabine/G5"),
        (("lung", None, []), "an empty list"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(arguments, said):
    with pytest.raises(DownloadError, match=re.escape(said)):
        published_files(*arguments)


def test_the_hash_is_that_of_git(tmp_path):
    path = tmp_path / "hello.txt"
    path.write_bytes(b"hello\n")
    assert git_blob_sha1(path) == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object
    path.write_bytes(b"")
    assert git_blob_sha1(path) == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


@pytest.mark.parametrize(
    "path",
    ["../a.mat", "a/../../b.mat", "/etc/a.mat", "C:/a.mat", "a\\b.mat", "a//b", ".ssh/a", "a/", ""],
)
def test_a_path_that_leaves_the_folder_is_refused_before_any_request(server, tmp_path, path):
    with pytest.raises(DownloadError, match="The table of files has the path"):
        download_files({path: "0" * 40}, tmp_path / "out", server.url, patience=HURRIED)
    assert server.answers == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    ["file:///etc", "ftp://host/a", "host/a", "https://", "http://a b/", "https://h/?x=", "",
     "https://user:secret@host", "http://host:port"],
)  # fmt: skip
def test_only_a_plain_http_address_is_accepted(tmp_path, url):
    with pytest.raises(DownloadError, match="Expected http:// or https://"):
        download_files({PATH: "0" * 40}, tmp_path, url)
    assert list(tmp_path.iterdir()) == []


def test_the_number_of_workers_and_a_hash_are_checked(server, tmp_path):
    with pytest.raises(DownloadError, match="workers is 0; expected 1 to 16"):
        fetch(server, tmp_path, workers=0)
    with pytest.raises(DownloadError, match="Expected 40 hexadecimal digits"):
        download_files({PATH: "abc"}, tmp_path, server.url)


# --- Whole datasets --------------------------------------------------------------------------


@pytest.fixture
def small_lung(start_server, monkeypatch):
    """The whole lung dataset in small, on a server, with its own table."""
    paths = [
        f"{LUNG.root_folder}/{group.file(split, kind)}"
        for group in LUNG.groups
        for split in SPLITS
        for kind in ("BF", "QPI")
    ]
    server = start_server({path: bytes_of(path, 300) for path in paths})
    rows = [row | {"git_blob_sha1": server.table[row["path"]]} for row in read_table("lung")]
    monkeypatch.setattr(download, "read_table", lambda name: rows)
    return server


def test_a_second_call_fetches_nothing(small_lung, tmp_path):
    told = []
    root = download_dataset("lung", tmp_path, base_url=small_lung.url, report=told.append)
    assert root == tmp_path / "7LungCancerDataset"
    assert_complete(small_lung, tmp_path)
    assert len(small_lung.answers) == 126 and sum(small_lung.sent()) == 126 * 300

    assert download_dataset("lung", tmp_path, base_url=small_lung.url, report=told.append) == root
    assert len(small_lung.answers) == 126
    assert told[0].startswith("Fetched 126 file(s), 0.0 MB; 0 verified")
    assert told[1] == "Fetched 0 file(s), 0.0 MB; 126 verified file(s) were there already."


def test_a_part_of_the_dataset_is_fetched_then_the_rest(small_lung, tmp_path):
    base_url = small_lung.url + "/"  # a slash at the end does no harm
    download_dataset("lung", tmp_path, "Test", ["Batch1/H69"], base_url, workers=1)
    assert files_in(tmp_path) == [PATH, OTHER]
    download_dataset("lung", tmp_path, split="Test", base_url=base_url)
    assert len(files_in(tmp_path)) == 42 and len(small_lung.answers) == 42


def test_published_and_simulated_cells_are_not_mixed(small_lung, tmp_path):
    record = tmp_path / LUNG.root_folder / "simulation.json"
    record.parent.mkdir()
    record.write_text("{}")
    with pytest.raises(DownloadError, match="holds simulated data.*choose another --out"):
        download_dataset("lung", tmp_path, base_url=small_lung.url)
    assert small_lung.answers == [] and len(files_in(tmp_path)) == 1


def test_a_file_that_differs_is_kept_beside_and_only_once_the_right_one_came(server, tmp_path):
    mine = tmp_path / PATH
    mine.parent.mkdir(parents=True)
    for number, content in enumerate([b"my own cells", b"others of mine"], start=1):
        mine.write_bytes(content)
        server.faults[PATH] = ["404"]
        with pytest.raises(DownloadError):
            fetch(server, tmp_path)
        assert mine.read_bytes() == content
        done = fetch(server, tmp_path)
        assert done.set_aside == 1 and "kept as *.old1" in str(done)
        assert mine.read_bytes() == server.contents[PATH]
        assert mine.with_name(f"H69_BF.mat.old{number}").read_bytes() == content


def test_workers_fetch_at_the_same_time(start_server, tmp_path):
    server = start_server({f"d/{n}.mat": bytes_of(str(n)) for n in range(3)})
    server.faults = {path: ["stall"] for path in server.contents}
    thread = threading.Thread(
        target=fetch, args=(server, tmp_path, Patience(timeout=30, first_wait=0.01)), daemon=True
    )
    thread.start()
    assert wait_until(
        lambda: len(server.answers) == 3
    )  # all of them asked for, though none was finished
    server.released.set()
    thread.join(10)
    assert_complete(server, tmp_path)


# --- Bad connections -------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["truncate", "stall", "chunked truncate"])
def test_a_broken_connection_goes_on_where_it_broke(server, tmp_path, fault):
    server.faults[PATH] = [fault]
    begin = time.monotonic()
    done = fetch(server, tmp_path, replace(HURRIED, timeout=0.7))
    assert time.monotonic() - begin < 10  # not the 30 s of the server
    assert_complete(server, tmp_path)
    assert server.starts(PATH) == [0, 10_000]
    assert server.sent(PATH) == [10_000, 10_000]  # nothing twice
    assert (done.fetched, done.already_there, done.received) == (2, 0, 40_000)


@pytest.mark.parametrize("fault", ["no length", "chunked"])
def test_a_file_of_unannounced_length_is_fetched(server, tmp_path, fault):
    server.faults[PATH] = [fault]
    fetch(server, tmp_path)
    assert_complete(server, tmp_path)


def test_a_server_that_ignores_ranges_sends_the_file_from_its_start(server, tmp_path):
    server.faults[PATH] = ["truncate", "no range"]
    fetch(server, tmp_path)
    assert_complete(server, tmp_path)
    assert server.sent(PATH) == [10_000, 20_000]


def test_a_server_that_sends_another_range_is_not_believed(server, tmp_path):
    server.faults[PATH] = ["truncate", "wrong range"]
    fetch(server, tmp_path, replace(HURRIED, damaged_tries=1))  # seen before the hash is
    assert_complete(server, tmp_path)
    assert server.starts(PATH) == [0, 10_000, 0]


@pytest.mark.parametrize("status", ["500", "503", "429"])
def test_a_busy_server_is_asked_again(server, tmp_path, status):
    server.faults[PATH] = [status, status]
    fetch(server, tmp_path)
    assert_complete(server, tmp_path)
    assert len(server.sent(PATH)) == 3


@pytest.mark.parametrize("fault, said", [("503", "503"), ("truncate", "the connection ended")])
def test_patience_ends_with_a_clear_error_and_keeps_what_came(server, tmp_path, fault, said):
    server.faults[PATH] = [f"{fault} always"]
    with pytest.raises(DownloadError, match=f"(?s){PATH} could not be .* 4 tries.*{said}.*kept in"):
        fetch(server, tmp_path, workers=1)
    assert len(server.sent(PATH)) == 4
    assert files_in(tmp_path) == ([f"{PATH}.part"] if fault == "truncate" else [])


@pytest.mark.parametrize(
    "asked, longest, least, most",
    [("1", 9, 1, 9), ("3600", 0.1, 0.1, 3), ("Fri, 31 Dec 2049 23:59:59 GMT", 9, 0, 3)],
)
def test_a_wait_asked_by_the_server_is_kept_within_bounds(
    server, tmp_path, asked, longest, least, most
):
    server.faults[PATH] = ["429"]
    server.retry_after = asked
    begin = time.monotonic()
    fetch(server, tmp_path, replace(HURRIED, longest_wait=longest))
    assert least <= time.monotonic() - begin <= most
    assert_complete(server, tmp_path)


def test_a_missing_file_is_told_at_once(server, tmp_path):
    server.faults[PATH] = ["404 always"]
    with pytest.raises(DownloadError) as caught:
        fetch(server, tmp_path, workers=1)
    assert f"{server.url}/{PATH} was answered with 404" in str(caught.value)
    assert "--base-url" in str(caught.value)
    assert len(server.answers) == 1 and files_in(tmp_path) == []


def test_an_error_does_not_wait_for_the_other_workers(start_server, tmp_path):
    server = start_server({f"d/{n}.mat": bytes_of(str(n)) for n in range(2)})
    server.faults = {"d/0.mat": ["stall"], "d/1.mat": ["404"]}
    begin = time.monotonic()
    with pytest.raises(DownloadError, match="404"):
        fetch(server, tmp_path, Patience(timeout=60), workers=2)
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("extra", [0, 5])
def test_a_full_part_needs_no_more_bytes_and_a_too_long_one_is_thrown_away(server, tmp_path, extra):
    part = tmp_path / f"{PATH}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(server.contents[PATH] + bytes(extra))
    fetch(server, tmp_path)
    assert_complete(server, tmp_path)
    # The first answer is 416: there is nothing behind what we have.
    assert server.starts(PATH) == ([20_005, 0] if extra else [20_000])


def test_a_part_of_another_file_is_found_out(server, tmp_path):
    part = tmp_path / f"{PATH}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"something else")
    fetch(server, tmp_path)
    assert_complete(server, tmp_path)
    assert server.starts(PATH) == [14, 0]


def test_nobody_there_is_one_clear_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as unused:  # bound, but not listening
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(DownloadError, match=f"{url[7:]} cannot be reached .*internet") as said:
            download_files({PATH: "0" * 40}, tmp_path, url)  # no patience needed: told at once
    assert str(said.value).count(". ") == 0


def test_an_unknown_name_is_no_internet(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(DownloadError, match="raw.githubusercontent.com cannot be reached"):
        download_dataset("lung", tmp_path, "Test", ["Batch1/H69"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/a", "file:///etc/hostname"])
def test_a_redirect_is_followed_but_only_to_http(server, tmp_path, target):
    server.faults[PATH] = [f"to {server.url}/{PATH}"]
    fetch(server, tmp_path / "good")
    assert_complete(server, tmp_path / "good")
    server.faults[PATH] = [f"to {target} always"]
    with pytest.raises(DownloadError, match="leads on to|answered with 302"):
        fetch(server, tmp_path / "bad")


def test_a_certificate_that_cannot_be_verified_is_refused(tmp_path, monkeypatch):
    key = tmp_path / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -keyout"
    try:
        subprocess.run(
            [*command.split(), key, "-out", tmp_path / "cert.pem"], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("openssl, which makes the certificate, is not there")
    monkeypatch.setenv("no_proxy", "*")
    server = Server({PATH: bytes_of(PATH)})
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        with pytest.raises(DownloadError, match="certificate of 127.0.0.1:.* cannot be verified"):
            download_files(server.table, tmp_path / "out", server.url.replace("http:", "https:"))
    finally:
        server.shutdown()
        server.server_close()
    assert files_in(tmp_path / "out") == [] and server.answers == []


# --- Wrong content ---------------------------------------------------------------------------


def test_a_file_damaged_on_the_way_is_fetched_again_from_its_start(server, tmp_path):
    server.faults[PATH] = ["corrupt"]
    fetch(server, tmp_path)
    assert_complete(server, tmp_path)
    assert server.starts(PATH) == [0, 0]


@pytest.mark.parametrize(
    "fault, said",
    [
        ("corrupt", "expected"),
        ("lfs", "sent a Git LFS pointer"),
        ("login page", "sent a web page, perhaps a login page"),
    ],
)
def test_a_wrong_file_is_refused_with_both_hashes_and_not_kept(server, tmp_path, fault, said):
    server.faults[PATH] = [f"{fault} always"]
    with pytest.raises(DownloadError) as caught:
        fetch(server, tmp_path, workers=1)
    text = str(caught.value)
    assert str(tmp_path / PATH) in text and said in text and "--base-url" in text
    came = LFS_POINTER if fault == "lfs" else server.contents[PATH]
    came = came[:100] + b"!!!" + came[103:] if fault == "corrupt" else came
    if fault != "login page":
        assert sha1_of(came) in text
    assert server.table[PATH] in text
    assert len(server.sent(PATH)) == 3 and files_in(tmp_path) == []


def test_an_endless_answer_does_not_fill_the_disk(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "MOST_BYTES", 5000)
    server.faults[PATH] = ["chunked always"]
    with pytest.raises(DownloadError, match="arrived damaged"):
        fetch(server, tmp_path, workers=1)
    assert files_in(tmp_path) == []


# --- Interruptions ---------------------------------------------------------------------------


@pytest.fixture
def ctrl_c_is_heard():
    """Hear Ctrl-C also where a shell started the tests in the background, deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_is_heard")
def test_ctrl_c_stops_at_once_and_the_same_call_goes_on(server, tmp_path):
    part = tmp_path / f"{PATH}.part"
    server.faults[PATH] = ["interrupt"]
    server.taken = lambda: part.exists() and part.stat().st_size == 10_000
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fetch(server, tmp_path, Patience(timeout=60), workers=1)
    assert time.monotonic() - begin < 10  # neither the 60 s nor the server's 30 s
    assert files_in(tmp_path) == [f"{PATH}.part"] and part.stat().st_size == 10_000

    server.answers.clear()
    server.released.set()
    fetch(server, tmp_path)
    assert_complete(server, tmp_path)
    assert server.starts(PATH) == [10_000] and server.sent(PATH) == [10_000]


@pytest.mark.usefixtures("ctrl_c_is_heard")
def test_a_worker_left_behind_by_ctrl_c_writes_nothing_more(server, tmp_path, monkeypatch):
    part = tmp_path / f"{PATH}.part"
    server.contents[PATH] = bytes_of(PATH, 4000)  # so little that Python would buffer it
    server.faults[PATH] = ["interrupt, then go on"]
    server.taken = lambda: part.exists() and part.stat().st_size == 2000
    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        fetch(server, tmp_path, Patience(timeout=60), workers=1)
    left = set(threading.enumerate()) - before
    assert left and all(thread.daemon for thread in left)  # so that they let the program end
    assert part.stat().st_size == 2000  # on disk by now, so that nothing is left to write
    server.released.set()
    assert wait_until(lambda: not any(thread.is_alive() for thread in left))
    assert part.stat().st_size == 2000
    assert files_in(tmp_path) == [f"{PATH}.part"]


def test_a_full_disk_is_told_and_what_came_is_kept(server, tmp_path, monkeypatch):
    class FullDisk:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def tell(self):
            return self.file.tell()

        def write(self, chunk):
            self.file.write(chunk[:6000])
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_on_full_disk(path, mode):
        file = open(path, mode)
        return file if "r" in mode else FullDisk(file)

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "open", open_on_full_disk, raising=False)
        with pytest.raises(OSError, match="No space left on device. Expected.*give the") as caught:
            fetch(server, tmp_path, workers=1)
    assert caught.value.errno == errno.ENOSPC and f"{PATH}.part" in str(caught.value)
    assert files_in(tmp_path) == [f"{PATH}.part"]
    kept = (tmp_path / f"{PATH}.part").stat().st_size
    assert 0 < kept <= 6000

    fetch(server, tmp_path)
    assert_complete(server, tmp_path)
    assert server.starts(PATH)[-1] == kept


def test_an_out_that_is_a_file_is_told(server, tmp_path):
    out = tmp_path / "out"
    out.write_text("mine")
    with pytest.raises(OSError, match="cannot be read or written"):
        fetch(server, out)
    assert out.read_text() == "mine"


def test_the_progress_bar_counts_files_and_shows_what_came(server, tmp_path, capsys):
    fetch(server, tmp_path, progress=True)
    shown = capsys.readouterr().err
    assert "2/2" in shown and "MB" in shown
