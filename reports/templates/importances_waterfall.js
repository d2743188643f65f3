// Waterfalls that can be expanded: families, then clusters or columns, then the columns of a cluster.
(() => {
  if (!importances) return;
  const { data, make, model, plain, fixed, swatch, bar, onModel } = importances;
  const names = Object.keys(data.features);
  const probability = (odds) => 1 / (1 + Math.exp(-odds));
  const count = (number, kind = "") => `${number.toLocaleString("en")} ${kind}${number === 1 ? "column" : "columns"}`;

  const sum = (rows, at) => rows.reduce((total, row) => total + row[at], 0);
  const table = ([base, families, kind], words, caption) => {
    const total = base + sum(families, 2);
    // Every start and end, for the common scale.
    const stops = [base];
    for (const [, , value] of families) stops.push(stops.at(-1) + value);
    const room = 0.03 * (Math.max(...stops) - Math.min(...stops) || 1);
    const scale = [Math.min(...stops) - room, Math.max(...stops) + room];
    const element = make("table", undefined, { class: "waterfall" });
    element.append(make("caption", caption));
    const head = make("thead");
    const headings = make("tr");
    for (const text of ["Feature", "Log-odds", "Adds"]) headings.append(make("th", text, { scope: "col" }));
    head.append(headings);
    const body = make("tbody");
    const colour = (value) => (value < 0 ? "var(--down)" : "var(--up)");
    const row = (label, start, value, level, children, family) => {
      const line = make("tr", undefined, { "data-level": level });
      const name = make("th", undefined, { scope: "row" });
      const cell = make("td");
      cell.append(bar(scale, start, start + value, colour(value)));
      line.append(name, cell, make("td", fixed(value, 3, true), { class: "n" }));
      if (family) name.append(swatch(family));
      if (!children.length) {
        name.append(label);
        return [line];
      }
      const button = make("button", label, { type: "button", class: "unfold", "aria-expanded": "false" });
      name.append(button);
      const hide = (lines) => lines.forEach(([first, ...rest]) => {
        first.hidden = true;
        const inside = first.querySelector("button.unfold");
        if (inside) inside.setAttribute("aria-expanded", "false");
        rest.forEach((each) => { each.hidden = true; });
      });
      const below = [];
      let at = start;
      for (const [text, change, inner, own] of children) {
        below.push(row(text, at, change, level + 1, inner, own));
        at += change;
      }
      hide(below);
      button.addEventListener("click", () => {
        const open = button.getAttribute("aria-expanded") === "true";
        button.setAttribute("aria-expanded", String(!open));
        if (open) hide(below);
        else below.forEach(([first]) => { first.hidden = false; });
      });
      return [line, ...below.flat()];
    };
    const columnsOf = (columns) => columns.map(([index, value]) =>
      [index < 0 ? count(-index, "more ") : plain(names[index]), value, []]);
    const groupsOf = (groups) => groups.map(([index, columns, value, members]) => {
      if (index < 0) return [count(columns, "more "), value, []];
      const name = plain(names[index]);
      return members ? [`${name} and ${count(columns - 1)} like it`, value, columnsOf(members)] : [name, value, []];
    });
    const mark = (label, value, note) => {
      const line = make("tr", undefined, { class: "end" });
      const cell = make("td");
      cell.append(bar(scale, value, value, "var(--ink)"));
      const name = make("th", label, { scope: "row" });
      if (note) name.append(make("small", note));
      line.append(name, cell, make("td", fixed(value, 3, true), { class: "n" }));
      return line;
    };
    body.append(mark("Base value", base, "without any feature"));
    let at = base;
    for (const [family, columns, value, groups] of families) {
      const label = columns === 1 ? plain(family) : `${plain(family)}, ${count(columns)}`;
      body.append(...row(label, at, value, 0, groupsOf(groups), family));
      at += value;
    }
    body.append(mark("This patch", total, `probability ${probability(total).toFixed(3)}`));
    element.append(head, body);
    const scroll = make("div", undefined, { class: "scroll", tabindex: "0", role: "region", "aria-label": caption });
    scroll.append(element);
    const parts = [scroll];
    if (kind === "fold") parts.push(make("p", `Explained by the fits of ${words} that did not see the patch’s slide.`, { class: "note" }));
    return parts;
  };

  const target = document.getElementById("importance-waterfall");
  const picked = document.getElementById("importance-case");
  if (target && picked) {
    const cards = [...document.querySelectorAll("#importances .cases .gallery li")];
    const show = () => {
      cards.forEach((card, i) => card.classList.toggle("chosen", i === picked.selectedIndex));
      const tree = data.trees[model().model]?.[picked.value];
      const words = picked.options[picked.selectedIndex].text;
      target.replaceChildren(...(tree ? table(tree, model().words, `${words}: contributions in ${model().words}`)
        : [make("p", `Not available for ${model().words}.`, { class: "note" })]));
    };
    picked.addEventListener("change", show);
    onModel(show);
  }

  // Buttons beside the pictures of other sections, which explain the best model's score in a dialog.
  const trees = data.trees[data.best] ?? {};
  const best = data.models.find((each) => each.model === data.best)?.words;
  const dialog = make("dialog", undefined, { class: "explain", "aria-labelledby": "explain-title" });
  const close = make("button", "×", { type: "button", class: "close", "aria-label": "Close" });
  const title = make("h2", "", { id: "explain-title" });
  const picture = make("div", undefined, { class: "picture" });
  const content = make("div");
  dialog.append(close, title, picture, content);
  close.addEventListener("click", () => dialog.close());
  const explain = (id, image) => {
    title.textContent = `Why patch ${id.slice(0, 12)}${id.length > 12 ? "…" : ""} got its score`;
    const copy = image ? image.cloneNode() : null;
    if (copy) copy.removeAttribute("loading");
    picture.replaceChildren(...(copy ? [copy] : []));
    content.replaceChildren(...table(trees[id], best, `Contributions in ${best}`));
    dialog.showModal();
  };
  let buttons = 0;
  const attach = (place, id, image) => {
    const button = make("button", "Explain", { type: "button", class: "explain", "aria-label": `Explain the score of patch ${id}` });
    button.addEventListener("click", () => explain(id, image()));
    place.append(button);
    buttons += 1;
  };
  for (const label of document.querySelectorAll("main figcaption code[title]")) {
    const id = label.getAttribute("title");
    if (Object.hasOwn(trees, id)) attach(label.parentElement, id, () => label.closest("figure")?.querySelector(".patch img:not(.heat)"));
  }
  importances.explainable = (id) => Object.hasOwn(trees, id);
  importances.attach = attach;
  if (Object.keys(trees).length) document.body.append(dialog);
})();
