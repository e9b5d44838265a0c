"""A time limit."""

from labelleak.attacks.exact.clock import Clock


def test_it_is_over_when_so_many_seconds_have_passed_and_remembers_that_it_said_so():
    time = [5.0]
    clock = Clock(2.0, lambda: time[0])
    assert not clock.is_over
    time[0] = 6.9
    assert not clock.is_over
    assert not clock.ran_out
    time[0] = 7.0
    # Nobody has been told yet.
    assert not clock.ran_out
    assert clock.is_over
    assert clock.ran_out


def test_what_was_found_is_judged_a_little_longer():
    time = [5.0]
    clock = Clock(2.0, lambda: time[0])
    time[0] = 7.3
    assert clock.is_over
    assert not clock.judging.is_over
    time[0] = 7.5
    assert clock.judging.is_over


def test_without_one_it_reads_that_of_the_system():
    assert Clock(0.0).is_over
    assert not Clock(1e9).is_over
