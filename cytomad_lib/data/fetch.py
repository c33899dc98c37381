"""Fetch files over HTTP, in parallel, each verified by its git blob SHA-1.

A file gets its name only after its hash was verified. Until then it is ``<name>.part``; the same
call resumes an interrupted download from it.

Example
-------
>>> hashes = {"a.txt": "3b18e512dba79e4c8300dd08aeb37f8e728b8dad"}
>>> download_files(hashes, "out", "https://example.org/mirror")  # doctest: +SKIP
"""

import hashlib
import http.client
import os
import re
import ssl
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import TimeoutError as NotYet
from multiprocessing.pool import ThreadPool
from pathlib import Path
from urllib.parse import quote, urlsplit

from tqdm import tqdm

from cytomad_lib.data.errors import CytomadError

# Each part starts with a letter or digit: no "..", no absolute path, no drive, no backslash.
SAFE_PATH = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*", re.ASCII)
SHA1 = re.compile(r"[0-9a-f]{40}")
PLAIN_URL = re.compile(
    r"https?://([\w.-]+|\[[\da-fA-F:.]+\])(:[1-9]\d{0,4})?(/[^\s?#@]*)?", re.ASCII
)

MOST_WORKERS = 16  # a server would turn more away
MOST_BYTES = 100 * 1024**2  # GitHub accepts no larger file, so an endless answer is cut off here
CHUNK_BYTES = 256 * 1024


class DownloadError(CytomadError):
    """The files cannot be fetched."""


@dataclass(frozen=True)
class Patience:
    """Limits on waiting for a bad connection."""

    timeout: float = 30.0  # s without a byte until a connection counts as stalled
    tries: int = 8  # connections per file; each resumes where the last one broke
    damaged_tries: int = 3  # times that a file may arrive complete but wrong
    first_wait: float = 1.0  # s, doubled after every failure
    longest_wait: float = 60.0  # s


PATIENCE = Patience()


@dataclass
class Downloaded:
    """Counts of a download."""

    fetched: int = 0  # files
    already_there: int = 0  # files
    set_aside: int = 0  # files that were there but different, now named *.old1
    received: int = 0  # bytes

    def __str__(self):
        """Return the counts in one line."""
        text = f"Fetched {self.fetched} file(s), {self.received / 1e6:.1f} MB"
        text += f"; {self.already_there} verified file(s) were there already."
        if self.set_aside:
            text += f" {self.set_aside} file(s) that differed were kept as *.old1 (old2, …)."
        return text


def download_files(files, out, base_url, workers=4, progress=False, patience=PATIENCE, places=None):
    """Fetch files in parallel, each verified by its git blob SHA-1.

    A file that is there and right is not fetched again; one that is there and different is kept
    beside as ``<name>.old1``. Ctrl-C leaves verified files and ``.part`` files, from which the same
    call resumes.

    Parameters
    ----------
    files : dict of str to str
        The git blob SHA-1 of each file, by its path under `out`.
    out : path
    base_url : str
        Starts with ``https://`` or ``http://``.
    workers : int
        Files fetched at the same time, 1 to 16.
    progress : bool
        Show a progress bar over the files.
    patience : Patience
        Limits on waiting for a bad connection.
    places : dict of str to str, optional
        The path of each file behind `base_url`; by default the one under `out`.

    Returns
    -------
    Downloaded

    Raises
    ------
    DownloadError
        If a path, a hash, the URL or `workers` is not as described, the server cannot be reached
        or lacks a file, or a file stays damaged.
    OSError
        If a file cannot be written.
    """
    _refuse_unsafe(files)
    if not 1 <= workers <= MOST_WORKERS:
        raise DownloadError(f"workers is {workers}; expected 1 to {MOST_WORKERS}.")
    if not PLAIN_URL.fullmatch(base_url):
        raise DownloadError(
            f"The base URL is {base_url!r}. Expected http:// or https://, a server and perhaps a "
            "path, without user name, ? or #; the files' paths are put behind it. An example is "
            "https://example.org/mirror"
        )
    with tqdm(
        total=len(files), desc="downloading", unit="file", miniters=0, disable=not progress
    ) as bar:
        download = _Download(Path(out), base_url.rstrip("/"), places or {}, patience, bar)
        # Its threads are daemons: one that waits for the network does not keep the program alive.
        with ThreadPool(min(workers, len(files)) or 1) as pool:
            try:
                results = pool.imap_unordered(download.get, files.items())
                while download.count() < len(files):
                    with suppress(NotYet):
                        results.next(0.05)  # short, as Windows handles Ctrl-C only in between
            except _Stopped:
                raise download.error from None
            finally:
                download.stop.set()
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
    """The connection failed, but another try makes sense, after `wait` seconds at least."""

    def __init__(self, reason, wait=0.0):
        super().__init__(reason)
        self.wait = wait


class _Stopped(Exception):
    """Another worker failed, or the user pressed Ctrl-C."""


class _Download:
    """One download: the state that its worker threads share, and the work of each."""

    def __init__(self, folder, base_url, places, patience, bar):
        self.folder, self.base_url, self.places = folder, base_url, places
        self.patience, self.bar = patience, bar
        self.done, self.error = Downloaded(), None
        self.reached = False  # the server has answered at least once
        self.stop = threading.Event()
        self.lock = threading.Lock()  # for `done` and `bar`
        self.opener = urllib.request.build_opener(_SafeRedirects)

    def count(self):
        """Count the files that are there."""
        return self.done.fetched + self.done.already_there

    def get(self, file):
        """Make sure that one file, given as (name, SHA-1), is there and verified."""
        path = self.folder / file[0]
        try:
            if self.stop.is_set():
                raise _Stopped
            with _clear_disk_errors(path.with_name(f"{path.name}.part")):
                there = path.exists() and git_blob_sha1(path) == file[1]
                if not there:
                    self._fetch(path, *file)
        except Exception as error:
            self.error = self.error or error
            self.stop.set()  # before another file is begun
            raise
        with self.lock:
            self.done.fetched += not there
            self.done.already_there += there
            self.bar.update()

    def _fetch(self, path, name, sha1):
        part = path.with_name(f"{path.name}.part")
        for _ in range(self.patience.damaged_tries):
            self._complete(f"{self.base_url}/{quote(self.places.get(name, name))}", part)
            found = git_blob_sha1(part)
            if found == sha1:
                return self._put_in_place(part, path)
            description = _describe_wrong_content(part)
            part.unlink()
        raise DownloadError(
            f"{path} arrived damaged {self.patience.damaged_tries} times in a row and was not "
            f"kept: its git blob SHA-1 is {found}, expected {sha1}. {description}Give the same "
            f"command again; if that does not help, {self.base_url} lacks the published file: "
            "name another server with --base-url (argument base_url)."
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
        """Receive the rest of a file, over as many connections as it takes, within limits."""
        wait = self.patience.first_wait
        for _ in range(self.patience.tries):
            try:
                return self._receive(url, part)
            except _Interrupted as interruption:
                reason = interruption
            self._show(f"again soon: {reason}")
            if self.stop.wait(min(max(wait, reason.wait), self.patience.longest_wait)):
                raise _Stopped
            wait *= 2
        raise DownloadError(
            f"{url} could not be fetched in {self.patience.tries} tries; the last time {reason}. "
            f"What came is kept in {part}: give the same command again later to resume."
        ) from reason

    def _receive(self, url, part):
        """Append to `part` what one connection brings."""
        have = part.stat().st_size if part.exists() else 0
        with self._open(url, have) as response:
            if response.status == 416 and have:
                return  # nothing follows what we have; the hash tells whether that is all
            _refuse_answer(url, response)
            resumed = response.status == 206
            content_range = response.headers.get("Content-Range", "")
            if resumed and not content_range.startswith(f"bytes {have}-"):
                part.unlink(missing_ok=True)
                raise _Interrupted("the server sent another part of the file than requested")
            missing = int(response.headers.get("Content-Length") or 0)  # unknown: trust the hash
            part.parent.mkdir(parents=True, exist_ok=True)
            # A server that does not know ranges answers 200 and sends the file from its start.
            with open(part, "ab" if resumed else "wb") as file:
                while chunk := self._read(url, response):
                    if file.tell() + len(chunk) > MOST_BYTES:
                        return  # cannot be right, as the hash will show
                    file.write(chunk)
                    file.flush()  # so that closing has nothing left to write
                    missing -= len(chunk)
            if missing > 0:
                raise _Interrupted(f"the connection ended {missing} bytes early")

    def _open(self, url, have):
        """Request the file from byte `have` on."""
        # Without "identity" a server may compress, and the bytes would not be those of the file.
        headers = {"User-Agent": "cytomad_lib", "Accept-Encoding": "identity"}
        headers |= {"Range": f"bytes={have}-"} if have else {}
        try:
            request = urllib.request.Request(url, headers=headers)
            response = self.opener.open(request, timeout=self.patience.timeout)
        except urllib.error.HTTPError as answer:
            response = answer
        except (OSError, http.client.HTTPException) as error:
            raise self._network_error(url, error) from error
        if self.stop.is_set():  # meanwhile; a later call may already use the same file
            response.close()
            raise _Stopped
        self.reached = True
        return response

    def _read(self, url, response):
        """Return what came; nothing at the end."""
        try:
            chunk = response.read1(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise self._network_error(url, error) from error
        if self.stop.is_set():
            raise _Stopped
        with self.lock:
            self.done.received += len(chunk)
        self._show(f"{self.done.received / 1e6:.0f} MB")
        return chunk

    def _network_error(self, url, error):
        """Return the error for a connection that failed: final, or worth another try."""
        host, error = urlsplit(url).netloc, getattr(error, "reason", error)  # urllib wraps some
        if isinstance(error, ssl.SSLCertVerificationError):
            return DownloadError(
                f"The certificate of {host} cannot be verified ({error.verify_message}). Expected "
                "a valid one; a network that inspects traffic needs its own certificate installed "
                "(SSL_CERT_FILE names it), and on macOS run Install Certificates.command of your "
                "Python."
            )
        late = isinstance(error, TimeoutError)
        reason = "no data came in time" if late else str(error) or type(error).__name__
        if self.reached:
            return _Interrupted(reason)
        return DownloadError(
            f"{host} cannot be reached ({reason}): check the internet connection, set HTTPS_PROXY "
            "if there is a proxy, or name another server with --base-url (argument base_url)."
        )

    def _show(self, text):
        with self.lock:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(0)


def _refuse_answer(url, response):
    answer = f"{response.status} {response.reason}"
    if response.status in (408, 429) or response.status >= 500:
        wait = response.headers.get("Retry-After", "")
        wait = float(wait) if wait.isdecimal() else 0.0
        raise _Interrupted(f"the server answered {answer}", wait)
    if response.status >= 300:
        raise DownloadError(
            f"{url} was answered with {answer}. Expected the published file. If you named a server "
            "with --base-url (argument base_url), check it: it comes before the path in this URL. "
            "If it holds some groups only, choose them with --groups (groups)."
        )


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but never from https to http, and never to anything else."""

    def redirect_request(self, request, file, code, message, headers, url):
        if not url.startswith(("https://", f"{request.type}://")):
            raise DownloadError(
                f"{request.full_url} leads on to {url}. Expected https; name another server with "
                "--base-url (argument base_url)."
            )
        return super().redirect_request(request, file, code, message, headers, url)


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


def _describe_wrong_content(path):
    with open(path, "rb") as file:
        start = file.read(100).lstrip()
    if start.startswith(b"version https://git-lfs"):
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
            "can be written to, with room on the disk. What came so far is kept: correct this and "
            "give the same command again.",
        ) from error
