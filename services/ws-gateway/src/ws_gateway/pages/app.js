// The page: REST for questions and orders, one WebSocket for what happens. No framework, no build, nothing from elsewhere.
"use strict";

const $ = (id) => document.getElementById(id);
const KEY = "synod-key";
const EVENTS = "events:agent-runtime";
const EVENTS_SHOWN = 14;
const TOKENS_SHOWN = 4000;
const RECONNECT_MS = [500, 1000, 2000, 4000, 8000];

const state = { socket: null, frames: 0, tries: 0, run: null, cursor: 0, offset: null, epoch: "", ended: false };

// --- drawing: text only, never markup from data

function make(tag, text, className) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

function fill(parent, nodes, empty) {
  const none = parent.tagName === "TBODY" ? row([empty]) : make("p", empty, "empty");
  if (parent.tagName === "TBODY") { none.firstChild.colSpan = 9; none.firstChild.className = "empty"; }
  parent.replaceChildren(...(nodes.length || !empty ? nodes : [none]));
}

function row(cells, numeric = []) {
  const line = make("tr");
  cells.forEach((cell, index) => {
    const box = make("td", undefined, numeric.includes(index) ? "num" : "");
    box.append(cell);
    line.append(box);
  });
  return line;
}

const MOODS = { completed: "good", decided: "good", active: "good", alive: "good", failed: "bad", cancelled: "bad", undecided: "bad", running: "wait", waiting: "wait", queued: "wait", open: "wait" };
const chip = (word) => make("span", word, `chip ${MOODS[word] || ""}`);
const time = (at) => (at ? new Date(at).toLocaleTimeString([], { hour12: false }) : "");
const number = (value) => Number(value).toLocaleString("en");

// Nano-US-dollars as text, nothing rounded away below a cent.
function usd(nano) {
  const digits = String(Math.abs(nano)).padStart(10, "0");
  const fraction = digits.slice(-9).replace(/0+$/, "").padEnd(2, "0");
  return `${nano < 0 ? "-" : ""}${number(digits.slice(0, -9))}.${fraction}`;
}

function nano(text) {
  const match = /^\$?(\d{1,9})(?:\.(\d{1,9}))?$/.exec(text.trim());
  if (!match) throw new Error(`Budget '${text}' is no amount in US dollars, such as 0.25.`);
  const amount = Number(match[1]) * 1e9 + Number((match[2] || "").padEnd(9, "0"));
  if (!amount) throw new Error("A budget of 0 pays for nothing: give more, or leave it empty for none.");
  if (amount > Number.MAX_SAFE_INTEGER) throw new Error(`Budget '${text}' is more than this page can count.`);
  return amount;
}

// --- REST

async function rest(path, options = {}) {
  const headers = { Authorization: `Bearer ${sessionStorage.getItem(KEY)}`, ...options.headers };
  const answer = await fetch(`/api/v1${path}`, { ...options, headers });
  const body = await answer.json();
  if (!answer.ok) throw new Error(`${body.detail}. To do: ${body.remedy}.`);
  return body;
}

const post = (path, body, headers) =>
  rest(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json", ...headers } });

// --- WebSocket

function send(type, fields = {}) {
  state.frames += 1;
  if (state.socket?.readyState === WebSocket.OPEN) state.socket.send(JSON.stringify({ type, id: `p${state.frames}`, ...fields }));
}

function connect() {
  const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`);
  state.socket = socket;
  socket.onopen = () => send("auth", { token: sessionStorage.getItem(KEY) });
  socket.onmessage = (message) => {
    const frame = JSON.parse(message.data);
    (HANDLERS[frame.type] || (() => {}))(frame);
  };
  socket.onclose = (closed) => {
    if (!sessionStorage.getItem(KEY)) return;
    if (closed.code === 4401) return ask(`The key was not accepted (${closed.reason || "no answer"}).`);
    link("connecting again", "wait");
    setTimeout(connect, RECONNECT_MS[Math.min(state.tries++, RECONNECT_MS.length - 1)] * (0.5 + Math.random()));
  };
}

const HANDLERS = {
  authenticated(frame) {
    state.tries = 0;
    link("live", "good");
    $("who").textContent = `${frame.principal_id} · tenant ${frame.tenant_id}`;
    $("enter").hidden = true;
    $("house").hidden = $("leave").hidden = false;
    send("subscribe_monitoring");
    send("subscribe", { channel: EVENTS, ...(state.offset === null ? {} : { offset: state.offset, epoch: state.epoch }) });
    if (state.run && !state.ended) send("subscribe", { channel: `run:${state.run}`, offset: state.cursor });
    if (state.offset === null) first();
  },
  subscribed(frame) {
    if (frame.channel !== EVENTS) return;
    if (!frame.recovered) loadEvents(frame.offset);
    [state.offset, state.epoch] = [frame.offset, frame.epoch];
    frame.publications.forEach(HANDLERS.publication);
  },
  publication(frame) {
    state.offset = frame.offset;
    $("events").querySelector(".empty")?.parentElement.remove();
    $("events").prepend(eventRow(frame.event));
    while ($("events").children.length > EVENTS_SHOWN) $("events").lastChild.remove();
    if (frame.event.type.startsWith("Run")) loadRunsSoon();
  },
  agent_event(frame) {
    if (frame.channel !== `run:${state.run}` || frame.offset <= state.cursor) return;
    state.cursor = frame.offset;
    const line = make("li");
    if (frame.run_id === state.run && /^Run(Completed|Failed|Cancelled)$/.test(frame.event)) line.className = "end";
    line.append(make("time", time(frame.at)), make("span", frame.summary));
    $("timeline").append(line);
    $("timeline").scrollTop = $("timeline").scrollHeight;
    if (frame.event.startsWith("ModelCallS")) { $("speaking").hidden = true; $("tokens").textContent = ""; loadCostSoon(); }
    if (/^(Vote|Step)/.test(frame.event)) loadProposals();
  },
  run_token(frame) {
    if (frame.channel !== `run:${state.run}`) return;
    if ($("speaker").textContent !== frame.agent) { $("speaker").textContent = frame.agent; $("tokens").textContent = ""; }
    $("speaking").hidden = false;
    $("tokens").textContent = ($("tokens").textContent + frame.text).slice(-TOKENS_SHOWN);
  },
  unsubscribed(frame) {
    if (frame.channel === `run:${state.run}` && frame.code === "RUN_ENDED") { state.ended = true; showRun(); }
    if (frame.code === "HISTORY_LOST" && frame.channel === EVENTS) send("subscribe", { channel: EVENTS });
  },
  monitoring_update(frame) { showFigures(frame.metrics); loadAgentsSoon(); loadDefinitionsSoon(); },
  system_error(frame) { console.warn(frame.code, frame.message); },
  ping(frame) { send("pong", { ref: frame.id }); },
};

function link(text, mood) { $("link").textContent = text; $("link").className = `chip ${mood}`; }

// --- what is shown

function guarded(load) { return (...args) => load(...args).catch((error) => console.warn(error.message)); }

function calmly(load, pause) {
  let waiting = null;
  return () => { waiting ??= setTimeout(() => { waiting = null; load(); }, pause); };
}

const loadAgents = guarded(async () => {
  const { data } = await rest("/agents");
  const lines = data.map((agent) => row([agent.name, chip(agent.state), number(agent.busy), number(agent.runs_completed), number(agent.runs_failed), agent.capabilities.join(", ")], [2, 3, 4]));
  fill($("agents"), lines, "No agents yet. Define some: synod define agents.yaml");
});
const loadAgentsSoon = calmly(loadAgents, 2000);

const loadDefinitions = guarded(async () => {
  const { data } = await rest("/definitions?limit=1000");
  const teamsFirst = data.sort((a, b) => b.kind.localeCompare(a.kind) || a.name.localeCompare(b.name));
  const chosen = $("definition").value;
  const shown = Array.from($("definition").options, (option) => option.value);
  if (shown.join() === teamsFirst.map((found) => found.name).join()) return; // an open list is left alone
  $("definition").replaceChildren(...teamsFirst.map((found) => {
    const option = make("option", `${found.name} (${found.kind.toLowerCase()})`);
    option.value = found.name;
    option.selected = found.name === chosen;
    return option;
  }));
});
const loadDefinitionsSoon = calmly(loadDefinitions, 2000);

const loadRuns = guarded(async () => {
  const { data } = await rest("/runs?limit=20");
  const lines = data.map((run) => {
    const line = make("li"), button = make("button");
    button.append(make("span", run.definition_name), chip(run.state));
    button.title = run.id;
    button.setAttribute("aria-current", String(run.id === state.run));
    button.onclick = () => follow(run.id);
    line.append(button);
    return line;
  });
  fill($("runs"), lines, "No runs yet.");
  if (!state.run && data.length) follow(data[0].id);
});
const loadRunsSoon = calmly(loadRuns, 400);

const loadCost = guarded(async () => {
  if (!state.run) return;
  const { data } = await rest(`/spend?group_by=agent&root_run_id=${encodeURIComponent(state.run)}`);
  const lines = data.rows.sort((a, b) => b.cost_nano_usd - a.cost_nano_usd).map((spent) =>
    row([spent.group[0] || "(none)", number(spent.calls), number(spent.input_tokens + spent.output_tokens), usd(spent.cost_nano_usd)], [1, 2, 3]));
  fill($("cost"), lines, "Nothing spent yet.");
  $("cost-total").replaceChildren(...(lines.length ? [row(["Total", "", "", usd(data.total_nano_usd)], [3])] : []));
});
const loadCostSoon = calmly(loadCost, 700);

const loadProposals = guarded(async () => {
  if (!state.run) return;
  const { data } = await rest(`/proposals?run=${encodeURIComponent(state.run)}`);
  fill($("proposals"), data.map(proposalBox), "No votes in this run.");
});

function proposalBox(proposal) {
  const box = make("div", undefined, "proposal"), head = make("div", undefined, "row between");
  head.append(make("b", proposal.title), chip(proposal.outcome || proposal.state));
  box.append(head);
  const whole = proposal.electorate.reduce((sum, voter) => sum + voter.weight, 0) || 1;
  for (const tally of proposal.tally) {
    const bar = make("div", undefined, "bar"), part = make("i");
    part.style.width = `${(100 * tally.weight) / whole}%`;
    bar.append(part);
    box.append(make("p", `${tally.option}: ${tally.weight} of ${whole}`), bar);
  }
  for (const ballot of proposal.ballots) box.append(make("p", `${ballot.voter_id}: ${ballot.option}${ballot.late ? " (late)" : ""}. ${ballot.reason}`, "quiet"));
  return box;
}

const showRun = guarded(async () => {
  if (!state.run) return;
  const { data: run } = await rest(`/runs/${encodeURIComponent(state.run)}`);
  $("run-title").replaceChildren(run.definition_name, " ", chip(run.state));
  $("run-about").textContent = `${run.id} · ${run.model_calls} model calls, ${run.tool_calls} tool calls in this run itself`;
  const over = ["completed", "failed", "cancelled"].includes(run.state);
  $("cancel").hidden = over;
  $("result").hidden = !over;
  if (over) $("speaking").hidden = true;
  $("output").textContent = run.failure ? `${run.failure.reason}: ${run.failure.message}` : run.output;
  await Promise.all([loadCost(), loadProposals()]);
});

function follow(id) {
  if (state.run && !state.ended) send("unsubscribe", { channel: `run:${state.run}` });
  Object.assign(state, { run: id, cursor: 0, ended: false });
  $("timeline").replaceChildren();
  $("tokens").textContent = $("cancel-error").textContent = "";
  $("speaking").hidden = $("result").hidden = true;
  send("subscribe", { channel: `run:${id}`, offset: 0 });
  showRun();
  loadRunsSoon();
}

function eventRow(event) {
  const stream = make("code", event.stream);
  return row([number(event.position), event.type, stream, time(event.occurred_at)], [0]);
}

const loadEvents = guarded(async (head) => {
  const { data } = await rest(`/events/agent-runtime?cursor=${Math.max(0, head - EVENTS_SHOWN)}&limit=${EVENTS_SHOWN}`);
  fill($("events"), data.filter((event) => event.position <= head).reverse().map(eventRow), "No events yet.");
});

function showFigures(metrics) {
  const published = metrics.services.reduce((sum, service) => sum + service.events_head, 0);
  const waiting = metrics.services.reduce((sum, service) => sum + service.commands_waiting, 0);
  const dead = metrics.services.reduce((sum, service) => sum + service.dead_letters, 0);
  const agents = Object.values(metrics.agents_by_state).reduce((sum, count) => sum + count, 0);
  const figures = [["agents", agents], ["events in all logs", published], ["commands waiting", waiting], ["dead letters", dead], ["open sessions", metrics.gateway.sessions_open]];
  $("figures").replaceChildren(...figures.map(([name, value]) => {
    const box = make("div");
    box.append(make("b", number(value)), make("span", name));
    return box;
  }));
}

function first() { loadDefinitions(); loadAgents(); loadRuns(); }

// --- what people do

function ask(problem = "") {
  sessionStorage.removeItem(KEY);
  state.socket?.close();
  link("not connected", "");
  $("who").textContent = "";
  $("enter").hidden = false;
  $("house").hidden = $("leave").hidden = true;
  $("key-error").textContent = problem;
  $("key").focus();
}

$("key-form").onsubmit = (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value.trim());
  $("key").value = $("key-error").textContent = "";
  link("connecting", "wait");
  connect();
};
$("leave").onclick = () => ask();
$("run-form").onsubmit = async (event) => {
  event.preventDefault();
  $("run-error").textContent = "";
  send("button_click", { button: "start-run" });
  try {
    const budget = $("budget").value.trim();
    const order = { definition: $("definition").value, input: $("input").value, budget_nano_usd: budget ? nano(budget) : 0 };
    const { data } = await post("/runs", order, { "Idempotency-Key": crypto.randomUUID() });
    follow(data.id);
  } catch (error) {
    $("run-error").textContent = error.message;
  }
};
$("cancel").onclick = async () => {
  try {
    await post(`/runs/${encodeURIComponent(state.run)}/cancel`, { reason: "cancelled on the page" });
    showRun();
  } catch (error) {
    $("cancel-error").textContent = error.message;
  }
};
window.addEventListener("error", (event) => send("log_error", { message: String(event.message).slice(0, 2000), detail: String(event.error?.stack || "").slice(0, 16000) }));

if (sessionStorage.getItem(KEY)) { link("connecting", "wait"); connect(); } else ask();
