// The live view: one stream in, everything on the page from what is known now.

import { Chart, bar, clock, count, drawBlocks, make, seconds, share, short } from "./fleet_draw.js";
import { Feed, merged } from "./fleet_feed.js";
import { Requests } from "./fleet_requests.js";
import { headers, keep } from "./key.js";

const SPAN = 300, FIRST_SPAN = 60; // s of history, and of it that are drawn while there is less
const RATE_SECONDS = 5, HITS_SECONDS = 60; // over which tokens per second and hit rates are measured
const ROWS = 14, CHANGES = 20;
const LEAVING = 120; // s that a shard may take to end its streams once fewer are wanted
const HIDDEN = 60_000; // ms after which a page that nobody sees lets go of the stream

const ROUTED = {
  prefix: "holds the longest prefix",
  spread: "another holds a longer prefix, but would take longer",
  load: "soonest free; nobody holds any of it",
  stale: "not heard of late: judged by its load alone",
  turn: "its turn",
  session: "its session's shard",
};
const SCALED = {
  load: "what runs and arrives needs this many",
  coming: "arrivals say how many will run soon",
  waiting: "what waits must be computed in time",
  kv: "KV blocks held by sequences",
  "first token": "first tokens are late on every shard",
  held: "requests wait, and no shard takes them",
  kept: "fewer would do, but not for long enough yet",
  quiet: "there is no work",
  stale: "no shard's report is recent enough to change anything",
};
const DECIDES = { // where it is not this sum
  least_loaded: "The policy least_loaded goes by these sums as if nothing were cached.",
  round_robin: "The policy round_robin does not go by these sums.",
  session: "The policy session goes by the session's name, where there is one.",
};
const PHASES = ["process", "imports", "model", "accuracy", "network"];
const TONES = { stale: "warn", silent: "bad", unreachable: "bad", loading: "warn", failed: "bad" };

const at = (id) => document.getElementById(id);

let known = null; // the gateway's state
let decisions = []; // newest first
let chosen = null; // a decision that somebody looks at; null: the latest
let drawn = false; // a frame is asked for
const counters = new Map(); // shard -> [{at, generated, prompt, cached}], oldest first
const history = new Map(); // model -> [{at, shards, running, waiting, tokens}]
const changes = []; // newest first: {at, model, what, why}
const models = new Map(), shards = new Map(); // what is on the page, by name

// ---- the stream -----------------------------------------------------------------------------------------------------

const feed = new Feed("fleet/events", headers, {
  event(event) {
    if (event.type === "state") begin(event);
    if (event.type === "change") update(merged(known, event.patch));
    if (event.type === "routing") decided(event);
    show("live", `Live from gateway ${known.gateway}${known.gateways > 1 ? `, one of ${known.gateways}` : ""}`);
    if (!drawn) {
      drawn = true;
      requestAnimationFrame(draw);
    }
  },
  refused(status, why) {
    show("away", status === 401 ? "A key is needed" : "Not allowed");
    at("view").hidden = true;
    at("gate").hidden = false;
    at("gate-title").textContent = status === 401 ? "A key is needed" : "This may not be seen with this key";
    at("gate-why").textContent = `${why[0].toUpperCase()}${why.slice(1)}.`;
    at("key").focus();
  },
  away(why, left) {
    show("away", `Not connected: ${why}. Next try in ${Math.max(1, Math.round(left))} s`);
  },
});

function show(state, text) {
  at("dot").className = `dot ${state}`;
  at("again").hidden = state === "live" || !at("gate").hidden;
  if (at("status").textContent !== text) at("status").textContent = text; // said aloud: only what is new
}

function begin(event) {
  at("gate").hidden = true;
  at("view").hidden = false;
  if (known && known.gateway !== event.state.gateway) counters.clear();
  decisions = event.decisions.reverse();
  const before = known;
  known = null;
  update(event.state, before);
  requests.look();
}

function update(state, before = known) {
  known = state;
  for (const [name, shard] of Object.entries(state.shards)) measure(name, shard);
  for (const [name, shard] of Object.entries(state.shards)) {
    if (before && !before.shards[name]) note(shard.model, `shard ${name} came`, startOf(shard));
  }
  for (const [name, shard] of Object.entries(before?.shards ?? {})) {
    if (!state.shards[name]) note(shard.model, `shard ${name} is gone`, whyGone(shard.model));
  }
  for (const name of counters.keys()) if (!state.shards[name]) counters.delete(name);
  for (const name of Object.keys(state.models)) remember(name);
}

/** Gateways are not told why a shard ends: what is known is whether fewer were asked for. */
function whyGone(model) {
  const fewer = known.scaling[model]?.changes.findLast((one) => one.after < one.before && one.at > known.at - LEAVING);
  return fewer
    ? `the autoscaler asked for fewer at ${clock(fewer.at)}`
    : "the autoscaler did not ask for fewer: it was lost, or is being replaced; the server's log tells which";
}

function note(model, what, why) {
  changes.unshift({ at: known.at, model, what, why });
  changes.length = Math.min(changes.length, CHANGES);
}

function decided(event) {
  decisions.unshift(...event.decisions.reverse());
  decisions.length = Math.min(decisions.length, 100);
  const shown = event.decisions.length;
  at("rate").textContent = event.left_out
    ? `${shown + event.left_out} in the last second, ${shown} of them here`
    : `${shown} in the last second`;
}

// ---- rates ----------------------------------------------------------------------------------------------------------

function measure(name, shard) {
  if (shard.generated_tokens === undefined) return;
  const found = counters.get(name) ?? [];
  found.push({ at: known.at, generated: shard.generated_tokens, prompt: shard.prompt_tokens, cached: shard.cached_tokens });
  while (found[0].at < known.at - HITS_SECONDS) found.shift();
  counters.set(name, found);
}

/** What a shard's counters did over the last seconds. */
function since(name, span) {
  const found = counters.get(name);
  if (!found?.length) return null;
  const now = found.at(-1), then = found.find((one) => one.at >= now.at - span - 0.5);
  return { now, then, seconds: now.at - then.at };
}

function tokensPerSecond(name) {
  const over = since(name, RATE_SECONDS);
  return over?.seconds ? (over.now.generated - over.then.generated) / over.seconds : undefined;
}

/** Cached and asked prompt tokens of the last minute; where none came, since the shard's start. */
function hits(names) {
  const sum = { cached: 0, prompt: 0 }, all = { cached: 0, prompt: 0 };
  for (const over of names.map((name) => since(name, HITS_SECONDS))) {
    if (!over) continue;
    for (const field of ["cached", "prompt"]) {
      sum[field] += over.now[field] - over.then[field];
      all[field] += over.now[field];
    }
  }
  return sum.prompt ? sum : all;
}

const shardsOf = (model) => Object.keys(known.shards).filter((name) => known.shards[name].model === model).sort();
const total = (names, value) => names.reduce((sum, name) => sum + (value(known.shards[name], name) ?? 0), 0);
const running = (shard) => (shard.decoding ?? 0) + (shard.prefilling ?? 0);

function remember(model) {
  const names = shardsOf(model), found = history.get(model) ?? [];
  found.push({
    at: known.at,
    shards: known.models[model].shards,
    running: total(names, running),
    waiting: total(names, (shard) => shard.queued) + known.models[model].waiting,
    tokens: total(names, (_, name) => tokensPerSecond(name)),
  });
  while (found[0].at < known.at - SPAN) found.shift();
  history.set(model, found);
}

// ---- the page -------------------------------------------------------------------------------------------------------

function draw() {
  drawn = false;
  if (!known || at("view").hidden) return;
  keyed(at("models"), models, Object.keys(known.models), modelView);
  const order = Object.keys(known.models).flatMap(shardsOf);
  keyed(at("shards"), shards, order, shardView);
  at("no-shards").hidden = order.length > 0;
  drawRouting();
  drawScaling();
  drawCosts(order);
  at("footer").textContent = `Octavo ${known.version}. Charts begin when this page is opened; routing is this gateway's own.`;
}

/** Keeps one view for each name, in their order. */
function keyed(container, views, names, build) {
  for (const [name, view] of views) {
    if (names.includes(name)) continue;
    view.element.remove();
    views.delete(name);
  }
  names.forEach((name, place) => {
    if (!views.has(name)) views.set(name, build(name));
    const { element, draw: refresh } = views.get(name);
    if (container.children[place] !== element) container.insertBefore(element, container.children[place] ?? null);
    refresh();
  });
}

function facts(names) {
  const values = names.map(() => make("dd"));
  const element = make("dl", { class: "facts" }, ...names.map((name, i) => make("div", {}, make("dt", {}, name), values[i])));
  return { element, show: (texts) => texts.forEach((text, i) => set(values[i], text)) };
}

function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function pill(element, status) {
  set(element, status);
  element.className = `pill ${TONES[status] ?? ""}`;
}

function modelView(name) {
  const status = make("span", { class: "pill" }), bounds = make("span", { class: "soft" });
  const why = make("p", { class: "soft" }), title = make("h3", {}, name);
  const charts = [
    new Chart("Shards"),
    new Chart("Running + waiting"),
    new Chart("Tokens per second"),
  ];
  const numbers = make("p", { class: "soft" });
  const element = make("article", { class: "card model" }, make("header", {}, title, status, bounds), why,
    make("div", { class: "charts" }, ...charts.map((chart) => chart.element)), numbers);
  const fields = [(one) => [one.shards], (one) => [one.running, one.waiting], (one) => [one.tokens]];
  const refresh = () => {
    const model = known.models[name], points = history.get(name);
    pill(status, model.status);
    set(bounds, shardCount(model));
    set(why, model.reason ?? "");
    why.hidden = !model.reason;
    set(numbers, modelNumbers(name, model));
    const first = Math.min(points[0].at, known.at - FIRST_SPAN);
    charts.forEach((chart, i) => chart.draw(points.map((one) => {
      const [value, second] = fields[i](one);
      return { at: one.at, value, second };
    }), first, known.at));
  };
  return { element, draw: refresh };
}

function shardCount(model) {
  const range = model.least === model.most ? `${model.most}` : `${model.least} to ${model.most}`;
  const states = Object.entries(model.replicas).filter(([state]) => state !== "RUNNING");
  const others = states.map(([state, number]) => `, ${number} ${state.toLowerCase()}`).join("");
  return `${model.shards} of ${range} shards${others}`;
}

function modelNumbers(name, model) {
  const { cached, prompt } = hits(shardsOf(name));
  const parts = [`${share(cached, prompt)} of prompt tokens found in the cache`, `policy ${model.policy}`];
  if (model.aliases.length) parts.push(`also called ${model.aliases.join(", ")}`);
  if (model.waiting) parts.push(`${count(model.waiting)} requests wait here for a shard`);
  return `${parts.join(" · ")}.`;
}

function shardView(name) {
  const status = make("span", { class: "pill" }), model = make("span", { class: "model-name" });
  const canvas = make("canvas", { role: "img" }), blocks = make("p", { class: "soft blocks" });
  const numbers = facts(["running", "waiting", "tokens/s", "hit rate", "next begins", "step"]);
  const element = make("article", { class: "card shard" },
    make("header", {}, make("h3", { class: "mono" }, name), status, model), canvas, blocks, numbers.element);
  const refresh = () => {
    const shard = known.shards[name], { cached, prompt } = hits([name]);
    pill(status, shard.status);
    set(model, Object.keys(known.models).length > 1 ? shard.model : "");
    model.title = model.textContent;
    numbers.show([
      shard.places === undefined ? "–" : `${running(shard)} of ${shard.places}`,
      count(shard.queued),
      short(tokensPerSecond(name)),
      share(cached, prompt),
      shard.start_seconds === undefined ? "–" : shard.start_seconds < 0.001 ? "at once" : `in ${seconds(shard.start_seconds)}`,
      seconds(shard.step_seconds),
    ]);
    const used = (shard.blocks ?? 0) - (shard.blocks_free ?? 0), kept = shard.blocks_cached ?? 0;
    const text = shard.blocks === undefined ? "Its blocks are not known" : `${count(used)} in use, ${count(kept)} cached, ` +
      `${count(shard.blocks_free - kept)} free`;
    set(blocks, text);
    canvas.setAttribute("aria-label", text);
    drawBlocks(canvas, used, kept, shard.blocks);
  };
  return { element, draw: refresh };
}

function drawRouting() {
  const table = at("decisions").tBodies[0];
  at("no-decisions").hidden = decisions.length > 0;
  at("decisions").hidden = !decisions.length;
  const read = table.matches(":hover") || table.contains(document.activeElement);
  if (!read) table.replaceChildren(...decisions.slice(0, ROWS).map(decisionRow));
  drawFormula(chosen ?? decisions[0]);
  at("follow").hidden = !chosen;
}

function decisionRow(decision) {
  const button = make("button", { type: "button" }, clock(decision.at));
  const row = make("tr", {}, make("td", {}, button), make("td", {}, decision.model),
    make("td", { class: "number" }, count(decision.tokens)), make("td", { class: "number" }, count(decision.cached)),
    make("td", { class: "mono" }, decision.shard), make("td", {}, decision.reason),
    make("td", { class: "number" }, seconds(decision.first_token)));
  row.className = decision === chosen ? "shown" : "";
  button.addEventListener("click", () => {
    chosen = decision;
    for (const other of row.parentElement.children) other.className = other === row ? "shown" : "";
    drawFormula(decision);
    at("follow").hidden = false;
  });
  return row;
}

function drawFormula(decision) {
  at("formula").hidden = !decision;
  if (!decision || at("formula").decision === decision) return;
  at("formula").decision = decision;
  at("formula-title").textContent = `${clock(decision.at)}, request …${decision.id}`;
  at("formula-why").textContent = `${decision.shard}: ${decision.reason}, ${ROUTED[decision.reason]}. ` +
    `${count(decision.tokens)} prompt tokens${decision.sequences > 1 ? ` for ${decision.sequences} answers` : ""}, ` +
    `${count(decision.cached)} expected in its cache; first token expected after ${seconds(decision.first_token)}.`;
  const most = Math.max(...decision.candidates.map((one) => one.total));
  at("formula").querySelector("tbody").replaceChildren(...decision.candidates.flatMap((one) => candidateRows(one, decision, most)));
  const policy = known.models[decision.model]?.policy ?? "prefix_affinity";
  at("formula-more").textContent = (decision.more ? `And ${decision.more} more shards. ` : "") + (DECIDES[policy] ?? "");
}

function candidateRows(one, decision, most) {
  const terms = ["wait", "queue", "adapter", "fetch", "own", "others"];
  const name = `${one.shard}${one.stale ? " (stale)" : ""}`;
  const numbers = make("tr", { class: "numbers" }, make("th", { scope: "row", class: "mono" }, name),
    make("td", { class: "number" }, count(one.cached)),
    ...[...terms, "total"].map((term) => make("td", { class: "number" }, seconds(one[term]))));
  if (one.shard === decision.shard) numbers.classList.add("best");
  const cell = make("td", { colspan: 8 }, bar(terms.map((term) => [term, one[term]]), most));
  return [numbers, make("tr", { class: "bar", "aria-hidden": "true" }, cell)];
}

function drawScaling() {
  const now = Object.keys(known.models).map((name) => make("li", {}, scalingNow(name)));
  if (textOf(now) !== at("scaling-now").textContent) at("scaling-now").replaceChildren(...now);
  const asked = Object.entries(known.scaling).flatMap(([model, scaling]) => scaling.changes.map((one) => ({
    at: one.at, model, what: `${one.before} → ${one.after} shards`,
    why: `${one.reason}: ${SCALED[one.reason] ?? ""} (demand ${one.demand} shards${one.met ? "" : "; max, or the cluster, allows no more"})`,
  })));
  const all = [...asked, ...changes].sort((a, b) => b.at - a.at).slice(0, CHANGES);
  const rows = all.map((one) => make("tr", {}, make("td", { class: "mono" }, clock(one.at)), make("td", {}, one.model),
    make("td", {}, one.what), make("td", { class: "text" }, one.why)));
  at("changes").hidden = !rows.length;
  at("no-changes").hidden = rows.length > 0;
  if (textOf(rows) !== at("changes").tBodies[0].textContent) at("changes").tBodies[0].replaceChildren(...rows);
}

const textOf = (elements) => elements.map((element) => element.textContent).join("");

function scalingNow(name) {
  const model = known.models[name], scaling = known.scaling[name];
  if (model.least === model.most) return `${name}: always ${model.most} ${model.most === 1 ? "shard" : "shards"}, as the config says.`;
  if (!scaling) return `${name}: between ${model.least} and ${model.most} shards; no decision has been heard of yet.`;
  return `${name}: ${scaling.wanted} wanted, ${scaling.running} running; demand is ${scaling.demand} shards ` +
    `(${scaling.reason}: ${SCALED[scaling.reason] ?? ""}), as of ${clock(scaling.decided_at)}.`;
}

function startOf(shard) {
  if (!shard.start) return "how it started is not known";
  const sum = Object.values(shard.start).reduce((a, b) => a + b, 0);
  return `ready after ${seconds(sum)} ${shard.warm ? "in a process that was kept warm" : "from a new process"}`;
}

function drawCosts(order) {
  const longest = Math.max(...order.map((name) => Object.values(known.shards[name].start ?? {}).reduce((a, b) => a + b, 0)));
  const rows = order.map((name) => {
    const { cost = {}, start } = known.shards[name];
    const measured = Object.values(cost).some((value) => value > 0);
    const numbers = ["step", "token", "sequence", "attended", "context"].map((term) =>
      make("td", { class: "number" }, measured ? seconds(cost[term]) : "–"));
    return make("tr", {}, make("th", { scope: "row", class: "mono" }, name), ...numbers, make("td", {}, phases(start, known.shards[name], longest)));
  });
  const body = at("costs").tBodies[0];
  if (textOf(rows) !== body.textContent) body.replaceChildren(...rows);
}

function phases(start, shard, longest) {
  if (!start) return "–";
  const names = PHASES.filter((name) => start[name] !== undefined);
  const text = names.map((name) => `${name} ${seconds(start[name])}`).join(", ");
  const parts = names.map((name) => [`p${PHASES.indexOf(name)}`, start[name]]);
  return make("span", { class: "phases" }, bar(parts, longest), make("span", {}, `${text}${shard.warm ? " (warm process)" : ""}`));
}

// ---- who watches ----------------------------------------------------------------------------------------------------

at("gate-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keep(at("key").value.trim());
  at("key").value = "";
  feed.connect();
});
at("follow").addEventListener("click", () => {
  chosen = null;
  draw();
});
at("again").addEventListener("click", () => feed.connect());

const requests = new Requests({ order: at("requests-order"), table: at("requests"), none: at("no-requests"),
  answer: at("requests-why") }, () => known && !at("view").hidden, () => known.gateways);

let hidden = 0;
document.addEventListener("visibilitychange", () => {
  clearTimeout(hidden);
  if (document.hidden) {
    hidden = setTimeout(() => {
      feed.leave();
      show("away", "Paused while this page is not seen");
    }, HIDDEN);
  } else if (!feed.connection && at("gate").hidden) feed.connect();
});

feed.connect();
