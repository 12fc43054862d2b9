// The state of the page and its form in the URL's hash. Only values that differ from the default are written, and a copied
// address shows the same view anywhere. Unknown names in a hash are ignored.

const freshState = () => ({ view: board.firstView, sort: "pc1", direction: "desc", page: 0, search: "", families: [], kinds: [],
  sizes: [], columns: null, pins: [], bump: "pc1", theme: "auto" });

const LISTS = { families: "family", kinds: "kind", sizes: "size", pins: "pin" };

const writeHash = (state) => {
  const words = new URLSearchParams();
  const fresh = freshState();
  for (const key of ["view", "search", "bump", "theme"]) if (state[key] !== fresh[key]) words.set(key, state[key]);
  if (state.sort !== fresh.sort || state.direction !== fresh.direction) words.set("sort", `${state.sort}:${state.direction}`);
  if (state.page) words.set("page", state.page + 1);
  for (const [key, word] of Object.entries(LISTS)) for (const value of state[key]) words.append(word, value);
  for (const task of state.columns ?? []) words.append("column", task);
  const hash = words.toString();
  history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
};

const readHash = () => {
  const words = new URLSearchParams(location.hash.slice(1));
  const state = freshState();
  const take = (key, allowed) => { if (allowed(words.get(key))) state[key] = words.get(key); };
  take("view", (view) => view === "gain" ? board.has(view) : board.preparations.includes(view));
  take("search", (text) => text !== null);
  take("bump", (by) => by === "pc1" || board.taskIndex.has(by));
  take("theme", (theme) => ["light", "dark"].includes(theme));
  const sort = /^(.*):(asc|desc)$/s.exec(words.get("sort") ?? "");
  if (sort && (LEADING.slice(1).includes(sort[1]) || board.taskIndex.has(sort[1]))) [, state.sort, state.direction] = sort;
  const page = Number.parseInt(words.get("page") ?? "1", 10);
  state.page = page > 1 ? page - 1 : 0;
  const known = { families: new Set(board.families), kinds: new Set(board.kinds), sizes: new Set(board.sizes),
    pins: new Set(board.models.map((model) => model.name)) };
  for (const [key, word] of Object.entries(LISTS)) state[key] = [...new Set(words.getAll(word))].filter((value) => known[key].has(value));
  const columns = board.benchmarks.map(({ task }) => task).filter((task) => words.getAll("column").includes(task));
  if (columns.length) state.columns = columns;
  return state;
};
