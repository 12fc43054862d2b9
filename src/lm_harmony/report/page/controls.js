// The controls above the table. Each reads the state when the page is redrawn, and changes it through page.set.

const makeControls = (page) => {
  const redraws = [viewToggle(page), searchField(page), ...menus(page), themeButton(page)];
  byId("reset").addEventListener("click", () => page.set({ ...freshState(), theme: page.state.theme }));
  document.addEventListener("click", (event) => closeMenus(event.target.closest?.("details.menu")));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    const open = document.querySelector("details.menu[open]");
    if (open) { closeMenus(); open.querySelector("summary").focus(); }
  });
  return () => redraws.forEach((redraw) => redraw());
};

const closeMenus = (but = null) => document.querySelectorAll("details.menu[open]").forEach((menu) => { if (menu !== but) menu.open = false; });

// A source with one kind of scores has nothing to switch.
const viewToggle = (page) => {
  const views = [...board.preparations, "gain"].filter(board.has);
  byId("views").hidden = views.length < 2;
  const inputs = views.map((view) => {
    const text = viewText(view[0].toUpperCase() + view.slice(1));
    const input = element("input", { type: "radio", name: "view", value: view, onchange: () => page.set({ view, page: 0 }) });
    byId("views").append(element("label", {}, input, element("span", { text })));
    return input;
  });
  return () => inputs.forEach((input) => { input.checked = input.value === page.state.view; });
};

const searchField = (page) => {
  const input = byId("search");
  input.addEventListener("input", () => page.set({ search: input.value, page: 0 }));
  return () => { if (input.value !== page.state.search) input.value = page.state.search; };
};

const menus = (page) => [
  filterMenu(page, "Family", "families", board.families.map((value) => ({ value, count: board.models.filter((m) => m.family === value).length, dot: familyColour(value) }))),
  filterMenu(page, "Kind", "kinds", board.kinds.map((value) => ({ value, count: board.models.filter((m) => m.kind === value).length }))),
  filterMenu(page, "Size", "sizes", board.sizes.map((value) => ({ value, count: board.models.filter((m) => m.size === value).length }))),
  columnMenu(page),
  downloadMenu(page),
];

const menu = (title, ...content) => {
  const label = element("span", { text: title });
  const badge = element("b", { class: "badge", hidden: true });
  const made = element("details", { class: "menu" }, element("summary", {}, label, badge), element("div", { class: "sheet" }, ...content));
  made.addEventListener("toggle", () => { if (made.open) keepOnScreen(made.querySelector(".sheet")); });
  byId("menus").append(made);
  return (count) => { badge.hidden = !count; badge.textContent = count || ""; };
};

const keepOnScreen = (sheet) => {
  sheet.style.removeProperty("--shift");
  const { left, right } = sheet.getBoundingClientRect();
  const limit = document.documentElement.clientWidth - 8;
  sheet.style.setProperty("--shift", `${right > limit ? Math.max(limit - right, 8 - left) : 0}px`);
};

const checkbox = (value, text, change, { dot, count } = {}) => {
  const input = element("input", { type: "checkbox", value, onchange: () => change(input.checked) });
  const label = element("label", { class: "choice" }, input, dot ? element("i", { class: "dot", "--dot": dot }) : null,
    element("bdi", { text }), count === undefined ? null : element("small", { text: String(count) }));
  return { input, label };
};

const filterMenu = (page, title, key, values) => {
  if (values.length < 2) return () => {};  // nothing to choose
  const boxes = values.map(({ value, ...more }) => checkbox(value, value, (on) =>
    page.set({ [key]: on ? [...page.state[key], value] : page.state[key].filter((one) => one !== value), page: 0 }), more));
  const count = menu(title, element("fieldset", {}, element("legend", { text: `Show only this ${title.toLowerCase()}` }), ...boxes.map(({ label }) => label)));
  return () => {
    boxes.forEach(({ input }) => { input.checked = page.state[key].includes(input.value); });
    count(page.state[key].length);
  };
};

const columnMenu = (page) => {
  const chosen = () => page.derived.columns;
  const choose = (tasks) => {
    const ordered = board.benchmarks.map(({ task }) => task).filter((task) => tasks.includes(task));
    page.set({ columns: sameSet(ordered, board.columns) ? null : ordered });
  };
  const boxes = [];
  const groups = [...new Set(board.benchmarks.map(({ category }) => category))].map((category) => {
    const own = board.benchmarks.filter((benchmark) => benchmark.category === category);
    const made = own.map(({ task, title }) => checkbox(task, title, (on) => choose(on ? [...chosen(), task] : chosen().filter((one) => one !== task))));
    boxes.push(...made);
    return element("fieldset", {}, element("legend", {}, element("button", { type: "button", class: "link", text: category,
      "aria-label": `Only ${category}`, title: `Only ${category}`, onclick: () => choose(own.map(({ task }) => task)) })), ...made.map(({ label }) => label));
  });
  const count = menu("Benchmarks", element("div", { class: "sheet-head" },
    element("button", { type: "button", class: "quiet", text: "Default", onclick: () => page.set({ columns: null }) }),
    element("p", { text: "PC1 and the mean are recomputed from the selected benchmarks. The name of a group selects only that group." })),
  element("div", { class: "groups" }, ...groups));
  return () => {
    const tasks = chosen();
    // A table without benchmarks shows nothing, so the last one cannot be removed.
    boxes.forEach(({ input }) => { input.checked = tasks.includes(input.value); input.disabled = tasks.length === 1 && input.checked; });
    count(page.state.columns === null ? 0 : tasks.length);
  };
};

const downloadMenu = (page) => {
  const offer = (text, kind) => element("button", { type: "button", class: "choice", text, onclick: () => { closeMenus(); download(page, kind); } });
  menu("Download", offer("Table as CSV", "csv"), offer("Scores as CSV", "long"), offer("Table as JSON", "json"),
    element("p", { text: "Files have the models and benchmarks shown. Scores as CSV has one line per score, direct and trained, with standard errors." }));
  return () => {};
};

const themeButton = (page) => {
  const button = byId("theme");
  const dark = () => (page.state.theme === "auto" ? matchMedia("(prefers-color-scheme: dark)").matches : page.state.theme === "dark");
  button.addEventListener("click", () => page.set({ theme: dark() ? "light" : "dark" }));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => page.redraw());
  return () => {
    document.documentElement.style.colorScheme = page.state.theme === "auto" ? "" : page.state.theme;
    button.textContent = dark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to ${dark() ? "light" : "dark"} colours`);
  };
};
