// From the data in the page to the first view; then every choice goes through page.set: state, hash, table, charts.

let board;

// The libraries are packed in the page as gzip in base64: smaller, and nothing in them can be taken for the page's own markup.
const unpack = async (id) => {
  const bytes = Uint8Array.from(atob(byId(id).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
};

const load = async (id) => {
  // An inline script runs only if the page's policy names its digest: what was packed here, and nothing else.
  document.head.append(element("script", { text: await unpack(id) }));
};

const start = async () => {
  board = readBoard(JSON.parse(byId("data").textContent));
  await load("datatables");
  const page = { state: readHash() };
  page.derived = derive(page.state);
  page.extents = extentsOf(page.derived.scores);
  sayWhatThisIs();
  page.redraw = () => redraw(page);
  page.set = (change) => set(page, change);
  page.controls = makeControls(page);
  Object.assign(page, makeTable(page));
  page.compare = makeCompare(page);
  page.charts = makeCharts(page);
  makeHint(page);
  listen(page);
  redraw(page);
  byId("waiting").remove();
  document.documentElement.dataset.ready = "true";
  // For the console: the state, and what follows from it.
  globalThis.harmonyBoard = { board, page, firstComponent };
};

const set = (page, change) => {
  const before = page.state;
  page.state = { ...before, ...change };
  const changed = (key) => JSON.stringify(before[key]) !== JSON.stringify(page.state[key]);
  if (changed("view") || changed("columns")) {
    page.derived = derive(page.state);
    page.extents = extentsOf(page.derived.scores);
  }
  if (changed("view") || changed("columns") || changed("pins")) page.stale = true;
  writeHash(page.state);
  redraw(page);
};

const redraw = (page) => {
  page.controls();
  const words = wordsOf(page.state.search);
  page.table.search.fixed("reader", (_, model) => isShown(model, page.state, words));
  if (page.stale) page.table.rows().invalidate();
  page.stale = false;
  showColumns(page);
  page.table.order([page.table.column(`${page.state.sort}:name`).index(), page.state.direction]);
  page.drawing = true;
  page.table.draw(false);
  const { pages } = page.table.page.info();
  if (page.state.page < pages) page.table.page(page.state.page).draw("page");
  page.drawing = false;
  page.compare();
  page.charts();
  sayStanding(page);
};

const showColumns = (page) => {
  const { columns } = page.derived;
  page.order.forEach((j, place) => {
    const column = page.table.column(place + LEADING.length);
    const visible = columns.includes(board.benchmarks[j].task);
    if (column.visible() !== visible) column.visible(visible, false);
  });
};

const listen = (page) => {
  page.table.on("order", () => {
    if (page.drawing || page.restoring) return;
    const [[place, direction]] = page.table.order().filter(([index]) => index !== 0).slice(-1);
    const sort = page.table.column(place).settings()[0].aoColumns[place].sName;
    if (sort !== page.state.sort || direction !== page.state.direction) {
      page.state = { ...page.state, sort, direction, page: 0 };
      writeHash(page.state);
    }
  });
  page.table.on("page", () => {
    if (page.drawing) return;
    page.state = { ...page.state, page: page.table.page() };
    writeHash(page.state);
    byId("board-region").scrollTop = 0;
  });
  page.table.on("draw", () => { markGroups(page); sayOrder(page); });
  byId("board").addEventListener("click", (event) => {
    const button = event.target.closest("button.pin");
    if (!button) return;
    const { name } = board.models[Number(button.dataset.pin)];
    const { pins } = page.state;
    page.set({ pins: pins.includes(name) ? pins.filter((one) => one !== name) : [...pins, name] });
    // The row was drawn anew and moved: the focus goes with it.
    document.querySelector(`button.pin[data-pin="${button.dataset.pin}"]`)?.focus({ preventScroll: true });
  });
  addEventListener("hashchange", () => {
    page.state = readHash();
    page.derived = derive(page.state);
    page.extents = extentsOf(page.derived.scores);
    page.stale = true;
    redraw(page);
  });
};

// Pinned models are ordered first by a hidden column, so the sorted header is marked here and not by the library.
const sayOrder = (page) => {
  const { sort, direction } = page.state;
  document.querySelectorAll("#board thead [aria-sort]").forEach((head) => head.removeAttribute("aria-sort"));
  for (const head of document.querySelectorAll("#board thead .titles th")) {
    const name = head.dataset.task ?? ["rank", "model", "size", "pc1"].find((one) => head.classList.contains(one));
    const sorted = name === sort;
    head.classList.toggle("sorted", sorted);
    if (sorted) head.setAttribute("aria-sort", direction === "asc" ? "ascending" : "descending");
  }
};

const sayWhatThisIs = () => {
  byId("about").textContent = `${counted(board.models.length, "model")} on ${counted(board.benchmarks.length, "benchmark")}, from ${board.source}.`;
  byId("reference").textContent = `PC1 and ranks: ${board.reference.text}.`;
  byId("colophon").textContent = `Made with LM-Harmony ${board.version}. Charts by Plotly, table by DataTables. Nothing here is fetched from anywhere.`;
};

const percent = (share) => `${(100 * share).toFixed(1)}%`;

const sayStanding = (page) => {
  const { derived, state } = page;
  const shown = page.table.rows({ search: "applied" }).count();
  const said = [shown === board.models.length ? counted(shown, "model") : `${shown} of ${counted(board.models.length, "model")}`];
  if (derived.trouble) said.push(`no PC1: ${derived.trouble}`);
  else if (!derived.explained) said.push("no PC1");
  else {
    const of = derived.shipped ? "" : `, computed here from ${counted(derived.columns.length, "chosen benchmark")} over ${counted(derived.models, "model")}`;
    said.push(`PC1 of the ${derived.componentView} scores explains ${percent(derived.explained[0])}${of}`);
  }
  if (state.view === "gain") said.push("gain: what training added, in points; PC1 stays that of the trained scores");
  for (const view of ["direct", "trained"]) if (!board.has(view)) said.push(`no ${view} scores in this source, so ${view === "direct" ? "direct" : "trained"} and gain cannot be shown`);
  byId("standing").textContent = `${said.join(" · ")}.`;
  sayLegend(page);
};

const sayLegend = (page) => {
  const said = [];
  if (page.derived.low) said.push(board.words.interval);
  else if (!page.derived.trouble) said.push("Chosen benchmarks: PC1 without an interval");
  if (board.views[page.derived.componentView].groups && page.state.view !== "gain") said.push(board.words.groups);
  byId("legend").textContent = said.map((sentence) => `${sentence}.`).join(" ");
};

start();
