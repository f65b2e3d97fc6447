// The OpenAI SDK for JavaScript, one case by name; BASE_URL and KEY say where to, every line on stdout is JSON.
// Modules are found beside the program, so it takes them from the client's environment by the name in MODULES.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const require = createRequire(process.env.MODULES + "/");
const { OpenAI } = require("openai");
const { ResponsesWS } = require("openai/resources/responses/ws");

const MODEL = "sim-1";
const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: process.env.KEY });
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

const say = (type, what = {}) => console.log(JSON.stringify({ type, ...what }));
const wait = () => lines.next(); // until the test lets us go on

function turn(asked, response) {
  const parts = response.output.flatMap((item) => (item.type === "message" ? item.content : []));
  const text = parts.map((part) => part.text ?? "").join("");
  say("turn", { asked, id: response.id, status: response.status, text, items: response.output });
  return response;
}

// The response of the turn that runs; an error that comes instead is thrown.
function completed(socket) {
  return new Promise((resolve, reject) => {
    socket.once("response.completed", (event) => resolve(event.response));
    socket.once("error", reject);
    socket.once("close", (code) => reject(new Error(`closed with ${code}`)));
  });
}

const cases = {
  async create() {
    const first = turn("hello", await client.responses.create({ model: MODEL, input: "hello" }));
    const more = { model: MODEL, input: "and on", previous_response_id: first.id };
    turn("and on", await client.responses.create(more));
  },

  async create_streamed() {
    const kinds = [];
    let text = "";
    for await (const event of await client.responses.create({ model: MODEL, input: "hello", stream: true })) {
      kinds.push(event.type);
      if (event.type === "response.output_text.delta") text += event.delta;
      if (event.type === "response.completed") turn("hello", event.response);
    }
    say("events", { kinds, text });
  },

  async stream() {
    const kinds = [];
    const stream = client.responses.stream({ model: MODEL, input: "hello" });
    stream.on("event", (event) => kinds.push(event.type));
    turn("hello", await stream.finalResponse());
    say("events", { kinds });
  },

  async connect() {
    const socket = new ResponsesWS(client);
    let parent;
    for (const asked of ["one", "two", "three"]) {
      const answer = completed(socket);
      const more = parent === undefined ? {} : { previous_response_id: parent };
      socket.send({ type: "response.create", model: MODEL, input: asked, store: false, ...more });
      parent = turn(asked, await answer).id;
      await wait();
    }
    socket.close({ code: 1000, reason: "" });
  },

  // The SDK's own reconnection: what was being answered is asked again, as an increment on a new socket.
  async reconnect() {
    let asking;
    const onReconnecting = (event) => {
      say("reconnecting", { code: event.closeCode ?? event.code, attempt: event.attempt });
      if (event.attempt === 1) socket.send(asking); // the SDK sends it as soon as there is a socket
    };
    const reconnect = { onReconnecting, initialDelay: 50 };
    const socket = new ResponsesWS(client, { reconnect, headers: { "x-session-id": "thread-8" } });
    const ask = (input, parent) => {
      asking = { type: "response.create", model: MODEL, input, store: false };
      if (parent !== undefined) asking.previous_response_id = parent;
      const answer = completed(socket);
      socket.send(asking);
      return answer.then((response) => turn(asking.input, response).id);
    };
    let parent = await ask("one");
    socket.once("response.output_text.delta", () => say("begun"));
    parent = await ask("two [[deltas:40]][[slow:50]]", parent);
    await ask("three", parent);
    socket.close({ code: 1000, reason: "" });
  },
};

await cases[process.argv[2]]();
say("done");
process.exit(0);
