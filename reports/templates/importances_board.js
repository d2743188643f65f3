// The board: families, clusters and ten single columns of the chosen model.
(() => {
  const root = document.getElementById("importance-board");
  if (!importances || !root) return;
  const { data, make, model, partsOf, plain, fixed, code, swatch, bar, onModel } = importances;
  const find = (id) => document.getElementById(id);
  const interval = (low, high) => (low === null ? "no interval" : `${fixed(low, 3, true)} to ${fixed(high, 3, true)}`);
  const familyOf = (name) => partsOf(name).family;
  const count = (number) => `${number.toLocaleString("en")} ${number === 1 ? "column" : "columns"}`;
  const scaleOf = (rows, first) => {
    const values = rows.flatMap((row) => row.slice(first, first + 3)).filter((value) => value !== null);
    return [Math.min(0, ...values), Math.max(0, ...values)];
  };

  const familyRow = ([family, columns, value, low, high], scale, total) => {
    const row = make("li");
    const name = make("span", undefined, { class: "name" });
    const single = columns === 1 && !family.includes("_");
    name.append(swatch(family), plain(family), make("small", single ? "taken together" : count(columns)));
    const number = make("span", undefined, { class: "number" });
    number.append(`${fixed(value, 3, true)} · ${Math.round((100 * value) / total)} %`.replace("-", "−"),
      make("small", interval(low, high)));
    row.append(name, bar(scale, 0, value, data.colours[family] ?? "#808080", low, high), number);
    return row;
  };
  const clusterRow = ([leader, columns, value, low, high, members], scale) => {
    const row = make("li");
    const name = make("div", undefined, { class: "name" });
    const details = make("details");
    const summary = make("summary");
    summary.append(swatch(familyOf(leader)), plain(leader), make("small", `and ${count(columns - 1)} like it`));
    const list = make("ul", undefined, { class: "members" });
    for (const member of members) list.append(make("li", plain(member)));
    if (columns > members.length) list.append(make("li", `${count(columns - members.length)} more, in importance-model-clusters.csv`));
    details.append(summary, list);
    name.append(details);
    const number = make("span", undefined, { class: "number" });
    number.append(fixed(value, 3, true), make("small", interval(low, high)));
    row.append(name, bar(scale, 0, value, data.colours[familyOf(leader)] ?? "#808080", low, high), number);
    return row;
  };

  const directions = { 1: ["▲", "More: tumour"], "-1": ["▼", "More: no tumour"], 0: ["◆", "No clear direction"] };
  const thumbnails = (name) => {
    const place = make("span", undefined, { class: "thumbnails" });
    const shown = data.opened[name]?.shown;
    if (!shown) return place;
    for (const [word, [index]] of [["low", shown[0]], ["high", shown.at(-1)]]) {
      const figure = make("span", undefined, { class: "thumbnail" });
      figure.append(make("img", undefined, { src: data.patches[index].image, width: data.size[1], height: data.size[0],
        loading: "lazy", alt: `Patch where ${plain(name)} is ${word}` }), make("small", word));
      place.append(figure);
    }
    return place;
  };
  const columnRow = ([name, value, low, high, direction, first, last, ranked, trust, reasons], scale) => {
    const row = make("li", undefined, { "data-feature": name });
    const head = make("div", undefined, { class: "name" });
    const button = make("button", undefined, { type: "button", class: "feature", "aria-expanded": "false" });
    button.dataset.feature = name;
    button.append(swatch(familyOf(name)), plain(name));
    const [symbol, direct] = directions[direction];
    const way = make("small", undefined, { class: "direction" });
    way.append(make("span", symbol, { "aria-hidden": "true" }), ` ${direct}`);
    const unit = data.features[name]?.[1];
    const small = make("small");
    small.append(code(name), unit && unit !== "none" ? ` · ${unit}` : "");
    head.append(button, way, small);
    const number = make("div", undefined, { class: "number" });
    number.append(fixed(value, 3, true), make("small", interval(low, high)),
      make("small", first === null ? "no ranks over folds" : `rank ${first} to ${last} of ${ranked.toLocaleString("en")} over folds`));
    const badge = make("div", undefined, { class: `trust ${trust}` });
    badge.append(make("strong", `Trust: ${trust}`), ...reasons.map((reason) => make("small", reason)));
    row.append(head, bar(scale, 0, value, data.colours[familyOf(name)] ?? "#808080", low, high), number, thumbnails(name), badge);
    return row;
  };

  onModel(() => {
    const { board } = model();
    root.hidden = !board;
    if (!board) return;
    const families = scaleOf(board.families, 2);
    find("board-families").replaceChildren(...board.families.map((row) => familyRow(row, families, board.total)));
    const clusters = scaleOf(board.clusters, 2);
    find("board-clusters").replaceChildren(...board.clusters.map((row) => clusterRow(row, clusters)));
    find("board-clusters-rest").textContent = board.clustered > board.clusters.length
      ? `The ${board.clusters.length} leading of ${board.clustered} clusters. Each is named after its most typical column.`
      : board.clustered ? "" : "No two columns are strongly correlated.";
    const columns = scaleOf(board.columns, 1);
    importances.release?.();
    find("board-columns").replaceChildren(...board.columns.map((row) => columnRow(row, columns)));
  });
  find("board-columns").addEventListener("click", ({ target }) => {
    const button = target.closest("button.feature");
    if (button) importances.toggle(button, button.closest("li"));
  });
})();
