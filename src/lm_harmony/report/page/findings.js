// What the agreement is made of: measured agreement beside the noise ceiling, and the preparedness audit.

const showFindings = () => {
  const rows = ceilingRows();
  const views = board.preparations;
  byId("ceiling").hidden = rows.length === 0;
  if (rows.length) byId("ceiling").append(
    element("table", { class: "facts" },
      element("thead", {}, element("tr", {}, element("th", { scope: "col", text: "All models" }), ...views.map((view) => element("th", { scope: "col", text: viewText(view) })))),
      element("tbody", {}, ...rows.map(([title, of]) => element("tr", {}, element("th", { scope: "row", text: title }),
        ...views.map((view) => element("td", { text: of(view) ?? "–" })))))),
    element("p", { class: "note", text: ceilingNote() }));
  byId("audit").hidden = !board.audit;
  if (board.audit) byId("audit").append(...auditLines(board.audit));
  byId("findings").hidden = rows.length === 0 && !board.audit;
};

const ceilingRows = () => {
  const ceiling = (name, show) => (view) => (board.ceilings[view]?.[name] == null ? null : show(board.ceilings[view][name]));
  const two = (value) => fixed(value, 2);
  return [
    ["Mean Kendall’s τ between benchmarks", ceiling("tau", two)],
    ["Noise ceiling: τ that test noise allows", ceiling("ceiling", two)],
    ["Measured share of the ceiling", ceiling("share", (share) => `${Math.round(100 * share)}%`)],
    ["Variance explained by PC1", (view) => { const shares = board.views[view].components?.explained; return shares ? percent(shares[0]) : null; }],
  ].filter(([, of]) => board.preparations.some((view) => of(view) !== null));
};

const ceilingNote = () => {
  const [known] = Object.values(board.ceilings);
  const of = known ? ` The first three rows are of the ${counted(known.benchmarks, "benchmark")} with standard errors, and of the models that have all these scores.` : "";
  return `τ is 1 if two benchmarks order all models alike, and about 0 if their orders are unrelated. Because each has a limited number of test questions, even benchmarks with the same true order would not reach 1.${of}`;
};

const auditLines = ({ flagged, flips, leads }) => [
  element("h3", { text: "Preparedness audit" }),
  element("p", { class: "note", text: "Models whose direct rank is better than their trained rank by more than the errors of both ranks explain (1.96 standard errors of the difference). The direct ranking favours them, for example because they have practised such tasks or formats." }),
  flagged.length
    ? element("ul", { class: "flagged" }, ...flagged.map(([i, direct, trained]) => element("li", {}, nameElement(board.models[i].name), ` rank ${direct} → ${trained}`)))
    : element("p", { text: "No model is flagged." }),
  element("p", { class: "note", text: `${percent(flips)} of the pairs of models change their order by PC1 after training.${leads ? ` The instruct model leads its base model in ${Math.round(100 * leads.direct)}% of ${counted(leads.pairs, "pair")} directly, and in ${Math.round(100 * leads.trained)}% after training.` : ""}` }),
];
