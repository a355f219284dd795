// Pictures: lines over time, blocks, bars. All from numbers, all with words for those who do not see them.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; texts are texts. */
export function make(name, attributes = {}, ...children) {
  const found = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
  found.append(...children);
  return found;
}

function svg(name, attributes) {
  const found = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
  return found;
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

export const count = (value) => (value === undefined ? "–" : whole.format(value));
export const short = (value) => (value === undefined ? "–" : value < 10 ? tenth.format(value) : whole.format(value));
export const share = (part, of) => (of ? `${Math.round((100 * part) / of)} %` : "–");

/** Seconds in a unit that fits. */
export function seconds(value) {
  if (value === undefined) return "–";
  for (const [unit, size] of [["s", 1], ["ms", 1e-3], ["µs", 1e-6]]) {
    if (value >= 0.9995 * size) return `${Number((value / size).toPrecision(3))} ${unit}`;
  }
  return value ? `${Number((value / 1e-9).toPrecision(3))} ns` : "0";
}

/** The time of day of seconds since 1970. */
export const clock = (at) => new Date(1000 * at).toLocaleTimeString([], { hour12: false });

const WIDTH = 300, HEIGHT = 48;

/** A line over time; `second`, if given, is drawn on top of it as a sum. */
export class Chart {
  constructor(title) {
    this.title = title;
    this.now = make("strong");
    this.most = make("span");
    this.picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    this.parts = ["area", "base", "line", "second"].map((name) => {
      const part = svg("path", { class: name, "vector-effect": "non-scaling-stroke" });
      this.picture.append(part);
      return part;
    });
    const label = make("span", {}, `${title} `, this.now);
    this.element = make("figure", { class: "chart" }, make("figcaption", {}, label, this.most), this.picture);
  }

  /** points: [{at, value, second}], oldest first; drawn from `since` on. */
  draw(points, since, until) {
    const [area, base, line, second] = this.parts;
    const most = Math.max(1, ...points.map((point) => point.value + (point.second ?? 0)));
    const x = (at) => ((WIDTH * (at - since)) / (until - since)).toFixed(1);
    const y = (value) => (HEIGHT - 1 - (HEIGHT - 4) * (value / most)).toFixed(1);
    const path = (value) => points.map((point, i) => `${i ? "L" : "M"}${x(point.at)} ${y(value(point))}`).join("");
    const drawn = path((point) => point.value);
    base.setAttribute("d", `M0 ${HEIGHT - 0.5}H${WIDTH}`);
    line.setAttribute("d", drawn);
    area.setAttribute("d", points.length ? `${drawn}V${HEIGHT}H${x(points[0].at)}Z` : "");
    second.setAttribute("d", points.some((p) => p.second) ? path((p) => p.value + (p.second ?? 0)) : "");
    this.#say(points.at(-1), most);
  }

  #say(last, most) {
    const now = last ? `${short(last.value)}${last.second ? ` + ${short(last.second)}` : ""}` : "–";
    this.now.textContent = now;
    this.most.textContent = `up to ${short(most)}`;
    this.picture.setAttribute("aria-label", `${this.title} over the last minutes: now ${now}, at most ${short(most)}`);
  }
}

const CELL = 9, GAP = 2, MOST_CELLS = 600;

/** KV blocks as a field of cells, in use first, then cached, then free; one cell stands for `each` blocks. */
export function drawBlocks(canvas, used, cached, total) {
  const scale = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  if (!width || !total) return;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const columns = Math.floor((width + GAP) / (CELL + GAP)), rows = Math.floor((height + GAP) / (CELL + GAP));
  const cells = Math.min(total, columns * rows, MOST_CELLS);
  const colours = getComputedStyle(canvas);
  const [inUse, inCache, free, line] = ["--computed", "--cached", "--sunken", "--line-strong"].map((name) =>
    colours.getPropertyValue(name));
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  const filled = cellsOf(used, total, cells), known = cellsOf(used + cached, total, cells);
  for (let cell = 0; cell < cells; cell++) {
    const x = (cell % columns) * (CELL + GAP), y = Math.floor(cell / columns) * (CELL + GAP);
    context.fillStyle = cell < filled ? inUse : cell < known ? inCache : free;
    context.globalAlpha = cell >= filled && cell < known ? 0.6 : 1;
    context.fillRect(x, y, CELL, CELL);
    if (cell >= known) {
      context.strokeStyle = line;
      context.lineWidth = 0.5;
      context.strokeRect(x + 0.25, y + 0.25, CELL - 0.5, CELL - 0.5);
    }
  }
}

/** Cells for some blocks: at least one where there is any. */
const cellsOf = (blocks, total, cells) => (blocks ? Math.max(1, Math.round((cells * blocks) / total)) : 0);

/** Parts of a whole as one bar: [[class, value]]. */
export function bar(parts, whole, label) {
  const picture = svg("svg", { viewBox: "0 0 1000 10", preserveAspectRatio: "none" });
  picture.setAttribute(...(label ? ["aria-label", label] : ["aria-hidden", "true"]));
  if (label) picture.setAttribute("role", "img");
  let x = 0;
  for (const [name, value] of parts) {
    const width = whole ? (1000 * value) / whole : 0;
    picture.append(svg("rect", { class: name, x, y: 0, width, height: 10 }));
    x += width;
  }
  return picture;
}
