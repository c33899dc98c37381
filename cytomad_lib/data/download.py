"""Fetching the published CytoMAD files, each verified by its hash.

The authors publish both demonstration datasets in their GitHub repository. The table
``real_dataset_files.csv`` beside this module lists the 342 files of one commit with their git blob
SHA-1: brightfield and phase of every group, in Train, Valid and Test.

A file gets its name only after its hash was verified. Until then it is ``<name>.part``; an
interrupted download resumes from it when the same call is made again.

    >>> from cytomad_lib.data.download import download_dataset, published_files
    >>> len(published_files("lung")), len(published_files("drug"))
    (126, 216)
    >>> list(published_files("lung", split="Test", groups=["Batch1/H69"]))[0]
    '7LungCancerDataset/Batch1/H69/Test/H69_BF.mat'
    >>> download_dataset("lung", "Published", groups=["Batch1/H69"])  # doctest: +SKIP
    PosixPath('Published/7LungCancerDataset')
"""

import csv
import hashlib
import http.client
import os
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from urllib.parse import quote, urlsplit

from tqdm import tqdm

from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.layouts import LAYOUTS, NOTES_FILE, SPLITS, is_simulated

# Paths in the table go behind this. At this commit the two datasets are at the repository's top;
# a "Dataset" folder existed only in earlier ones.
COMMIT = "068a9b5124ab33d83bef64f906b66134ce03bd57"
BASE_URL = f"https://raw.githubusercontent.com/MichelleLCK/CytoMAD/{COMMIT}"

TABLE = "real_dataset_files.csv"
PUBLISHED_KINDS = ("BF", "QPI")

# Each part starts with a letter or digit: no "..", no absolute path, no drive, no backslash.
SAFE_PATH = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*", re.ASCII)
SHA1 = re.compile(r"[0-9a-f]{40}")

MOST_WORKERS = 16  # more would only be turned away by the server
MOST_BYTES = 100 * 1024**2  # GitHub takes no larger file, so an endless answer is cut off here
CHUNK_BYTES = 256 * 1024
GRACE = 1.0  # s, for workers to end after Ctrl-C; those that wait for the network are left behind

LFS_POINTER = b"version https://git-lfs"


class DownloadError(CytomadError):
    """The published files cannot be fetched as asked."""


@dataclass(frozen=True)
class Patience:
    """How long to put up with a bad connection."""

    timeout: float = 30.0  # s without a byte until a connection counts as stalled
    tries: int = 8  # connections per file, each going on where the last one broke
    damaged_tries: int = 3  # times that a file may arrive whole but wrong
    first_wait: float = 1.0  # s, doubled after every failure
    longest_wait: float = 60.0  # s


PATIENCE = Patience()


@dataclass
class Downloaded:
    """What a download did."""

    fetched: int = 0  # files
    already_there: int = 0  # files
    set_aside: int = 0  # files that were there but different, now named *.old1
    received: int = 0  # bytes

    def __str__(self):
        """Say it in one line."""
        text = f"Fetched {self.fetched} file(s), {self.received / 1e6:.1f} MB"
        text += f"; {self.already_there} verified file(s) were there already."
        if self.set_aside:
            text += f" {self.set_aside} file(s) that differed were kept as *.old1 (old2, …)."
        return text


# --- Which files -----------------------------------------------------------------------------


def download_dataset(
    name, out, split=None, groups=None, base_url=None, workers=4, progress=False, report=None
):
    """Fetch the published files of one dataset, or go on with an interrupted download.

    Source: https://github.com/MichelleLCK/CytoMAD

    Parameters
    ----------
    name : "lung" or "drug"
        Which dataset.
    out : path
        Folder in which the dataset's folder is made.
    split : "Train", "Valid" or "Test", optional
        All three by default.
    groups : list of str, optional
        Names such as ``"Batch1/H69"`` or ``"B1/Docetaxel/D3"``; all by default.
    base_url : str, optional
        A mirror: what comes before ``/7LungCancerDataset/…`` in its URLs. Default: `BASE_URL`.
    workers : int
        Files fetched at the same time, 1 to 16.
    progress : bool
        Show a progress bar over the files.
    report : callable, optional
        Is given one sentence on what was done, for example `print`.

    Returns
    -------
    root : pathlib.Path
        The dataset's folder.

    Raises
    ------
    DownloadError
        If there is no such dataset, split or group, the folder holds simulated data, the server
        cannot be reached or does not hold the files, or a file stays damaged.
    OSError
        If a file cannot be written, for example because the disk is full.
    """
    files = published_files(name, split, groups)
    root = Path(out) / LAYOUTS[name].root_folder
    if is_simulated(root):
        raise DownloadError(
            f"{root} holds simulated data ({NOTES_FILE} is in it). Expected a folder of "
            "its own for the published data, so that the two do not mix; choose another --out "
            "(argument out)."
        )
    done = download_files(files, out, base_url or BASE_URL, workers, progress)
    if report:
        report(str(done))
    return root


def published_files(name, split=None, groups=None):
    """List the published files of a dataset; the arguments are those of `download_dataset`.

    Returns
    -------
    dict of str to str
        The git blob SHA-1 of each file, by its path under the repository's top.

    Raises
    ------
    DownloadError
        If there is no such dataset, split or group.
    """
    if name not in LAYOUTS:
        raise DownloadError(f"The dataset is {name!r}; expected {' or '.join(LAYOUTS)}.")
    if split is not None and split not in SPLITS:
        raise DownloadError(
            f"The split is {split!r}; expected {', '.join(SPLITS)}, or none for all of them."
        )
    layout = LAYOUTS[name]
    hashes = read_table()
    paths = [
        f"{layout.root_folder}/{group.file(one_split, kind)}"
        for group in _find_groups(layout, groups)
        for one_split in SPLITS
        if split in (None, one_split)
        for kind in PUBLISHED_KINDS
    ]
    return {path: hashes[path] for path in paths}


def read_table():
    """Read the table of all published files: path to git blob SHA-1."""
    text = resources.files("cytomad_lib.data").joinpath(TABLE).read_text("utf-8")
    return {row["path"]: row["git_blob_sha1"] for row in csv.DictReader(text.splitlines())}


def _find_groups(layout, names):
    chosen, unknown = layout.choose_groups(names)
    if unknown or not chosen:
        known = [group.name for group in layout.groups]
        raise DownloadError(
            f"The groups are {', '.join(map(repr, unknown)) or 'an empty list'}. "
            f"The {layout.name} dataset has these: {', '.join(known)}."
        )
    return chosen


# --- Fetching --------------------------------------------------------------------------------


def download_files(files, out, base_url, workers=4, progress=False, patience=PATIENCE):
    """Fetch files in parallel, each verified by its git blob SHA-1.

    What is there and right is not fetched again; what is there and different is kept beside as
    ``<name>.old1``. Ctrl-C leaves verified files and ``.part`` files, from which the same call
    goes on.

    Parameters
    ----------
    files : dict of str to str
        The git blob SHA-1 of each file, by its path under `out` and behind `base_url`.
    out : path
    base_url : str
        Starts with ``https://`` or ``http://``.
    workers : int
        Files fetched at the same time, 1 to 16.
    progress : bool
        Show a progress bar over the files.
    patience : Patience
        How long to put up with a bad connection.

    Returns
    -------
    Downloaded

    Raises
    ------
    DownloadError
        If a path, a hash, the URL or `workers` is not as described, the server cannot be reached
        or does not hold a file, or a file stays damaged.
    OSError
        If a file cannot be written.
    """
    _refuse_unsafe(files)
    if not 1 <= workers <= MOST_WORKERS:
        raise DownloadError(f"workers is {workers}; expected 1 to {MOST_WORKERS}.")
    base_url = _checked_url(base_url)
    with tqdm(
        total=len(files), desc="downloading", unit="file", miniters=0, disable=not progress
    ) as bar:
        download = _Download(files, Path(out), base_url, patience, bar)
        # Daemons, because a thread that waits for the network must not keep the program alive.
        threads = [
            threading.Thread(target=download.work, daemon=True)
            for _ in range(min(workers, len(files)))
        ]
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads) and not download.stop.is_set():
                download.stop.wait(0.05)  # short, as Windows hears Ctrl-C only in between
        finally:
            download.stop.set()
            deadline = time.monotonic() + GRACE
            for thread in threads:
                if thread.ident is not None:  # it was started
                    thread.join(max(0.0, deadline - time.monotonic()))
    if download.error:
        raise download.error
    return download.done


def git_blob_sha1(path):
    """Hash a file as git does: SHA-1 over ``blob <length>``, a zero byte, and the content."""
    with open(path, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        sha1 = hashlib.sha1(b"blob %d\0" % length, usedforsecurity=False)
        while chunk := file.read(CHUNK_BYTES):
            sha1.update(chunk)
    return sha1.hexdigest()


class _Interrupted(Exception):
    """The connection gave out, but it is worth trying again, after `wait` seconds at least."""

    def __init__(self, reason, wait=0.0):
        super().__init__(reason)
        self.wait = wait


class _Stopped(Exception):
    """Another worker failed, or the user pressed Ctrl-C."""


class _Download:
    """One download: what its worker threads share, and what each of them does."""

    def __init__(self, files, folder, base_url, patience, bar):
        self.waiting = deque(files.items())  # its popleft is safe between threads
        self.folder = folder
        self.base_url = base_url
        self.patience = patience
        self.bar = bar
        self.done = Downloaded()
        self.error = None
        self.reached = False  # the server has answered at least once
        self.stop = threading.Event()
        self.lock = threading.Lock()  # for `done`, `bar` and `error`
        self.opener = urllib.request.build_opener(
            _SafeRedirects, urllib.request.HTTPSHandler(context=ssl.create_default_context())
        )

    def work(self):
        """Fetch file after file; an error stops all workers and is raised by the main thread."""
        try:
            while self.waiting and not self.stop.is_set():
                try:
                    name, sha1 = self.waiting.popleft()
                except IndexError:  # another worker was faster
                    break
                fetched = self._get(name, sha1)
                with self.lock:
                    self.done.fetched += fetched
                    self.done.already_there += not fetched
                    self.bar.update()
        except _Stopped:
            pass
        except BaseException as error:
            with self.lock:
                self.error = self.error or error
            self.stop.set()

    def _get(self, name, sha1):
        """Have one file there, verified; return whether it had to be fetched."""
        path = self.folder / name
        part = path.with_name(f"{path.name}.part")
        with _clear_disk_errors(path):
            if path.exists() and git_blob_sha1(path) == sha1:
                return False
        for _ in range(self.patience.damaged_tries):
            self._complete(f"{self.base_url}/{quote(name)}", part)
            with _clear_disk_errors(path):
                found = git_blob_sha1(part)
                if found == sha1:
                    self._put_in_place(part, path)
                    return True
                what_came = _describe_wrong_content(part)
                part.unlink()
        raise DownloadError(
            f"{path} arrived damaged {self.patience.damaged_tries} times in a row and was not "
            f"kept: its git blob SHA-1 is {found}, expected {sha1}. {what_came}Give the same "
            f"command again; if that does not help, {self.base_url} does not hold the published "
            "file: name another server with --base-url (argument base_url)."
        )

    def _put_in_place(self, part, path):
        """Give a verified file its name; a different file that had it is kept beside."""
        if path.exists():
            number = 1
            while (aside := path.with_name(f"{path.name}.old{number}")).exists():
                number += 1
            path.rename(aside)
            with self.lock:
                self.done.set_aside += 1
        os.replace(part, path)

    def _complete(self, url, part):
        """Receive the rest of a file, over as many connections as it takes, within bounds."""
        wait = self.patience.first_wait
        for attempt in range(1, self.patience.tries + 1):
            try:
                return self._receive(url, part)
            except _Interrupted as interruption:
                reason = interruption
            if attempt < self.patience.tries:
                self._show(f"again soon: {reason}")
                longest = self.patience.longest_wait
                if self.stop.wait(min(max(wait, reason.wait), longest)):
                    raise _Stopped
                wait *= 2
        raise DownloadError(
            f"{url} could not be fetched in {self.patience.tries} tries; the last time {reason}. "
            f"What came is kept in {part}: give the same command again later to go on from there."
        ) from reason

    def _receive(self, url, part):
        """Append to `part` what one connection brings."""
        with _clear_disk_errors(part):
            have = part.stat().st_size if part.exists() else 0
        response = self._open(url, have)
        if response is None:  # nothing behind what we have; the hash will tell whether that is all
            return
        with response:
            if self.stop.is_set():  # meanwhile; a later call may already use the same file
                raise _Stopped
            if response.status not in (200, 206):
                raise _Interrupted(f"the server answered {response.status} {response.reason}")
            goes_on = response.status == 206
            if goes_on and _range_start(response) != have:
                with _clear_disk_errors(part):
                    part.unlink(missing_ok=True)
                raise _Interrupted("the server sent another part of the file than asked for")
            # A server that does not know ranges answers 200 and sends the file from its start.
            with _clear_disk_errors(part):
                part.parent.mkdir(parents=True, exist_ok=True)
            with _clear_disk_errors(part), open(part, "ab" if goes_on else "wb") as file:
                for chunk in self._chunks(response):
                    if file.tell() + len(chunk) > MOST_BYTES:
                        return  # cannot be right, as the hash will tell
                    file.write(chunk)
                    file.flush()  # so that closing has nothing left to write, whenever that is

    def _open(self, url, have):
        """Ask for the file from byte `have` on; None if there is nothing behind it."""
        # Without "identity" a server may compress, and the bytes would not be those of the file.
        headers = {"User-Agent": "cytomad_lib", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        request = urllib.request.Request(url, headers=headers)
        try:
            response = self.opener.open(request, timeout=self.patience.timeout)
            self.reached = True
            return response
        except urllib.error.HTTPError as error:
            error.close()
            self.reached = True
            if error.code == 416 and have:
                return None
            if error.code in (408, 429) or error.code >= 500:
                raise _Interrupted(
                    f"the server answered {error.code} {error.reason}", _seconds_to_wait(error)
                ) from error
            raise DownloadError(
                f"{url} was answered with {error.code} {error.reason}. Expected the published "
                "file. If you named a server with --base-url (argument base_url), check it: it "
                "comes before the path in this URL. If not, the files have moved: name a mirror."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            self._refuse_if_hopeless(url, error)
            raise _Interrupted(_describe_network_error(error)) from error

    def _refuse_if_hopeless(self, url, error):
        host = urlsplit(url).netloc
        reason = _inner(error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise DownloadError(
                f"The certificate of {host} cannot be verified ({reason.verify_message}). "
                "Expected a valid one; a network that inspects traffic needs its own certificate "
                "installed (SSL_CERT_FILE names it), and on macOS run Install "
                "Certificates.command of your Python."
            ) from error
        if not self.reached:
            raise DownloadError(
                f"{host} cannot be reached ({_describe_network_error(error)}): check the "
                "internet connection, set HTTPS_PROXY if there is a proxy, or name another "
                "server with --base-url (argument base_url)."
            ) from error

    def _chunks(self, response):
        """Give what comes, until the end; a connection that ends early is an interruption."""
        length = response.headers.get("Content-Length", "")
        missing = int(length) if length.isdecimal() else 0  # unknown: the hash must do
        while True:
            try:
                chunk = response.read1(CHUNK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise _Interrupted(_describe_network_error(error)) from error
            if self.stop.is_set():
                raise _Stopped
            if not chunk:
                break
            yield chunk
            missing -= len(chunk)
            with self.lock:
                self.done.received += len(chunk)
            self._show(f"{self.done.received / 1e6:.0f} MB")
        if missing > 0:
            raise _Interrupted(f"the connection ended {missing} bytes early")

    def _show(self, text):
        with self.lock:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(0)


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but never from https to http, and never to anything else."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if not newurl.startswith(("https://", f"{req.type}://")):
            raise DownloadError(
                f"{req.full_url} leads on to {newurl}. Expected https; name another server with "
                "--base-url (argument base_url)."
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


# --- Checks and descriptions -----------------------------------------------------------------


def _refuse_unsafe(files):
    for path, sha1 in files.items():
        if not SAFE_PATH.fullmatch(path):
            raise DownloadError(
                f"The table of files has the path {path!r}. Expected names of letters, digits, "
                "_, - and . with / between, inside the dataset; install the library again."
            )
        if not SHA1.fullmatch(sha1):
            raise DownloadError(
                f"The table of files has the hash {sha1!r} for {path}. Expected 40 hexadecimal "
                "digits; install the library again."
            )


def _checked_url(url):
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, a broken IPv6 address
        sound = False
    plain = re.fullmatch(r"[!-~]+", url) and not re.search(r"[?#@]", url)
    if not (sound and plain):
        raise DownloadError(
            f"The base URL is {url!r}. Expected http:// or https://, a server and perhaps a path, "
            "without user name, ? or #; the files' paths are put behind it. "
            f"The usual one is {BASE_URL}"
        )
    return url.rstrip("/")


def _range_start(response):
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _seconds_to_wait(error):
    text = error.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0


def _inner(error):
    """Undo what urllib does to some network errors, but not to all."""
    return error.reason if isinstance(error, urllib.error.URLError) else error


def _describe_network_error(error):
    error = _inner(error)
    if isinstance(error, TimeoutError):
        return "no data came in time"
    return str(error) or type(error).__name__


def _describe_wrong_content(path):
    with open(path, "rb") as file:
        start = file.read(100).lstrip()
    if start.startswith(LFS_POINTER):
        return "The server sent a Git LFS pointer instead of the content. "
    if start.startswith(b"<"):
        return "The server sent a web page, perhaps a login page of the network. "
    return ""


@contextmanager
def _clear_disk_errors(path):
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"{path} cannot be read or written: {error.strerror or error}. Expected a folder that "
            "can be written to, with room on the disk. What came so far is kept: put it right and "
            "give the same command again.",
        ) from error
