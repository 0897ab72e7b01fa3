"""The fault kit: a real agent, real services and one module per kind of fault.

A :class:`~interlatent_live.bench.chaos.rig.Rig` is the system under test, its faults are in
:mod:`~interlatent_live.bench.chaos.faults`, and :mod:`~interlatent_live.bench.chaos.measure` puts a
fault to a watched agent and keeps the books. ``interlatent-live bench chaos`` makes the table of
``docs/faults.md`` with it, and ``tests/chaos`` holds each fault to what the design promises.
"""
