// The API key of this tab: gone when the tab is closed, in no URL and no cookie, sent to this server alone.

const NAME = "octavo.key";

/** The key; "" for none. */
export function key() {
  return sessionStorage.getItem(NAME) ?? "";
}

/** Keep a key until the tab is closed; "" forgets it. */
export function keep(value) {
  if (value) sessionStorage.setItem(NAME, value);
  else sessionStorage.removeItem(NAME);
}

/** Headers of a request to the API. The key as UTF-8: `fetch` throws where a header has another character. */
export function headers(others = {}) {
  const bytes = String.fromCharCode(...new TextEncoder().encode(key()));
  return bytes ? { ...others, Authorization: `Bearer ${bytes}` } : { ...others };
}
