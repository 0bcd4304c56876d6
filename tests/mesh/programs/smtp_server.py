"""A mail server of the smallest kind (RFC 5321): speaks first, takes messages, prints the digest of each.

python smtp_server.py PORT
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sys


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    def say(line: str) -> None:
        writer.write(line.encode() + b"\r\n")

    say("220 greeter.example ESMTP")
    try:
        while line := await reader.readline():
            verb = line[:4].upper().strip().decode("ascii", "replace")
            if verb == "EHLO":
                say("250-greeter.example\r\n250 8BITMIME")
            elif verb in ("HELO", "MAIL", "RCPT", "RSET", "NOOP"):
                say("250 ok")
            elif verb == "DATA":
                say("354 end with a dot")
                await writer.drain()
                digest = hashlib.sha256()
                while (part := await reader.readline()) != b".\r\n":
                    if not part:
                        return
                    digest.update(part[1:] if part.startswith(b"..") else part)
                print(digest.hexdigest(), flush=True)
                say("250 taken")
            elif verb == "QUIT":
                say("221 bye")
                break
            else:
                say("500 unknown")
            await writer.drain()
        await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def main() -> None:
    server = await asyncio.start_server(serve, "0.0.0.0", int(sys.argv[1]), limit=1 << 20)
    await server.serve_forever()


asyncio.run(main())
