"""What a client of the dashboard is told: all that it does not know yet, whatever it has missed."""

import asyncio
import itertools
import random
from datetime import UTC, datetime

import pytest

from finetune_cli.dashboard.board import Board, Entry, Problem
from finetune_cli.dashboard.trail import Trail

T0 = datetime(2030, 1, 1, tzinfo=UTC)


def entry(name, version=1, uid=None, loss=None, kind="FineTuneJob"):
    row = {"kind": kind, "namespace": "a", "name": name, "uid": uid or name, "version": str(version)}
    return Entry((kind, "a", name), row, lambda: {**row, "full": True}, loss)


class Client:
    """Knows what it is told."""

    def __init__(self):
        self.known, self.since, self.resets = {}, 0, 0

    def read(self, board):
        told = board.changes(self.since)
        if told.reset:
            self.known, self.resets = {}, self.resets + 1
        for row in told.rows:
            self.known[row["kind"], row["namespace"], row["name"]] = row["version"]
        for key in told.gone:
            self.known.pop(key, None)
        self.since = told.upto
        return told


def versions(board, client=None):
    client = client or Client()
    client.read(board)
    return {key[2]: version for key, version in client.known.items()}


def test_a_new_client_is_told_everything():
    board = Board()
    for number in range(7):
        board.put(entry(f"job-{number}"))
    board.drop(("FineTuneJob", "a", "job-3"))
    told = board.changes(0)
    assert (told.reset, len(told.rows), told.gone) == (True, 6, ())


def test_only_what_has_changed_is_told_then():
    board, client = Board(), Client()
    for name in ("a", "b", "c"):
        board.put(entry(name))
    client.read(board)
    board.put(entry("b", 2))
    board.put(entry("b", 3))
    board.put(entry("c"))
    told = board.changes(client.since)
    assert (told.reset, [row["version"] for row in told.rows], told.gone) == (False, ["3"], ())


def test_a_random_history_is_told_rightly_to_clients_of_any_pace():
    chosen, board = random.Random(7), Board(kept_tombstones=5)
    clients, there = [Client() for _ in range(4)], {}
    for step in range(2000):
        name = f"job-{chosen.randrange(30)}"
        if chosen.random() < 0.3:
            there.pop(name, None)
            board.drop(("FineTuneJob", "a", name))
        else:
            there[name] = str(step)
            board.put(entry(name, step))
        for pace, client in enumerate(clients):
            if chosen.random() < 0.3**pace:
                assert versions(board, client) == there
    for client in clients:
        assert versions(board, client) == there
    assert [clients[0].resets, clients[-1].resets > 1] == [1, True], "who has missed too much is told everything anew"


def test_sequence_numbers_of_another_server_are_not_trusted():
    board = Board()
    board.put(entry("a"))
    assert board.changes(99).reset


def test_a_list_replaces_what_is_in_its_scope_only():
    board = Board()
    for kind, name in (("FineTuneJob", "a"), ("FineTuneJob", "b"), ("FineTuneExperiment", "c")):
        board.put(entry(name, kind=kind))
    board.replace([entry("b", 2), entry("d")], lambda key: key[0] == "FineTuneJob")
    assert versions(board) == {"b": "2", "c": "1", "d": "1"}


def test_what_cannot_be_read_and_what_was_never_read():
    board = Board()
    board.expect("jobs")
    board.expect("experiments")
    assert board.changes(0).loading
    board.content("jobs")
    problem = Problem("experiments", "forbidden", None)
    board.complain(problem)
    told = board.changes(0)
    assert (told.loading, told.problems) == (False, (problem,))
    board.content("experiments")
    assert board.changes(told.upto).problems == ()


def test_waiting_ends_with_news_and_misses_none():
    async def story():
        board = Board()
        waiter = asyncio.create_task(board.wait(0))
        await asyncio.sleep(0)
        assert not waiter.done()
        board.put(entry("a"))
        await asyncio.wait_for(waiter, 1)
        await asyncio.wait_for(board.wait(0), 1)  # what has happened before is no reason to wait
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(board.wait(board.sequence), 0.05)

    asyncio.run(story())


def test_an_object_in_full_with_the_course_of_its_loss():
    board, key = Board(), ("FineTuneJob", "a", "x")
    assert board.find(key) is None
    for step in (10, 20):
        board.put(entry("x", step, loss=(step, 1 / step)))
    detail, trail = board.find(key)
    assert (detail()["full"], trail) == (True, [(10, 0.1), (20, 0.05)])
    board.put(entry("x", 30, uid="another"))
    assert board.find(key)[1] == [], "of another one of the same name"
    board.drop(key)
    assert board.find(key) is None


COURSES = {
    "few": (range(1, 5), [1, 2, 3, 4]),
    "again from a checkpoint": ([1, 2, 3, 4, 2, 3], [1, 2, 3]),
    "the same step twice": ([1, 1, 2], [1, 2]),
}


@pytest.mark.parametrize(("steps", "kept"), COURSES.values(), ids=COURSES)
def test_a_trail(steps, kept):
    trail = Trail()
    for step in steps:
        trail.add(step, 0.5)
    assert [step for step, _ in trail.points] == kept


def test_a_long_trail_keeps_its_ends_and_is_even():
    trail = Trail(most=16)
    for step in range(10_000):
        trail.add(step, float(step))
    steps = [step for step, _ in trail.points]
    assert len(steps) <= 16
    assert steps[0] == 0
    assert steps[-1] >= 9_000
    gaps = {after - before for before, after in itertools.pairwise(steps)}
    assert max(gaps) <= 2 * min(gaps)
