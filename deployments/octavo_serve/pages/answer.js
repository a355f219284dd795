// An answer as its stream comes in: what is said, where its tokens came from, and how fast it was.
//
// It goes into a node of the conversation, which is plain data:
//
//     content, reasoning    texts
//     calls                 [{id, name, arguments, runs}]
//     runs                  the content by origin: [["sampled", "It is "], ["forced", "{\"name\":"], ...]
//     info                  {model, first, rate, usage, sampled, forced, shard, reason, finish, error, id}

/** Takes in the events of one stream. `now` tells milliseconds. */
export class Answer {
  constructor(node, model, now = () => performance.now()) {
    this.node = node;
    this.now = now;
    this.begun = now();
    this.first = null;
    this.last = null;
    Object.assign(node, { content: "", reasoning: "", calls: [], runs: [] });
    node.info = { model, sampled: 0, forced: 0 };
  }

  /** Take in one event of the stream. */
  take(event) {
    const { info } = this.node;
    if (event.headers) {
      info.shard = event.headers.get("x-octavo-shard");
      info.reason = event.headers.get("x-octavo-route-reason");
      return;
    }
    if (event.id) info.id = event.id;
    if (event.model) info.model = event.model;
    if (event.usage) info.usage = event.usage;
    for (const choice of event.choices) this.choice(choice);
    this.measure();
  }

  choice({ delta, finish_reason: finish, token_origins: origins }) {
    const { node } = this;
    const kind = origins?.forced ? "forced" : "sampled";
    if (origins) {
      node.info.sampled += origins.sampled;
      node.info.forced += origins.forced;
    }
    if (delta.reasoning_content) node.reasoning += delta.reasoning_content;
    if (delta.content) {
      node.content += delta.content;
      extend(node.runs, kind, delta.content);
    }
    for (const part of delta.tool_calls ?? []) this.call(part, kind);
    if (finish) node.info.finish = finish;
    if (delta.content || delta.reasoning_content || delta.tool_calls) this.tick();
  }

  call({ index, id, function: part, custom }, kind) {
    const { name, arguments: more } = part ?? { name: custom.name, arguments: custom.input };
    const call = (this.node.calls[index] ??= { id, name, arguments: "", runs: [] });
    call.arguments += more;
    extend(call.runs, kind, more);
  }

  tick() {
    this.last = this.now();
    this.first ??= this.last;
  }

  /** Seconds to the first token, and tokens per second after it. */
  measure() {
    const { info } = this.node;
    if (this.first === null) return;
    info.first = (this.first - this.begun) / 1000;
    const seconds = (this.last - this.first) / 1000;
    const count = info.usage?.completion_tokens ?? info.sampled + info.forced;
    info.rate = seconds > 0 && count > 1 ? (count - 1) / seconds : null;
  }
}

function extend(runs, kind, text) {
  if (!text) return;
  const last = runs.at(-1);
  if (last?.[0] === kind) last[1] += text;
  else runs.push([kind, text]);
}
