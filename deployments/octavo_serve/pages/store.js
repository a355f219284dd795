// What the page keeps: conversations and settings. In this tab alone, unless the reader wants them kept in the browser.

const NAME = "octavo.playground";
const MOST_CHATS = 50;

/** What was kept; null if there is nothing, or nothing that can be read. */
export function load() {
  try {
    const found = JSON.parse(sessionStorage.getItem(NAME) ?? localStorage.getItem(NAME));
    return found.chats.every((each) => each.nodes[0].children) ? found : null;
  } catch {
    return null;
  }
}

/** Keep `state`; with `state.keeps` until the reader deletes it. The oldest conversations go where there is no room. */
export function save(state) {
  const here = state.keeps ? localStorage : sessionStorage;
  let chats = state.chats.slice(0, MOST_CHATS);
  while (!write(here, { ...state, chats }) && chats.length > 1) chats = chats.slice(0, -1);
}

/** Keep `state` where it is to be from now on, and no longer where it was: the reader has changed `state.keeps`. */
export function move(state) {
  const kept = (state.keeps && JSON.parse(localStorage.getItem(NAME))?.chats) || [];  // by another tab
  state.chats = [...state.chats, ...kept.filter((each) => !state.chats.some((mine) => mine.id === each.id))];
  (state.keeps ? sessionStorage : localStorage).removeItem(NAME);
  save(state);
}

/** Call `changed` with what another tab keeps in the browser from now on; null: nothing any more. */
export function watch(changed) {
  addEventListener("storage", (event) => {
    if (event.storageArea === localStorage && event.key === NAME) changed(JSON.parse(event.newValue));
  });
}

function write(storage, state) {
  try {
    storage.setItem(NAME, JSON.stringify(state));
    return true;
  } catch {
    return false;
  }
}
