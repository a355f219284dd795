// The stream of the fleet: server-sent events by fetch, for EventSource cannot send a key.

const SILENCE = 10_000; // ms without a word after which the connection counts as lost: one comes each second
const LONGEST_PAUSE = 30; // s between two tries

/** A JSON merge patch (RFC 7396): null takes a field away. */
export function merged(target, patch) {
  if (patch === null || typeof patch !== "object" || Array.isArray(patch)) return patch;
  const result = target !== null && typeof target === "object" && !Array.isArray(target) ? { ...target } : {};
  for (const [name, value] of Object.entries(patch)) {
    if (value === null) delete result[name];
    else result[name] = merged(result[name], value);
  }
  return result;
}

/** The events of a response's body, as objects. */
async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ; ) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (text + value).split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").find((line) => line.startsWith("data: "));
      if (data) yield JSON.parse(data.slice(6));
    }
  }
}

/** What a refusal says, in the words of the server. */
async function sentence(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

/**
 * Follows the stream, and comes back when it ends. One page has one.
 *
 * told: { event(event), refused(status, why), away(why, seconds) }; headers: () => what goes with each try.
 */
export class Feed {
  constructor(url, headers, told) {
    Object.assign(this, { url, headers, told, pause: 1, timer: 0, silence: 0, connection: null });
  }

  /** Connects now; whatever was there before ends. */
  async connect() {
    this.leave();
    const connection = (this.connection = new AbortController());
    let why = "the stream has ended";
    try {
      const response = await fetch(this.url, { headers: this.headers(), cache: "no-store", signal: connection.signal });
      if (response.status === 401 || response.status === 403) {
        this.told.refused(response.status, await sentence(response));
        return;
      }
      if (!response.ok) throw new Error(await sentence(response));
      this.#listen(connection);
      for await (const event of eventsOf(response.body)) {
        this.#listen(connection);
        this.pause = 1;
        if (event.type === "end") why = event.why;
        else this.told.event(event);
      }
    } catch (error) {
      why = connection.signal.reason?.message ?? error.message;
    }
    if (this.connection === connection) this.#comeBack(why);
  }

  /** Ends the connection, and tries no more. */
  leave() {
    clearTimeout(this.timer);
    clearTimeout(this.silence);
    const before = this.connection;
    this.connection = null;
    before?.abort();
  }

  #listen(connection) {
    clearTimeout(this.silence);
    this.silence = setTimeout(() => connection.abort(new Error("nothing was heard for ten seconds")), SILENCE);
  }

  #comeBack(why) {
    clearTimeout(this.silence);
    const seconds = Math.round(this.pause * (0.75 + Math.random() / 2) * 10) / 10;
    this.pause = Math.min(LONGEST_PAUSE, 2 * this.pause);
    this.told.away(why, seconds);
    this.timer = setTimeout(() => this.connect(), 1000 * seconds);
  }
}
