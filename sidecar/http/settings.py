"""Every number that bounds the ``http`` lane, with its unit and what it protects against."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """How much the lane takes on.

    :param head_bytes: of one request's or response's head, and of the trailers of one body; more is refused
    :param head_timeout: seconds for a whole request head from its first byte, and in HTTP/2 for the preface and every
        frame but those of a body; up to ``sweep`` more may pass
    :param refused_body: bytes of the body of a refused request that are read and dropped so that its connection can go
        on; a longer or chunked one costs the connection
    :param linger: seconds that a client may go on sending, or not end its direction, after we have ended ours; up to
        ``sweep`` more may pass
    :param linger_bytes: bytes that are read and dropped within that time
    :param pool_connections: idle connections that are kept to one address of the application
    :param pool_idle: seconds that one is kept. Servers commonly close theirs after 60 to 75 s; one that says less in
        ``Keep-Alive: timeout=`` is believed
    :param pool_unsafe_idle: seconds of idleness after which a connection is not used any more for a request that can
        not be sent again (``POST``), because the application may be closing it at this moment
    :param attached_idle: seconds that a client may say nothing before the application's connection that served it last
        may serve others
    :param operations: distinct operations of one port that are reported by name; the rest is ``METHOD /{other}``.
        Rules are matched by the full name always
    :param cached: entries of each cache (operations by path, verdicts by operation); it is emptied when full
    :param trace_flags: of a ``traceparent`` that we make, two hexadecimal digits: ``00`` not sampled, ``01`` sampled
    :param sweep: seconds between two looks at what has taken too long
    :param h2_block_bytes: of one header block of HTTP/2, compressed; a client that goes beyond it, or beyond the next
        two or ``h2_continuations``, is refused, and an application that does is not observed any more
    :param h2_headers_bytes: of one header block, decompressed
    :param h2_table_bytes: of the table that HPACK keeps for one direction
    :param h2_streams: streams of one connection that are followed at once; with more it is not observed any more
    :param h2_continuations: frames that one header block may come in
    :param h2_early_bytes: that a client may send before its first head and beside that head's block, which are kept
        until the application is called: the preface, a first frame of the longest that a client may send unasked
        (RFC 9113 section 4.2), and small ones
    """

    head_bytes: int = 65_536
    head_timeout: float = 10.0
    refused_body: int = 65_536
    linger: float = 5.0
    linger_bytes: int = 1 << 20
    pool_connections: int = 256
    pool_idle: float = 50.0
    pool_unsafe_idle: float = 1.0
    attached_idle: float = 2.0
    operations: int = 200
    cached: int = 2048
    trace_flags: str = "00"
    sweep: float = 1.0
    h2_block_bytes: int = 65_536
    h2_headers_bytes: int = 262_144
    h2_table_bytes: int = 65_536
    h2_streams: int = 1024
    h2_continuations: int = 16
    h2_early_bytes: int = 32_768


DEFAULTS = HttpSettings()
