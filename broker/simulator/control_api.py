"""The simulator's own HTTP interface: faults and limits in, records out."""

from dataclasses import asdict
from typing import Any

import orjson
from aiohttp import web

from broker.simulator.faults import Armed, Fault, presets
from broker.simulator.handshake import VENDOR
from broker.simulator.script import SCRIPTS, Script
from broker.simulator.telemetry import Telemetry
from broker.simulator.vendor import Vendor


def add_control(app: web.Application) -> None:
    """Mount the interface under /_sim."""
    app.router.add_get("/_sim/state", _state)
    app.router.add_put("/_sim/faults", _arm)
    app.router.add_delete("/_sim/faults", _disarm)
    app.router.add_put("/_sim/limits", _tell_limits)
    app.router.add_delete("/_sim/limits", _hush_limits)
    app.router.add_put("/_sim/scripts", _set_scripts)
    app.router.add_get("/_sim/tokens", _show_tokens)
    app.router.add_put("/_sim/tokens", _set_tokens)
    app.router.add_get("/_sim/turns", _turns)
    app.router.add_delete("/_sim/turns", _forget_turns)
    app.router.add_get("/_sim/handshakes", _handshakes)
    app.router.add_delete("/_sim/sockets", _end_sockets)


def parse_fault(body: dict[str, Any]) -> tuple[str, Fault]:
    """A credential's name and a fault from JSON: `{credential, preset?, add?, ...fields of Fault}`."""
    changes = {name: value for name, value in body.items() if name not in ("credential", "preset", "add")}
    preset = body.get("preset")
    base = presets[preset] if preset is not None else Fault()
    return str(body.get("credential", "*")), base.but(**changes)


async def _state(request: web.Request) -> web.Response:
    vendor = request.app[VENDOR]
    recorder = vendor.recorder
    return _json(
        {
            "credentials": [
                {"name": known.name, "boundary": known.boundary, "models": known.models} for known in vendor.credentials
            ],
            "sockets": {known.name: recorder.sockets[known.name] for known in vendor.credentials},
            "faults": [_armed(armed) for armed in vendor.faults.armed],
            "turns": len(recorder.turns),
            "handshakes": len(recorder.handshakes),
            "active_turns": sum(turn.outcome == "active" for turn in recorder.turns),
        }
    )


async def _arm(request: web.Request) -> web.Response:
    try:
        body = orjson.loads(await request.read())
        credential, fault = parse_fault(body)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return _json({"error": f"not a fault: {error}"}, status=400)
    board = request.app[VENDOR].faults
    armed = board.add(credential, fault) if body.get("add") else board.set(credential, fault)
    return _json(_armed(armed))


async def _disarm(request: web.Request) -> web.Response:
    request.app[VENDOR].faults.clear(request.query.get("credential"))
    return _json({})


async def _tell_limits(request: web.Request) -> web.Response:
    """From JSON: `{credential, used_percent, ...fields of Telemetry}`."""
    try:
        body = orjson.loads(await request.read())
        credential = str(body.pop("credential", "*"))
        told = Telemetry(**body)
    except (ValueError, TypeError, AttributeError) as error:
        return _json({"error": f"not limits: {error}"}, status=400)
    request.app[VENDOR].limits[credential] = told
    return _json({"credential": credential, **asdict(told)})


async def _hush_limits(request: web.Request) -> web.Response:
    vendor = request.app[VENDOR]
    if (credential := request.query.get("credential")) is None:
        vendor.limits.clear()
    else:
        vendor.limits.pop(credential, None)
    return _json({})


async def _set_scripts(request: web.Request) -> web.Response:
    """From JSON: `{scripts: [{marker, tool?, arguments?}]}`; none brings the first ones back."""
    try:
        scripts = [Script(**script) for script in orjson.loads(await request.read())["scripts"]]
    except (ValueError, KeyError, TypeError) as error:
        return _json({"error": f"not scripts: {error}"}, status=400)
    vendor = request.app[VENDOR]
    vendor.scripts = {**SCRIPTS, **{script.marker: script for script in scripts}}
    return _json({"scripts": [asdict(script) for script in vendor.scripts.values()]})


async def _show_tokens(request: web.Request) -> web.Response:
    tokens = request.app[VENDOR].tokens
    return _json({"requests": dict(tokens.requests), "lifetime": tokens.lifetime, "fault": tokens.fault})


async def _set_tokens(request: web.Request) -> web.Response:
    """From JSON: `{lifetime?, fault?, expire?}`; what is left out stays, `expire` ends all tokens issued so far."""
    tokens = request.app[VENDOR].tokens
    try:
        body = orjson.loads(await request.read())
        tokens.lifetime = float(body.get("lifetime", tokens.lifetime))
        tokens.fault = body.get("fault", tokens.fault)
    except (ValueError, TypeError, AttributeError) as error:
        return _json({"error": f"not a setting of tokens: {error}"}, status=400)
    if body.get("expire"):
        tokens.expire()
    return await _show_tokens(request)


async def _turns(request: web.Request) -> web.Response:
    since = _since(request)
    turns = [turn.as_json() for turn in request.app[VENDOR].recorder.turns if turn.number > since]
    return _json({"turns": turns})


async def _forget_turns(request: web.Request) -> web.Response:
    request.app[VENDOR].recorder.turns.clear()
    return _json({})


async def _handshakes(request: web.Request) -> web.Response:
    since = _since(request)
    seen = request.app[VENDOR].recorder.handshakes
    return _json({"handshakes": [handshake.as_json() for handshake in seen if handshake.number > since]})


async def _end_sockets(request: web.Request) -> web.Response:
    code = request.query.get("code", "1001")
    try:
        fault = Fault(at="idle", do=request.query.get("do", "reset"), close_code=int(code))
    except ValueError as error:
        return _json({"error": str(error)}, status=400)
    return _json({"sockets": await end_sockets(request.app[VENDOR], request.query.get("credential", "*"), fault)})


async def end_sockets(vendor: Vendor, credential: str, fault: Fault) -> int:
    """Let a fault act once on all live sockets of a credential ("*" is all), busy or not; returns how many."""
    hit = [socket for socket in vendor.live.values() if credential in ("*", socket.credential.name)]
    for socket in hit:
        await socket.suffer(fault)
    return len(hit)


def _armed(armed: Armed) -> dict[str, Any]:
    fault = armed.fault
    return {
        "credential": armed.credential,
        "at": fault.at,
        "do": fault.do,
        "code": fault.code,
        "status": fault.status,
        "left": armed.left,
        "until": fault.until,
        "fired": armed.fired,
    }


def _since(request: web.Request) -> int:
    since = request.query.get("since", "0")
    return int(since) if since.isdigit() else 0


def _json(body: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body, default=str), content_type="application/json", status=status)
