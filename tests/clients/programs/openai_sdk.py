# mypy: ignore-errors
# What it imports lives in the environment of the client, not in ours.
"""The OpenAI SDK for Python, one case by name; BASE_URL and KEY say where to, every line on stdout is JSON."""

import asyncio
import json
import os
import sys

from openai import AsyncOpenAI, NotFoundError, OpenAI

MODEL = "sim-1"
CASES = {}

client = OpenAI(base_url=os.environ["BASE_URL"], api_key=os.environ["KEY"])
asynchronous = AsyncOpenAI(base_url=os.environ["BASE_URL"], api_key=os.environ["KEY"])


def case(function):
    CASES[function.__name__] = function
    return function


def say(kind, **what):
    print(json.dumps({"type": kind, **what}), flush=True)


def wait():
    """Until the test lets us go on."""
    sys.stdin.readline()


def turn(asked, response):
    """Say what was asked and what came, as the SDK understood it."""
    items = [item.model_dump(mode="json", exclude_unset=True) for item in response.output]
    say("turn", asked=asked, id=response.id, status=response.status, text=response.output_text, items=items)
    return response


# --- over HTTP ---


@case
def create():
    first = turn("hello", client.responses.create(model=MODEL, input="hello"))
    turn("and on", client.responses.create(model=MODEL, input="and on", previous_response_id=first.id))


@case
def create_streamed():
    kinds, text, response = [], "", None
    for event in client.responses.create(model=MODEL, input="hello", stream=True):
        kinds.append(event.type)
        text += event.delta if event.type == "response.output_text.delta" else ""
        response = event.response if event.type == "response.completed" else response
    say("events", kinds=kinds, text=text)
    turn("hello", response)


@case
def stream():
    kinds = []
    with client.responses.stream(model=MODEL, input="hello") as events:
        kinds = [event.type for event in events]
        response = events.get_final_response()
    say("events", kinds=kinds)
    turn("hello", response)


@case
def resend():
    """The whole context each time, as agents without a memory at the vendor do, in a session that has a name."""
    history, named = [], {"x-session-id": "thread-9"}
    for asked in ("one", "two", "three"):
        history.append({"role": "user", "content": asked})
        response = client.responses.create(model=MODEL, input=history, store=False, extra_headers=named)
        turn(asked, response)
        history += [item.model_dump(mode="json", exclude_none=True) for item in response.output]
        wait()


@case
def chat():
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hello"}])
    say("chat", text=answer.choices[0].message.content, finish=answer.choices[0].finish_reason)


@case
def chat_streamed():
    messages = [{"role": "user", "content": "hello"}]
    chunks = list(client.chat.completions.create(model=MODEL, messages=messages, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    finish = next(chunk.choices[0].finish_reason for chunk in reversed(chunks) if chunk.choices)
    say("chat", text=text, finish=finish, chunks=len(chunks))


@case
def embeddings():
    answer = client.embeddings.create(model=MODEL, input=["one", "two"])
    say("embeddings", dimensions=[len(entry.embedding) for entry in answer.data])


@case
def models():
    say("models", names=[model.id for model in client.models.list()])


@case
def stored():
    """What was stored is read, listed, and deleted; behind that it is unknown."""
    made = turn("hello", client.responses.create(model=MODEL, input="hello"))
    again = client.responses.retrieve(made.id)
    say("retrieved", id=again.id, text=again.output_text)
    say("inputs", texts=[item.content[0].text for item in client.responses.input_items.list(made.id)])
    client.responses.delete(made.id)
    try:
        client.responses.retrieve(made.id)
    except NotFoundError as gone:
        say("gone", status=gone.status_code)


@case
def cancelled():
    asked = "slowly [[deltas:100]][[slow:100]]"
    made = client.responses.create(model=MODEL, input=asked, background=True)
    say("begun", id=made.id, status=made.status)
    say("cancelled", id=made.id, status=client.responses.cancel(made.id).status)


# --- over a WebSocket ---


def completed(connection):
    """The response of the turn that runs; raises for an error that comes instead."""
    for event in connection:
        if event.type == "error":
            raise RuntimeError(event.to_json())
        if event.type in ("response.completed", "response.failed", "response.incomplete"):
            return event.response
    raise RuntimeError("the connection ended")


@case
def connect():
    with client.responses.connect() as connection:
        parent = None
        for asked in ("one", "two", "three"):
            more = {} if parent is None else {"previous_response_id": parent}
            connection.response.create(model=MODEL, input=asked, store=False, **more)
            parent = turn(asked, completed(connection)).id
            wait()


@case
def connect_asynchronously():
    async def run():
        async with asynchronous.responses.connect() as connection:
            parent = None
            for asked in ("one", "two", "three"):
                more = {} if parent is None else {"previous_response_id": parent}
                await connection.response.create(model=MODEL, input=asked, store=False, **more)
                async for event in connection:
                    if event.type == "error":
                        raise RuntimeError(event.to_json())
                    if event.type == "response.completed":
                        parent = turn(asked, event.response).id
                        break
                await asyncio.to_thread(wait)

    asyncio.run(run())


@case
def lanes():
    """Two conversations on one socket, through the SDK's own session of lanes."""
    from openai.lib.responses_websocket import AsyncResponsesWebSocketSession, ResponsesWebSocketLimits

    limits = ResponsesWebSocketLimits(
        max_lanes=4, max_events_per_lane=512, max_events=1024, max_bytes_per_lane=1 << 20, max_bytes=1 << 21
    )

    async def converse(lane, name):
        parent = None
        for at in range(3):
            more = {} if parent is None else {"previous_response_id": parent}
            asked = f"{name} {at} [[deltas:20]][[slow:5]]"
            frame = {"type": "response.create", "model": MODEL, "input": asked, "store": False}
            await lane.send(frame | more)
            response = await lane.get_final_response()
            turn(asked, response)
            parent = response.id

    async def run():
        async with (
            asynchronous.responses.connect() as connection,
            AsyncResponsesWebSocketSession(connection, limits=limits) as session,
        ):
            await asyncio.gather(converse(session.lane("left"), "left"), converse(session.lane("right"), "right"))

    asyncio.run(run())


@case
def reconnect():
    """The SDK's own reconnection: what was being answered is asked again, as an increment on a new socket."""
    asking = {}

    def ask(asked, parent=None):
        more = {} if parent is None else {"previous_response_id": parent}
        asking.update(model=MODEL, input=asked, store=False, **more)
        connection.response.create(**asking)

    def reconnecting(event):
        say("reconnecting", code=event.close_code, attempt=event.attempt)
        if event.attempt == 1:
            connection.response.create(**asking)  # the SDK sends it as soon as there is a socket

    named = {"x-session-id": "thread-7"}
    connecting = client.responses.connect(on_reconnecting=reconnecting, initial_delay=0.05, extra_headers=named)
    with connecting as connection:
        ask("one")
        parent = turn("one", completed(connection)).id
        ask("two [[deltas:40]][[slow:50]]", parent)
        next(event for event in connection if event.type == "response.output_text.delta")
        say("begun")
        parent = turn(asking["input"], completed(connection)).id
        ask("three", parent)
        turn("three", completed(connection))


@case
def interrupted():
    """An upstream that breaks off behind the first words; what was asked is asked again on the same socket."""
    with client.responses.connect() as connection:
        connection.response.create(model=MODEL, input="one [[deltas:20]]", store=False)
        error = next(event for event in connection if event.type == "error")
        say("error", code=error.error.code, status=error.status)
        connection.response.create(model=MODEL, input="one", store=False)
        turn("one", completed(connection))


if __name__ == "__main__":
    CASES[sys.argv[1]]()
    say("done")
