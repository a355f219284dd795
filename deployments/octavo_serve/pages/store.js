// What the page keeps: conversations and settings. In this tab alone, unless the reader wants them kept in the browser.

const NAME = "octavo.playground";
const MOST_CHATS = 50;

/** What was kept; null if there is nothing, or nothing that can be read. */
export function load() {
  try {
    return JSON.parse(sessionStorage.getItem(NAME) ?? localStorage.getItem(NAME));
  } catch {
    return null;
  }
}

/** Keep `state`; with `state.keeps` until the reader deletes it. The oldest conversations go where there is no room. */
export function save(state) {
  const [here, elsewhere] = state.keeps ? [localStorage, sessionStorage] : [sessionStorage, localStorage];
  elsewhere.removeItem(NAME);
  let chats = state.chats.slice(0, MOST_CHATS);
  while (!write(here, { ...state, chats }) && chats.length > 1) chats = chats.slice(0, -1);
}

function write(storage, state) {
  try {
    storage.setItem(NAME, JSON.stringify(state));
    return true;
  } catch {
    return false;
  }
}
