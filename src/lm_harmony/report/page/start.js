// Start-up: reads the data and draws the page. Later changes go through page.set, which updates state, hash, table and charts.

let board;

// Libraries are stored in the page as gzip in base64. This is smaller, and their code cannot be parsed as part of the page.
const unpack = async (id) => {
  const packed = atob(byId(id).textContent);
  const bytes = new Uint8Array(packed.length);
  // A loop takes 6 ms for Plotly, and Uint8Array.from with a function 150 ms.
  for (let i = 0; i < packed.length; i += 1) bytes[i] = packed.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
};

const load = async (id) => {
  // The content security policy lists the digest of each library, so no other inline script runs.
  document.head.append(element("script", { text: await unpack(id) }));
};

const start = async () => {
  board = readBoard(JSON.parse(byId("data").textContent));
  await load("datatables");
  const page = { state: readHash() };
  page.derived = derive(page.state);
  page.extents = extentsOf(page.derived.scores);
  showSource();
  page.redraw = () => redraw(page);
  page.set = (change) => set(page, change);
  page.controls = makeControls(page);
  Object.assign(page, makeTable(page));
  page.compare = makeCompare(page);
  showFindings();
  page.charts = makeCharts(page);
  makeHint(page);
  listen(page);
  redraw(page);
  byId("waiting").remove();
  document.documentElement.dataset.ready = "true";
  // For the browser console: the data, the state and its derived values.
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
  showStatus(page);
};

// Columns without any value are hidden.
const showColumns = (page) => {
  const { columns, pc1, means } = page.derived;
  const filled = { kind: board.kinds.some((kind) => kind !== UNKNOWN), size: board.models.some(({ params }) => params !== null),
    rank: pc1.some((value) => value !== null), pc1: pc1.some((value) => value !== null), mean: means.some((value) => value !== null) };
  for (const [name, visible] of Object.entries(filled)) {
    const column = page.table.column(`${name}:name`);
    if (column.visible() !== visible) column.visible(visible, false);
  }
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
  page.table.on("draw", () => { markGroups(page); markSortedColumn(page); });
  byId("board").addEventListener("click", (event) => {
    const button = event.target.closest("button.pin");
    if (!button) return;
    const { name } = board.models[Number(button.dataset.pin)];
    const { pins } = page.state;
    page.set({ pins: pins.includes(name) ? pins.filter((one) => one !== name) : [...pins, name] });
    // The row was redrawn at another position, so the focus is set again.
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

// A hidden column sorts pinned models first, so the library would mark the wrong header as sorted.
const markSortedColumn = (page) => {
  const { sort, direction } = page.state;
  document.querySelectorAll("#board thead [aria-sort]").forEach((head) => head.removeAttribute("aria-sort"));
  for (const head of document.querySelectorAll("#board thead .sortable")) {
    const name = head.dataset.task ?? LEADING.find((one) => head.classList.contains(one));
    const sorted = name === sort;
    head.classList.toggle("sorted", sorted);
    if (sorted) head.setAttribute("aria-sort", direction === "asc" ? "ascending" : "descending");
  }
};

const showSource = () => {
  const tasks = board.benchmarks.filter(({ counts }) => counts).length;
  const corpora = board.benchmarks.length - tasks;
  byId("about").textContent = `${counted(board.models.length, "model")}, ${counted(tasks, "benchmark")}${corpora ? ` and ${counted(corpora, "text corpus", "text corpora")}` : ""}, from ${board.source}.`;
  byId("reference").textContent = `Reference: ${board.reference}.`;
  byId("colophon").textContent = `Made with LM-Harmony ${board.version}. Charts by Plotly, table by DataTables. This page loads nothing from the network.`;
};

const percent = (share) => `${(100 * share).toFixed(1)}%`;

const showStatus = (page) => {
  const { derived, state } = page;
  const shown = page.table.rows({ search: "applied" }).count();
  const sentences = [shown === board.models.length ? counted(shown, "model") : `${shown} of ${counted(board.models.length, "model")}`];
  if (derived.trouble) sentences.push(`no PC1: ${derived.trouble}`);
  else if (!derived.explained) sentences.push("no PC1");
  else {
    const of = derived.shipped ? "" : `, recomputed from ${counted(derived.columns.length, "selected benchmark")} over ${counted(derived.models, "model")}`;
    sentences.push(`PC1 of the ${viewText(derived.componentView)} scores explains ${percent(derived.explained[0])}${of}`);
  }
  if (state.view === "gain") sentences.push("gain: trained score minus direct score, positive is better; PC1 is that of the trained scores");
  for (const view of ["direct", "trained"]) if (!board.has(view)) sentences.push(`this source has no ${view} scores, so ranks before and after training cannot be compared`);
  const region = byId("board-region");
  if (region.scrollWidth > region.clientWidth + 1) sentences.push("scroll the table sideways to see all columns");
  byId("standing").textContent = `${sentences.join(" · ")}.`;
  showLegend(page);
};

const showLegend = (page) => {
  const { shipped, trouble, componentView } = page.derived;
  const sentences = [];
  if (shipped) sentences.push(...board.views[componentView].notes);
  else if (!trouble) sentences.push("PC1 of selected benchmarks has no interval");
  if (page.derived.means.some((value) => value !== null)) sentences.push(`mean: of the ${counted(page.derived.averaged, "selected benchmark")} scored in percent`);
  if (page.state.view !== "gain") sentences.push(board.marks);
  if (board.models.some(({ reference }) => !reference)) sentences.push("models in colour are not part of the reference board");
  if (page.derived.basis?.includes("predicted")) sentences.push("~ predicted from the benchmarks that the model has scores on");
  byId("legend").textContent = sentences.map((sentence) => `${sentence[0].toUpperCase()}${sentence.slice(1)}.`).join(" ");
};

start();
