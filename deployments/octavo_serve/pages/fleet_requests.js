// The last requests that may be explained with this key, and why each took so long.

import { explanation, recent } from "./api.js";
import { clock, count, make, seconds } from "./fleet_draw.js";
import { why } from "./why.js";

const PERIOD = 3_000; // ms between two looks
const KEPT = 40; // of all gateways: each look is answered by one of them

/** Shows them in a section with a select, a table and two paragraphs, as long as `seen()`. */
export class Requests {
  constructor({ order, table, none, answer }, seen, gateways) {
    Object.assign(this, { order, table, none, answer, seen, gateways, known: new Map(), chosen: null });
    order.addEventListener("change", () => {
      this.known.clear();
      this.look();
    });
    setInterval(() => this.look(), PERIOD);
  }

  async look() {
    if (!this.seen() || document.hidden) return;
    const slowest = this.order.value === "slowest";
    let found;
    try {
      found = await recent(this.order.value);
    } catch (error) {
      this.known.clear();
      this.draw([], error.message);
      return;
    }
    for (const request of found) this.known.set(request.id, request);
    const first = (a, b) => (slowest ? b.seconds - a.seconds : b.created - a.created);
    const kept = [...this.known.values()].sort(first).slice(0, KEPT);
    this.known = new Map(kept.map((request) => [request.id, request]));
    this.draw(kept.slice(0, 12), "No request of this key is remembered.");
  }

  draw(requests, nothing) {
    this.none.textContent = nothing;
    this.none.hidden = requests.length > 0;
    this.table.hidden = !requests.length;
    if (this.table.matches(":hover") || this.table.contains(document.activeElement)) return;
    this.table.tBodies[0].replaceChildren(...requests.map((request) => this.row(request)));
  }

  row(request) {
    const ask = make("button", { type: "button" }, clock(request.created));
    const ended = request.running ? "runs" : [...new Set(request.finish_reasons)].join(", ") || "–";
    const row = make("tr", {}, make("td", {}, ask), make("td", {}, request.model),
      make("td", { class: "number" }, count(request.prompt_tokens)),
      make("td", { class: "number" }, count(request.generated_tokens)),
      make("td", { class: "number" }, request.first_token === null ? "–" : seconds(request.first_token)),
      make("td", { class: "number" }, seconds(request.seconds)), make("td", {}, ended));
    row.className = request.id === this.chosen ? "shown" : "";
    ask.setAttribute("aria-label", `Why did ${request.id} take ${seconds(request.seconds)}?`);
    ask.addEventListener("click", () => {
      this.chosen = request.id;
      for (const other of row.parentElement.children) other.className = other === row ? "shown" : "";
      const asked = why(request.id, (id) => this.explained(id));
      this.answer.replaceChildren(make("h3", { class: "mono" }, request.id), asked);
      this.answer.hidden = false;
      asked.open = true;
    });
    return row;
  }

  /** Only the gateway that answered a request can explain it, and nobody here says which one is asked. */
  async explained(id) {
    for (let left = 3 * this.gateways(); ; left -= 1) {
      try {
        return await explanation(id);
      } catch (error) {
        if (error.status !== 404 || left <= 1) throw error;
      }
    }
  }
}
