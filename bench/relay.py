"""The relay that one would write first: aiohttp on both sides, message by message. A yardstick, not a product.

It asks for no key, keeps nothing, and has no metrics, so everything that the broker does beyond it counts against the
broker. `python -m bench.relay PORT UPSTREAM_PORT [--uvloop]`
"""

from __future__ import annotations

import argparse
import asyncio

import aiohttp
import uvloop
from aiohttp import WSMsgType, web

LARGEST = 64 * 1024 * 1024


class Relay:
    """Connects every client to an upstream socket of its own."""

    def __init__(self, upstream_port: int) -> None:
        self._url = f"http://127.0.0.1:{upstream_port}/v1/responses"
        self._http: aiohttp.ClientSession | None = None

    async def start(self, _: web.Application) -> None:
        """Make the one client session."""
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def stop(self, _: web.Application) -> None:
        """Close it."""
        if self._http is not None:
            await self._http.close()

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """One client from its handshake to its end."""
        assert self._http is not None
        client = web.WebSocketResponse(max_msg_size=LARGEST, compress=False)
        await client.prepare(request)
        async with self._http.ws_connect(self._url, max_msg_size=LARGEST) as upstream:
            ways = {asyncio.create_task(_pass_on(client, upstream)), asyncio.create_task(_pass_on(upstream, client))}
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        await client.close()
        return client


Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


async def _pass_on(source: Socket, target: Socket) -> None:
    async for message in source:
        if message.type is WSMsgType.TEXT:
            await target.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await target.send_bytes(message.data)


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("upstream_port", type=int)
    parser.add_argument("--uvloop", action="store_true")
    arguments = parser.parse_args()
    relay = Relay(arguments.upstream_port)
    app = web.Application()
    app.on_startup.append(relay.start)
    app.on_cleanup.append(relay.stop)
    app.router.add_get("/v1/responses", relay.serve)
    loop = uvloop.new_event_loop() if arguments.uvloop else asyncio.new_event_loop()
    web.run_app(app, host="127.0.0.1", port=arguments.port, access_log=None, print=None, loop=loop)


if __name__ == "__main__":
    main()
