"""The in-flight actor of a run, in tests."""

from pipeline.cluster.in_flight_actor import Board, start_board
from tests.support.waiting import wait_until


def answering_board(traced: bool = False) -> Board:
    """A new board, once its process has started: a call waits 5 s for it, and a busy machine starts it in more."""
    board = start_board(traced)
    wait_until(lambda: board.look() is not None)
    return board
