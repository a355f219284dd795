// The server's API, as any other client uses it. Paths are relative: the page may be below a prefix.

import { headers } from "./key.js";

/** An answer that is an error. `status` is 0 where nothing answered. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The models and aliases that are served. */
export async function models() {
  const answer = await asked("v1/models", { headers: headers() });
  return (await answer.json()).data;
}

/** The last requests that can be explained: the "latest" or the "slowest". */
export async function recent(order) {
  const answer = await asked(`v1/requests?limit=40&order=${order}`, { headers: headers() });
  return (await answer.json()).data;
}

/** Why a request took so long. */
export async function explanation(id) {
  const answer = await asked(`v1/requests/${encodeURIComponent(id)}/explain`, { headers: headers() });
  return answer.json();
}

/** A chat's stream: first {headers}, then each event. Ends early when `signal` is aborted. */
export async function* chat(body, signal) {
  const answer = await asked("v1/chat/completions", {
    method: "POST",
    headers: headers({ "Content-Type": "application/json" }),
    body: JSON.stringify(body),
    signal,
  });
  yield { headers: answer.headers };
  for await (const data of eventsOf(answer.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(answer.status, event.error.message);
    yield event;
  }
  throw new ApiError(0, "The answer ended before it was complete: the connection to the server was lost.");
}

async function asked(path, options) {
  let answer;
  try {
    answer = await fetch(path, { ...options, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server does not answer. Is it still running?");
  }
  if (!answer.ok) throw new ApiError(answer.status, await sentenceOf(answer));
  return answer;
}

async function sentenceOf(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `The server answered ${answer.status} ${answer.statusText}`;
  }
}

/** The `data` of server-sent events; each is one line here. */
export async function* eventsOf(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6).trimEnd();
  }
}
