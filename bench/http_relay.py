"""The relay over HTTP that one would write first: aiohttp on both sides, and nothing is looked at. A yardstick.

`--pieces`: it writes what has come in one go, where it would otherwise write chunk by chunk.
`python -m bench.http_relay PORT UPSTREAM_PORT [--uvloop] [--pieces]`
"""

from __future__ import annotations

import argparse
import asyncio

import aiohttp
import uvloop
from aiohttp import web

LARGEST = 64 * 1024 * 1024


class Relay:
    """Sends every request on, and its answer back."""

    def __init__(self, upstream_port: int, *, pieces: bool) -> None:
        self._url = f"http://127.0.0.1:{upstream_port}/v1/responses"
        self._pieces = pieces
        self._http: aiohttp.ClientSession | None = None

    async def start(self, _: web.Application) -> None:
        """Make the one client session."""
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def stop(self, _: web.Application) -> None:
        """Close it."""
        if self._http is not None:
            await self._http.close()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """One request and its answer."""
        assert self._http is not None
        headers = {"Content-Type": "application/json", "Authorization": request.headers.get("Authorization", "")}
        async with self._http.post(self._url, data=await request.read(), headers=headers) as answer:
            response = web.StreamResponse(
                status=answer.status, headers={"Content-Type": answer.headers["Content-Type"]}
            )
            await response.prepare(request)
            if self._pieces:
                async for piece in answer.content.iter_any():
                    await response.write(piece)
            else:
                async for chunk, _ in answer.content.iter_chunks():
                    await response.write(chunk)
        await response.write_eof()
        return response


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("upstream_port", type=int)
    parser.add_argument("--uvloop", action="store_true")
    parser.add_argument("--pieces", action="store_true")
    arguments = parser.parse_args()
    relay = Relay(arguments.upstream_port, pieces=arguments.pieces)
    app = web.Application(client_max_size=LARGEST)
    app.on_startup.append(relay.start)
    app.on_cleanup.append(relay.stop)
    app.router.add_post("/v1/responses", relay.serve)
    loop = uvloop.new_event_loop() if arguments.uvloop else asyncio.new_event_loop()
    web.run_app(app, host="127.0.0.1", port=arguments.port, access_log=None, print=None, loop=loop)


if __name__ == "__main__":
    main()
