# mypy: ignore-errors
# What it imports lives in the environment of the client, not in ours.
"""An agent of the OpenAI Agents SDK with one tool, over its WebSocket transport or over HTTP.

Arguments: websocket or http; resend or continue; what the user says, one message after the other. It waits for a line
within each call of its tool. SESSION names its session, RETRIES lets it try again. Every line on stdout is JSON.
"""

import asyncio
import json
import os
import sys

from agents import (
    Agent,
    ModelRetrySettings,
    ModelSettings,
    RetryDecision,
    RunConfig,
    Runner,
    function_tool,
    retry_policies,
    set_tracing_disabled,
)
from agents.models.openai_provider import OpenAIProvider
from openai import AsyncOpenAI

MODEL = "sim-1"


def say(kind, **what):
    print(json.dumps({"type": kind, **what}), flush=True)


class Tool:
    """Counts how often it was called."""

    def __init__(self):
        self.calls = 0

    async def look(self, where: str = "") -> str:
        """Look around."""
        self.calls += 1
        say("call", number=self.calls)
        await asyncio.to_thread(sys.stdin.readline)
        return f"seen {self.calls}"


def retrying():
    """By itself the SDK takes a socket that is lost behind the first event for the end; this says that it is not."""
    if "RETRIES" not in os.environ:
        return None
    begun = lambda context: RetryDecision(context.response_started, approve_unsafe_replay=True)  # noqa: E731
    policy = retry_policies.any(retry_policies.provider_suggested(), begun)
    return ModelRetrySettings(max_retries=int(os.environ["RETRIES"]), policy=policy)


async def run(transport, manner, messages):
    set_tracing_disabled(True)
    named = {"x-session-id": os.environ["SESSION"]} if "SESSION" in os.environ else {}
    client = AsyncOpenAI(base_url=os.environ["BASE_URL"], api_key=os.environ["KEY"], default_headers=named)
    over = {"use_responses": True, "use_responses_websocket": transport == "websocket"}
    provider = OpenAIProvider(openai_client=client, **over)
    tool = function_tool(Tool().look, strict_mode=False)
    # store=False: what is to be continued lives with the vendor's socket, and in the broker
    settings = ModelSettings(store=False, response_include=["reasoning.encrypted_content"], retry=retrying())
    agent = Agent(name="agent", model=MODEL, tools=[tool], model_settings=settings)
    config = RunConfig(model_provider=provider, tracing_disabled=True)
    history, said, parent = [], [], None
    for message in messages:
        more = {"auto_previous_response_id": True, "previous_response_id": parent} if manner == "continue" else {}
        asked = message if manner == "continue" else [*history, {"role": "user", "content": message}]
        result = await Runner.run(agent, asked, run_config=config, max_turns=100, **more)
        parent = result.last_response_id
        history = result.to_input_list()
        said = [*said, *history] if manner == "continue" else history
        say("answer", text=result.final_output, said=said)
    await provider.aclose()
    say("done")


asyncio.run(run(sys.argv[1], sys.argv[2], sys.argv[3:]))
