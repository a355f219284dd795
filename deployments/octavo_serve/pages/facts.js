// The line under an answer: how fast it was, who gave it and why, and where its tokens came from.

import { el } from "./dom.js";

const REASONS = {
  prefix: "this shard holds the longest beginning of the prompt in its cache",
  spread: "another shard holds more of the prompt, but would have taken longer",
  load: "no shard holds any of the prompt; this one was the quickest",
  stale: "nothing was heard of the others lately",
  turn: "each shard in turn",
  session: "requests of one session stay together",
};
const FINISH = {
  length: "cut at max tokens",
  stopped: "stopped by you",
  tool_calls: "waits for a tool",
  content_filter: "filtered",
};
const KINDS = {
  cached: "from the prefix cache",
  computed: "computed for this answer",
  sampled: "drawn by the model",
  forced: "written by the grammar, without asking the model",
  tokens: "of the prompt; this server does not say which of them were cached",
};

/** The facts of an answer's `info`; null before there are any. */
export function facts(info) {
  if (info.first === undefined) return null;
  const parts = [
    fact(`${info.first.toFixed(info.first < 1 ? 2 : 1)} s`, "to the first token", "Time to the first token"),
    info.rate ? fact(`${info.rate.toFixed(info.rate < 10 ? 1 : 0)} tok/s`, "", "Tokens per second after the first one") : null,
    ...placed(info),
    FINISH[info.finish] ? fact(FINISH[info.finish], "", "How the answer ended") : null,
  ];
  return el("div", { className: "facts" }, el("div", { className: "facts-line" }, ...parts), bars(info));
}

function fact(value, says, title) {
  return el("span", { className: "fact", title }, el("b", {}, value), says ? ` ${says}` : "");
}

function placed(info) {
  if (!info.shard) return [];
  const why = (info.reason ?? "").split(", ").map((each) => REASONS[each] ?? each).join("; ");
  return [fact(info.shard, `· ${info.reason}`, `Shard ${info.shard}: ${why}`)];
}

function bars(info) {
  const { usage } = info;
  const cached = usage?.prompt_tokens_details?.cached_tokens;
  const known = cached !== undefined;
  const prompt = usage && (known ? { cached, computed: usage.prompt_tokens - cached } : { tokens: usage.prompt_tokens });
  return el(
    "div",
    { className: "bars" },
    prompt ? bar("Prompt", prompt) : null,
    bar("Answer", { sampled: info.sampled, forced: info.forced }),
  );
}

function bar(title, counts) {
  const shown = Object.entries(counts).filter(([, count]) => count > 0);
  const says = shown.map(([kind, count]) => `${count} ${kind}`).join(", ") || "0 tokens";
  const parts = shown.map(([kind, count]) => {
    const part = el("span", { className: `part ${kind}`, title: `${count} tokens ${KINDS[kind]}` });
    part.style.flexGrow = count;
    return part;
  });
  const picture = el("span", { className: "bar", aria: { hidden: "true" } }, ...parts);
  return el("span", { className: "bar-line" }, el("span", {}, title), picture, el("span", {}, says));
}

/** A text as marked runs: what a grammar wrote stands out. */
export function coloured(runs) {
  const parts = runs.map(([kind, text]) => el("span", { className: `token ${kind}`, title: KINDS[kind] }, text));
  return el("pre", { className: "tokens", tabIndex: 0 }, ...parts);
}

/** What the colours of `coloured` mean. */
export function legend() {
  const kinds = ["sampled", "forced"].map((kind) => el("span", { className: `token ${kind}` }, `${kind}: ${KINDS[kind]}`));
  return el("div", { className: "legend" }, ...kinds);
}
