"""Scheduling: which environments run, and which of them answers which requests.

A machine's trusted memory (on SGX the EPC) is shared by all its environments; when together they
exceed it, all of them page. Here is what decides, so that they never do:
:class:`~vessels.schedule.scheduler.Scheduler`, a state machine without clock or I/O that is told
what happens (:mod:`~vessels.schedule.events`) and says what to do
(:mod:`~vessels.schedule.decisions`). :mod:`vessels.serve` does it with real environments,
:mod:`vessels.schedule.simulate` with simulated ones.
"""
