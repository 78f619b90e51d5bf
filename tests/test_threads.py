"""Threads that work ahead: in order, bounded, and with their errors."""

import itertools

import pytest

from agejax import threads


def test_results_come_in_the_order_of_the_items():
    done = [(item, future.result()) for item, future in threads.ahead(str, range(100), 3)]
    assert done == [(i, str(i)) for i in range(100)]


def test_no_more_items_are_taken_than_are_worked_on_ahead():
    taken = []

    def items():
        for i in itertools.count():  # never ends
            taken.append(i)
            yield i

    results = threads.ahead(str, items(), 2)
    assert next(results)[0] == 0
    assert len(taken) == 32  # 16 a thread
    assert next(results)[0] == 1
    assert len(taken) == 33
    results.close()


def test_an_error_is_raised_by_the_result_of_its_item_alone():
    done = dict(threads.ahead(lambda n: 12 // n, [1, 0, 3], 2))
    assert (done[1].result(), done[3].result()) == (12, 4)
    with pytest.raises(ZeroDivisionError):
        done[0].result()
