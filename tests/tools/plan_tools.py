"""Plans that stream: no node of them holds a whole table."""

from __future__ import annotations

NOT_STREAMED = ("multiplexer", "in-memory-map", "in-memory-fallback")


def assert_streams(engine):
    for graph in engine.graphs:
        assert not any(word in graph for word in NOT_STREAMED)
