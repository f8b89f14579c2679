"""The dashboard's server, spoken to as a browser does and as one does not."""

import asyncio
import http.client
import json
import re
import socket
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest

from dashboards import entry, raw_job, restarted, running, shown
from finetune_cli.dashboard.board import Problem
from finetune_cli.dashboard.serve import address_of
from finetune_cli.dashboard.server import HEADERS, MOST_STREAMS, Site, is_ours, name_asked_for, page_files
from operating import until

SECRET = Site("Namespace team-a of 127.0.0.1:6443", secret="s3cret")


@pytest.fixture
def board():
    with shown() as served:
        yield served


def get(served, path="", host=None, method="GET", headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    prefix = served.url.partition(f":{served.port}")[2] if not path.startswith("/") else ""
    connection.request(method, prefix + path, headers={**({"Host": host} if host else {}), **(headers or {})})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


class Stream:
    """Server-sent events, as a browser reads them."""

    def __init__(self, served, last="", buffered_bytes=0):
        self.socket = socket.socket()
        self.socket.settimeout(10)
        if buffered_bytes:  # else the kernel takes many megabytes for a client that reads nothing
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffered_bytes)
        self.socket.connect(("127.0.0.1", served.port))
        header = f"Last-Event-ID: {last}\r\n" if last else ""
        self.socket.sendall(f"GET /events HTTP/1.1\r\nHost: localhost\r\n{header}\r\n".encode())
        self.file = self.socket.makefile("rb")
        while self.file.readline().strip():
            pass

    def messages(self):
        """Name, id and data of each event."""
        fields = {}
        while size := int(self.file.readline() or b"0", 16):  # chunked
            for line in self.file.read(size + 2).decode().splitlines():
                name, _, value = line.partition(": ")
                if line:
                    fields[name] = value
                elif "event" in fields:
                    yield fields["event"], fields.get("id", ""), json.loads(fields.get("data") or "null")
                    fields = {}

    def until(self, condition):
        """Rows by name as they are told, up to the first message that fulfils the condition; and its id."""
        known, deadline = {}, time.monotonic() + 15
        for name, sequence, data in self.messages():
            assert time.monotonic() < deadline
            if name == "changes":
                known |= {row["name"]: row for row in data["rows"]}
                for _, _, gone in data["gone"]:
                    known[gone] = None
                if condition(data):
                    return known, sequence
        raise AssertionError("the stream has ended")

    def close(self):
        self.file.close()
        self.socket.close()


@contextmanager
def stream(served, last="", buffered_bytes=0):
    opened = Stream(served, last, buffered_bytes)
    try:
        yield opened
    finally:
        opened.close()


def is_whole(data):
    return not data["more"]


# --- what is served


def test_everything_the_page_is_made_of_is_served_and_nothing_else(board):
    kinds = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "html": "text/html"}
    assert {"index.html", "page.js", "page.css", "look.css", "icon.svg"} <= set(page_files())
    for name, content in page_files().items():
        answer, body = get(board, "" if name == "index.html" else name)
        assert (answer.status, body) == (200, content)
        assert answer.getheader("Content-Type").startswith(kinds[name.rpartition(".")[2]])
    for path in ("index.html", "../server.py", "page.js/", "object.json"):
        assert get(board, path)[0].status == 404
    assert get(board, method="POST")[0].status == 405


def test_the_page_asks_for_nothing_from_elsewhere_and_holds_no_code():
    text = page_files()["index.html"].decode()
    assert not re.search(r"<script[^>]*>[^<]|<style|\sstyle=|\son[a-z]+=|https?:", text)
    for name, content in page_files().items():
        if name.endswith((".js", ".css")):
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|@import|url\(", content.decode()
            ), name


@pytest.mark.parametrize("path", ["", "page.js", "object?kind=x", "nothing", "healthz"])
def test_headers_keep_a_page_to_itself(board, path):
    headers = dict(get(board, path)[0].getheaders())
    assert headers.items() >= HEADERS.items()
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "Server" not in headers
    assert not [name for name in headers if name.startswith("Access-Control")]


def test_without_the_secret_there_is_nothing():
    with shown(SECRET) as served:
        assert get(served)[0].status == 200
        redirect = get(served, "/s3cret")[0]
        assert (redirect.status, redirect.getheader("Location")) == (308, "s3cret/")
        for path in ("/", "/events", "/object?kind=FineTuneJob", "/page.js", "/s3cre/", "/S3CRET/"):
            assert get(served, path)[0].status == 404, path
        assert get(served, "/healthz")[1] == b"ok"


HOSTS = {
    "localhost": ("localhost:8080", True),
    "in capitals": ("LOCALHOST", True),
    "an address": ("127.0.0.1:8080", True),
    "another address": ("10.1.2.3", True),
    "an address of the other kind": ("[::1]:8080", True),
    "that without a port": ("[::1]", True),
    "a name that was allowed": ("board.example.com:443", True),
    "a name that leads here": ("attacker.example:8080", False),
    "one that begins alike": ("localhost.attacker.example", False),
    "one that looks like an address": ("127.0.0.1.attacker.example", False),
    "none": ("", False),
}


@pytest.mark.parametrize(("host", "ours"), HOSTS.values(), ids=HOSTS)
def test_by_which_names_it_is_served(host, ours):
    assert is_ours(name_asked_for({"Host": host}), Site("x", names=("board.example.com",))) is ours


@pytest.mark.parametrize("path", ["", "events", "object?kind=a", "healthz"])
def test_a_name_that_leads_here_gets_nothing(board, path):
    answer, body = get(board, path, host="attacker.example")
    assert (answer.status, b"allow it with --allow-host attacker.example (in the chart" in body) == (403, True)


ADDRESSES = {
    "loopback": (("127.0.0.1", 80), "http://127.0.0.1:80/s3cret/"),
    "all": (("0.0.0.0", 80), "http://127.0.0.1:80/s3cret/"),
    "all, of the other kind": (("::", 80, 0, 0), "http://127.0.0.1:80/s3cret/"),
    "of the other kind": (("::1", 80, 0, 0), "http://[::1]:80/s3cret/"),
}


@pytest.mark.parametrize(("bound", "address"), ADDRESSES.values(), ids=ADDRESSES)
def test_the_address_that_is_told(bound, address):
    assert address_of(bound, SECRET) == address


# --- the stream


def test_a_page_is_told_what_there_is_then_what_changes(board):
    board.do(lambda known: known.expect("FineTuneJobs"))
    board.put(raw_job("a", status=running(100)), raw_job("b"))
    with stream(board) as opened:
        known, _ = opened.until(is_whole)
        assert {name: row["phase"] for name, row in known.items()} == {"a": "Running", "b": "Pending"}
        board.put(raw_job("a", status=running(200)))
        known, _ = opened.until(lambda data: data["rows"])
        assert known["a"]["percent"] == pytest.approx(22.2, abs=0.1)
        board.do(lambda known: known.drop(("FineTuneJob", "team-a", "b")))
        assert opened.until(lambda data: data["gone"])[0] == {"b": None}


def test_much_is_told_in_parts_and_the_last_one_counts(board):
    base = entry(raw_job("x"))
    rows = [replace(base, key=(*base.key[:2], f"j{at}"), row={**base.row, "name": f"j{at}"}) for at in range(1000)]
    board.do(lambda known: [known.put(one) for one in rows])
    with stream(board) as opened:
        parts = []
        for _, sequence, data in opened.messages():
            parts.append((len(data["rows"]), data["reset"], data["more"], bool(sequence)))
            if not data["more"]:
                break
    assert parts == [
        (250, True, True, False),
        (250, False, True, False),
        (250, False, True, False),
        (250, False, False, True),
    ]


def test_who_comes_back_is_told_what_it_has_missed(board):
    board.put(raw_job("a"), raw_job("b"))
    with stream(board) as opened:
        _, last = opened.until(is_whole)
    board.put(raw_job("b", status=running()))
    with stream(board, last) as opened:
        told = []
        known, _ = opened.until(lambda data: told.append(data["reset"]) or is_whole(data))
    assert (told, set(known)) == ([False], {"b"})


@pytest.mark.parametrize("last", ["nonsense", "deadbeef-1", "-", "deadbeef-x"])
def test_who_comes_from_another_server_is_told_everything(board, last):
    board.put(raw_job("a"), raw_job("b"))
    with stream(board, last) as opened:
        resets = []
        known, _ = opened.until(lambda data: resets.append(data["reset"]) or is_whole(data))
    assert (resets, set(known)) == ([True], {"a", "b"})


def test_a_quiet_stream_beats(board):
    with stream(board) as opened:
        names = (name for name, _, _ in opened.messages())
        assert [next(names) for _ in range(3)] == ["changes", "beat", "beat"]


def test_changes_are_told_at_a_pace_and_once(board):
    board.put(raw_job("a"))
    with stream(board) as opened:
        opened.until(is_whole)
        for step in range(1, 200):
            board.put(raw_job("a", status=running(step)))
        seen = []
        opened.until(lambda data: seen.extend(data["rows"]) or (seen and seen[-1]["percent"] > 22.1))
    assert len(seen) < 100, "fewer than there were changes"


def test_a_client_that_does_not_read_is_dropped_and_holds_up_nobody(board):
    base = entry(raw_job("x"))
    rows = [
        replace(base, key=(*base.key[:2], f"j{at}"), row={**base.row, "name": f"j{at}", "message": "m" * 300})
        for at in range(20_000)
    ]
    board.do(lambda known: [known.put(one) for one in rows])
    with stream(board, buffered_bytes=65_536) as slow:
        with stream(board) as other:
            known, _ = other.until(is_whole)
        assert len(known) == 20_000
        until(lambda: not board.connections(), 30, "both gone: one that left, one that was dropped")
        with pytest.raises(AssertionError, match="ended"):
            slow.until(is_whole)


def test_there_is_an_end_to_how_many_pages_are_served(board):
    opened = [Stream(board) for _ in range(MOST_STREAMS)]
    try:
        answer, body = get(board, "events")
        assert (answer.status, str(MOST_STREAMS).encode() in body) == (503, True)
    finally:
        for one in opened:
            one.close()
    until(
        lambda: is_served(board),
        10,
        "room for a page: the server notices that others left when it writes the next beat",
    )


def is_served(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    connection.request("GET", "/events")
    try:
        return connection.getresponse().status == 200
    finally:
        connection.close()


def test_what_cannot_be_read_is_told(board):
    with stream(board) as opened:
        opened.until(is_whole)
        board.do(lambda known: known.complain(Problem("FineTuneJobs", "you may not", None)))
        problems = []
        opened.until(lambda data: problems.extend(data["problems"]) or problems)
    assert problems == [{"what": "FineTuneJobs", "message": "you may not", "since": None}]


# --- an object


def test_an_object_in_full(board):
    for step in (100, 300, 620):
        board.put(raw_job("a", status=restarted(step)))
    answer, body = get(board, "object?kind=FineTuneJob&namespace=team-a&name=a")
    found = json.loads(body)
    assert (answer.status, found["headline"], len(found["attempts"])) == (200, "Running: Training", 3)
    assert [step for step, _ in found["trail"]] == [100, 300, 620]


def test_an_object_that_is_not_there(board):
    answer, body = get(board, "object?kind=FineTuneJob&namespace=team-a&name=<b>")
    assert (answer.status, json.loads(body)) == (404, {"message": "There is no FineTuneJob <b> in team-a."})
    assert answer.getheader("Content-Type").startswith("application/json")
    assert get(board, "object")[0].status == 404


def test_a_question_that_takes_long_holds_up_nobody(board):
    base = entry(raw_job("slow"))

    def detail():
        time.sleep(1)
        return {}

    board.do(lambda known: known.put(replace(base, detail=detail)))

    async def ask():
        slow = asyncio.to_thread(get, board, "object?kind=FineTuneJob&namespace=team-a&name=slow")
        waiting = asyncio.create_task(slow)
        await asyncio.sleep(0.2)
        began = time.monotonic()
        await asyncio.to_thread(get, board, "healthz")
        assert time.monotonic() - began < 0.7
        assert (await waiting)[0].status == 200

    asyncio.run(ask())
