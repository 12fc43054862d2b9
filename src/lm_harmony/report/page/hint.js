// The tooltip of a score on hover, tap or focus: both preparations with standard errors, and the rank range.

const makeHint = (page) => {
  const hint = byId("hint");
  let described = null;
  const hide = () => {
    hint.hidden = true;
    described?.removeAttribute("aria-describedby");
    described = null;
  };
  const show = (cell) => {
    hide();
    described = cell;
    cell.setAttribute("aria-describedby", "hint");
    const [i, j] = cell.dataset.cell.split(" ").map(Number);
    hint.replaceChildren(...hintLines(page, i, j));
    hint.hidden = false;
    const at = cell.getBoundingClientRect();
    const { width, height } = hint.getBoundingClientRect();
    const limit = document.documentElement.clientWidth;
    const above = at.top - height - 6;
    hint.style.left = `${Math.max(8, Math.min(at.left + at.width / 2 - width / 2, limit - width - 8))}px`;
    hint.style.top = `${above > 8 ? above : at.bottom + 6}px`;
  };
  const region = byId("board-region");
  // A phone has no pointer that leaves a cell: a touch outside the cells, on the cell itself, or scrolling closes the hint.
  document.addEventListener("pointerdown", (event) => {
    const cell = event.target.closest?.("td")?.querySelector("[data-cell]") ?? null;
    if (!cell || (event.pointerType === "touch" && cell === described)) hide();
  });
  // A cell that the keyboard has moved to scrolls into view, and keeps its hint.
  const scrolled = () => { if (described && described === document.activeElement) show(described); else hide(); };
  addEventListener("scroll", scrolled, { passive: true, capture: true });
  region.addEventListener("mouseover", (event) => {
    const cell = event.target.closest("td")?.querySelector("[data-cell]");
    if (cell) show(cell); else hide();
  });
  region.addEventListener("mouseleave", hide);
  region.addEventListener("focusin", (event) => { if (event.target.dataset.cell) show(event.target); });
  region.addEventListener("focusout", hide);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  region.addEventListener("keydown", (event) => moveCell(event));
};

// Arrow keys move the focus between cells. Enter on the scrollable region moves it to the first cell.
const moveCell = (event) => {
  const from = document.activeElement;
  const region = byId("board-region");
  if (from === region && event.key === "Enter") return focusCell(region.querySelector("tbody [data-cell]"), event);
  const td = from?.dataset?.cell ? from.closest("td") : null;
  if (!td) return undefined;
  const row = td.parentElement;
  const place = [...row.cells].indexOf(td);
  const next = { ArrowLeft: row.cells[place - 1], ArrowRight: row.cells[place + 1], ArrowUp: row.previousElementSibling?.cells[place],
    ArrowDown: row.nextElementSibling?.cells[place] }[event.key];
  return next ? focusCell(next.querySelector("[data-cell]"), event) : undefined;
};

const focusCell = (cell, event) => {
  if (!cell) return;
  event.preventDefault();
  cell.tabIndex = -1;
  cell.focus({ preventScroll: true });
  cell.scrollIntoView({ block: "nearest", inline: "nearest" });
};

const hintLines = (page, i, j) => {
  const benchmark = board.benchmarks[j];
  const lines = [element("b", {}, element("bdi", { text: board.models[i].name })), element("span", { text: `${benchmark.title}, ${benchmark.metric}` })];
  for (const view of [...board.preparations].reverse()) {
    const held = board.views[view];
    const value = held.scores[i][j];
    const stderr = held.stderrs?.[i][j] ?? null;
    // One digit more than in the table, so that standard errors have enough digits.
    const digits = benchmark.digits + 1;
    const error = stderr === null ? ", standard error unknown" : ` ± ${fixed(stderr * benchmark.factor, digits)}`;
    const count = held.counts?.[i][j] ?? null;
    const of = count === null ? "" : ` of ${counted(count, "example")}`;
    lines.push(element("span", { text: value === null ? `${viewText(view)}: ${held.causes?.[`${i} ${j}`] ?? "not measured"}` : `${viewText(view)} ${fixed(value * benchmark.factor, digits)}${error}${of}` }));
    const apart = value === null ? null : held.without_near_duplicates?.[`${i} ${j}`] ?? null;
    if (apart !== null) {
      const [part, partError, rows] = apart;
      const spread = partError === null ? "" : ` ± ${fixed(partError * benchmark.factor, digits)}`;
      lines.push(element("span", { text: `without near duplicates ${fixed(part * benchmark.factor, digits)}${spread} of ${counted(rows, "example")}` }));
    }
    if (value !== null && view === page.derived.view && held.rank_low) {
      const [low, high] = [held.rank_low[i][j], held.rank_high[i][j]];
      if (low !== null) lines.push(element("span", { text: low === high ? `rank ${low}` : `rank between ${low} and ${high}` }));
    }
  }
  const gain = board.has("gain") ? scoresOfGain(i, j) : null;
  if (gain !== null) lines.push(element("span", { text: `gain ${signed(gain * benchmark.factor, benchmark.digits + 1)}` }));
  return lines;
};

const scoresOfGain = (i, j) => {
  const [after, before] = [board.views.trained.scores[i][j], board.views.direct.scores[i][j]];
  if (after === null || before === null) return null;
  return board.benchmarks[j].higher ? after - before : before - after;
};
