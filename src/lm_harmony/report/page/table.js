// The table. DataTables sorts, pages and draws it. Cells are elements created here, because DataTables would interpret text as
// HTML. Its search and its column widths would do so too, so both are switched off; a filter on the models replaces the search.

const PAGE = 100;
const LEADING = ["pin", "rank", "model", "kind", "size", "pc1", "mean"];
const TITLES = { pin: "Pinned", rank: "PC1 rank", model: "Model", kind: "Kind", size: "Size", pc1: "PC1", mean: "Mean" };

const blanksLast = (sign) => (a, b) => {
  if (a === null || b === null) return (a === null) - (b === null);
  return sign * (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
};

// Benchmarks are grouped by category, categories in the order of their first benchmark.
const columnOrder = () => {
  const categories = [...new Set(board.benchmarks.map((benchmark) => benchmark.category))];
  return categories.flatMap((category) => board.benchmarks.map((_, j) => j).filter((j) => board.benchmarks[j].category === category));
};

const makeTable = (page) => {
  const order = columnOrder();
  const cells = makeCells(page);
  DataTable.ext.type.order["board-asc"] = blanksLast(1);
  DataTable.ext.type.order["board-desc"] = blanksLast(-1);
  const node = byId("board");
  headRows(order).forEach((row) => node.tHead.append(row));
  const column = (name, className, data, first = "desc") => ({ name, className, data, type: "board", searchable: false, ariaTitle: TITLES[name],
    orderSequence: first === "desc" ? ["desc", "asc"] : ["asc", "desc"] });
  const table = new DataTable(node, {
    data: board.models,
    columns: [
      { ...column("pin", "", (model) => (page.state.pins.includes(model.name) ? 1 : 0)), visible: false },
      column("rank", "rank", cells.rank, "asc"),
      column("model", "model", cells.model, "asc"),
      column("kind", "kind", cells.kind, "asc"),
      column("size", "size", cells.size),
      column("pc1", "pc1", cells.pc1),
      column("mean", "mean", cells.mean),
      ...order.map((j) => ({ ...column(board.benchmarks[j].task, "score", cells.score(j), board.benchmarks[j].higher ? "desc" : "asc"),
        ariaTitle: board.benchmarks[j].title })),
    ],
    rowId: (model) => `model-${model.index}`,
    createdRow: (row, model) => row.classList.toggle("pinned", page.state.pins.includes(model.name)),
    order: [[LEADING.indexOf("pc1"), "desc"]],
    orderFixed: { pre: [[0, "desc"]] },
    // Sorting by a second column would not be visible in the headers.
    orderMulti: false,
    autoWidth: false, deferRender: true, processing: false, searching: true, pageLength: PAGE,
    layout: { topStart: null, topEnd: null, bottomStart: board.models.length > PAGE ? "info" : null,
      bottomEnd: board.models.length > PAGE ? "paging" : null },
    language: { info: "_START_ to _END_ of _TOTAL_ models", infoFiltered: "", emptyTable: "No models.", zeroRecords: "No model fits these filters." },
  });
  return { table, order };
};

const headRows = (order) => {
  const groups = [];
  for (const j of order) {
    const { category } = board.benchmarks[j];
    if (groups.at(-1)?.category === category) groups.at(-1).span += 1;
    else groups.push({ category, span: 1 });
  }
  // With several categories, a row above the benchmarks names them, and the other heads span both rows.
  const title = (name, more) => element("th", { scope: "col", class: `sortable ${name}`, ...more });
  const leading = LEADING.map((name) => title(name, { text: TITLES[name], rowspan: groups.length > 1 ? 2 : null }));
  const scores = order.map((j) => title("score", { "data-task": board.benchmarks[j].task, text: board.benchmarks[j].title }));
  if (groups.length < 2) return [element("tr", { class: "titles" }, ...leading, ...scores)];
  return [
    element("tr", { class: "categories" }, ...leading, ...groups.map(({ category, span }) =>
      element("th", { class: "category", colspan: span, scope: "colgroup", "data-dt-order": "disable" }, element("span", { text: category })))),
    element("tr", { class: "titles" }, ...scores),
  ];
};

// Functions that DataTables calls with (model, type): they return an element for "display", otherwise a number or text.
const makeCells = (page) => ({
  rank: (model, type) => {
    const rank = page.derived.ranks[model.index];
    if (type !== "display") return rank;
    const { rankLow, rankHigh, groups } = page.derived;
    const made = element("span", { class: "cell", text: rank === null ? "" : String(rank) });
    if (rank !== null && rankLow && rankLow[model.index] !== null && rankLow[model.index] !== rankHigh[model.index]) {
      made.append(element("small", { class: "range", text: `${rankLow[model.index]}–${rankHigh[model.index]}` }));
    }
    if (groups) made.dataset.group = groups[model.index];
    return made;
  },
  model: (model, type) => {
    if (type !== "display") return model.name;
    const pinned = page.state.pins.includes(model.name);
    return element("span", { class: model.reference ? "cell" : "cell new-model" },
      element("button", { type: "button", class: "pin", "data-pin": model.index, "aria-pressed": String(pinned),
        "aria-label": `Pin ${model.name}`, text: pinned ? "★" : "☆" }),
      element("i", { class: "dot", "--dot": familyColour(model.family), title: model.family, "aria-hidden": "true" }),
      nameElement(model.name));
  },
  kind: (model, type) => {
    const kind = model.kind === UNKNOWN ? null : model.kind;
    return type !== "display" ? kind : element("span", { class: "cell", text: kind ?? "" });
  },
  size: (model, type) => (type !== "display" ? model.params : element("span", { class: "cell", text: billions(model.params) })),
  pc1: (model, type) => {
    const { pc1, low, high } = page.derived;
    const value = pc1[model.index];
    if (type !== "display") return value;
    const predicted = page.derived.basis?.[model.index] === "predicted";
    const made = element("span", { class: "cell", title: predicted ? "predicted from the benchmarks that the model has scores on" : null,
      text: `${predicted ? "~" : ""}${fixed(value, 0)}` });
    if (value !== null && low && low[model.index] !== null) {
      made.append(element("small", { class: "range", text: `${fixed(low[model.index], 0)} to ${fixed(high[model.index], 0)}` }));
    }
    return made;
  },
  mean: (model, type) => {
    const value = page.derived.means[model.index];
    return type !== "display" ? value : element("span", { class: "cell", text: (page.derived.view === "gain" ? signed : fixed)(value === null ? null : 100 * value, 1) });
  },
  score: (j) => (model, type) => {
    const value = page.derived.scores[model.index][j];
    return type !== "display" ? value : scoreCell(page, model.index, j, value);
  },
});

const scoreCell = (page, i, j, value) => {
  const benchmark = board.benchmarks[j];
  if (value === null) return element("span", { class: "cell gap", "data-cell": `${i} ${j}`, text: "·" });
  const gain = page.derived.view === "gain";
  const text = gain ? signed(value * benchmark.factor, benchmark.digits) : fixed(value * benchmark.factor, benchmark.digits);
  const made = element("span", { class: "cell", "data-cell": `${i} ${j}`, text });
  const extent = page.extents[j];
  if (gain) {
    const most = Math.max(Math.abs(extent.least), Math.abs(extent.best)) || 1;
    made.classList.add(value < 0 ? "worse" : "better");
    made.style.setProperty("--heat-share", `${(45 * Math.abs(value) / most).toFixed(1)}%`);
  } else {
    const share = extent.best === extent.worst ? 0.5 : Math.max(0, (value - extent.worst) / (extent.best - extent.worst));
    made.style.setProperty("--heat-share", `${(40 * share ** 1.7).toFixed(1)}%`);
    const group = board.views[page.derived.view].groups?.[i][j] ?? null;
    if (group === 1) made.classList.add("tied-first");
  }
  return made;
};

// The tie group of a model in the column that the table is sorted by; null: not known.
const groupInSort = (page, model) => {
  const { sort } = page.state;
  if (sort === "pc1" || sort === "rank") return page.derived.groups?.[model.index] ?? null;
  if (!board.taskIndex.has(sort) || page.derived.view === "gain") return null;
  return board.views[page.derived.view].groups?.[model.index][board.taskIndex.get(sort)] ?? null;
};

// A band at the left edge of the rows shows the tie groups of the sorted column: its shade changes where a group ends.
const markGroups = (page) => {
  let last = null;
  let band = 1;
  for (const row of page.table.rows({ page: "current" }).nodes().toArray()) {
    const model = page.table.row(row).data();
    const group = groupInSort(page, model);
    const pinned = page.state.pins.includes(model.name);
    if (group !== last) band = 1 - band;
    row.classList.toggle("pinned", pinned);
    row.classList.toggle("band", group !== null);
    row.classList.toggle("band-odd", group !== null && band === 1);
    row.classList.toggle("band-starts", group !== null && last !== null && group !== last);
    last = group;
  }
};
