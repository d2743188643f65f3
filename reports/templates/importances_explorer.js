// The searchable table of features, and the panel that opens below a row of the table or of the board.
(() => {
  const root = document.getElementById("explorer");
  if (!importances || !root) return;
  const { data, make, model, partsOf, measured, plain, sentence, fixed, words, code, onModel } = importances;
  const { measures, features, opened, patches, size, box } = data;
  const find = (selector) => root.querySelector(selector);
  const section = document.getElementById("importances");
  const foldedRows = 10;
  const body = find("tbody");
  const head = find("thead tr");
  const all = find("button.all");
  const tip = find("#explorer-tip");
  const holder = find("#explorer-holder");
  const panel = find("#explorer-panel");
  const search = find("#explorer-find");
  const filters = [...root.querySelectorAll("select[data-part]")];
  let order = { column: null, down: true };
  let unfolded = false;
  let shown = null;
  let opener = null;

  const cellOf = (entry, measure, top) => {
    if (!entry) return make("td", "–", { class: "n" });
    const { sign, digits } = measures[measure];
    const [value, low, high] = entry;
    const cell = make("td", undefined, { class: "n bar" });
    const bar = make("i", undefined, { class: value < 0 ? "minus" : "plus" });
    bar.style.width = `${Math.min(100, (100 * Math.abs(value)) / top).toFixed(1)}%`;
    cell.append(bar, fixed(value, digits, sign));
    if (high !== undefined) cell.append(make("small", `${fixed(low, digits, sign)} to ${fixed(high, digits, sign)}`));
    else if (low !== undefined) cell.append(make("small", `± ${low.toFixed(digits)}`));
    return cell;
  };

  const rowOf = ([name, ...entries], tops) => {
    const row = make("tr", undefined, { "data-row": name });
    const cell = make("th", undefined, { scope: "row" });
    const button = make("button", plain(name), { type: "button", class: "feature", "aria-expanded": "false" });
    button.dataset.feature = name;
    cell.append(button);
    if (name.includes("_")) {
      const small = make("small");
      small.append(code(name));
      cell.append(small);
    }
    const { family, region, channel } = partsOf(name);
    row.append(cell, make("td", data.families[family] ?? family), make("td", region || "–"), make("td", channel || "–"));
    entries.forEach((entry, i) => row.append(cellOf(entry, model().measures[i], tops[i])));
    return row;
  };

  const searchable = (text) => ` ${text.toLowerCase().replace(/[-_,]/g, " ")} `;
  const texts = Object.fromEntries(Object.keys(features).map((name) => [name,
    searchable([name, plain(name), features[name][1], sentence(name), data.words[measured(name)]?.[1] ?? ""].join(" "))]));
  const matching = () => {
    const terms = searchable(search.value).split(/\s+/).filter(Boolean);
    return model().rows.filter(([name]) => {
      const parts = partsOf(name);
      return terms.every((term) => texts[name].includes(term))
        && filters.every((select) => !select.value || parts[select.dataset.part] === select.value);
    });
  };
  const valueOf = (row, column) => {
    if (column === 0) return plain(row[0]);
    if (column < 4) return partsOf(row[0])[["family", "region", "channel"][column - 1]];
    return row[column - 3] ? row[column - 3][0] : NaN;
  };
  const compare = (a, b) => {
    if (typeof a === "string") return a.localeCompare(b, "en", { numeric: true });
    return a - b;
  };
  const sorted = (rows) => {
    if (order.column === null) return rows;
    return [...rows].sort((first, second) => {
      const [a, b] = [valueOf(first, order.column), valueOf(second, order.column)];
      // Rows without a number come last in both directions.
      if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
      return order.down ? compare(b, a) : compare(a, b);
    });
  };

  const fill = () => {
    if (opener && body.contains(opener)) release();
    const rows = sorted(matching());
    const narrowed = rows.length < model().rows.length;
    const tops = model().measures.map((_, i) =>
      Math.max(...model().rows.filter(([name]) => name.includes("_")).map((row) => Math.abs(row[i + 1]?.[0] ?? 0))) || 1);
    body.replaceChildren(...(unfolded ? rows : rows.slice(0, foldedRows)).map((row) => rowOf(row, tops)));
    find(".count").textContent = narrowed ? `${rows.length} of ${model().rows.length}` : "";
    all.hidden = rows.length <= foldedRows;
    all.textContent = unfolded ? "Show fewer" : `Show all ${rows.length}`;
    const listed = model().rows.filter(([name]) => name.includes("_")).length;
    find(".rest").textContent = model().total > listed
      ? `The ${listed} leading features of ${model().total.toLocaleString("en")}. importances.csv has the rest.` : "";
    tip.hidden = true;
  };

  const headers = () => {
    const names = ["Feature", "Family", "Region", "Channel", ...model().measures.map((name) => measures[name].head)];
    head.replaceChildren(...names.map((name, column) => {
      const cell = make("th", undefined, { scope: "col", "aria-sort": "none" });
      const button = make("button", name, { type: "button" });
      button.addEventListener("click", () => {
        order = { column, down: order.column === column ? !order.down : column > 3 };
        for (const other of head.children) other.ariaSort = "none";
        cell.ariaSort = order.down ? "descending" : "ascending";
        fill();
      });
      cell.append(button);
      return cell;
    }));
  };

  const choose = () => {
    order = { column: null, down: true };
    for (const select of filters) {
      const kept = select.value;
      const values = [...new Set(model().rows.map(([name]) => partsOf(name)[select.dataset.part]))].filter(Boolean).sort();
      select.replaceChildren(make("option", "all", { value: "" }),
        ...values.map((value) => make("option", data.families[value] ?? value, { value })));
      select.value = values.includes(kept) ? kept : "";
    }
    headers();
    fill();
  };

  // Describe a feature while the pointer or the focus is on it.
  const explain = (button) => {
    if (!sentence(button.dataset.feature)) return;
    tip.textContent = sentence(button.dataset.feature);
    tip.hidden = false;
    const outer = root.getBoundingClientRect();
    const inner = button.getBoundingClientRect();
    const left = Math.min(inner.left - outer.left, outer.width - tip.offsetWidth);
    tip.style.left = `${Math.max(0, left)}px`;
    tip.style.top = `${inner.bottom - outer.top + 4}px`;
    button.setAttribute("aria-describedby", tip.id);
  };
  const silence = (button) => {
    tip.hidden = true;
    button.removeAttribute("aria-describedby");
  };
  for (const [event, act] of [["mouseover", explain], ["focusin", explain], ["mouseout", silence], ["focusout", silence]]) {
    body.addEventListener(event, ({ target }) => {
      const button = target.closest("button.feature");
      if (button) act(button);
    });
  }

  const dark = matchMedia("screen and (prefers-color-scheme: dark)");
  const pictures = (name) => {
    const percent = ["1st percentile", "median", "99th percentile"];
    return opened[name].shown.map(([index, value], i) => {
      const patch = patches[index];
      const item = make("li");
      const figure = make("figure");
      const frame = make("div", undefined, { class: "patch" });
      const image = make("img", undefined, {
        src: patch.image, width: 2 * size[1], height: 2 * size[0], alt: `Patch ${patch.id}, ${plain(name)} ${words(value)}`,
      });
      const square = make("span", undefined, { class: "box" });
      square.style.inset = `${box[0]}% ${box[1]}%`;
      frame.append(image, square);
      const caption = make("figcaption");
      caption.append(make("strong", words(value)), ` · ${percent[i]}`, make("br"),
        patch.label === 1 ? "positive" : "negative", patch.slide === null ? "" : ` · slide ${patch.slide}`,
        make("code", patch.id));
      if (importances.explainable?.(patch.id)) importances.attach(caption, patch.id, () => image);
      figure.append(frame, caption);
      item.append(figure);
      return item;
    });
  };
  // The chosen model's curve. The ensemble has none of its own: that of the member that uses the column is shown.
  const curveOf = (name) => {
    const { curves } = opened[name];
    const own = model().model;
    const member = curves[own] ? own : own === "ensemble" ? Object.keys(curves).find((each) => data.members.includes(each)) : null;
    return member ? { y: curves[member], words: data.modelWords[member] ?? member } : null;
  };
  const drawing = (name) => {
    const { bins: [x, share, low, high, count, slides], grid } = opened[name];
    const [blue, red] = [dark.matches ? "#56B4E9" : "#0072B2", "#D55E00"];
    const traces = [{
      type: "scatter", mode: "markers", name: "share of positives", x, y: share,
      error_y: { type: "data", symmetric: false, array: high.map((end, i) => end === null ? 0 : end - share[i]),
        arrayminus: low.map((end, i) => end === null ? 0 : share[i] - end), color: blue, thickness: 1.6, width: 0 },
      marker: { color: blue, size: 8 },
      text: count.map((patchesIn, i) => `${patchesIn} patches of ${slides[i]} slides`),
      hovertemplate: "%{y:.0%} positive at %{x}<br>%{text}<extra></extra>",
    }];
    const curve = curveOf(name);
    if (curve) traces.push({
      type: "scatter", mode: "lines", name: curve.words, x: grid, y: curve.y, line: { color: red, width: 2 },
      hovertemplate: "mean probability %{y:.3f} at %{x}<extra></extra>",
    });
    const unit = features[name][1];
    const axis = { zeroline: false, automargin: true };
    const layout = {
      margin: { l: 8, r: 12, t: 8, b: 12 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      hovermode: "closest", dragmode: false, height: 320, showlegend: true,
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom" },
      font: { size: 13, family: "system-ui, sans-serif" },
      xaxis: { ...axis, title: { text: `value of the feature${unit && unit !== "none" ? `, ${unit}` : ""}`, standoff: 8 } },
      yaxis: { ...axis, title: { text: "probability or share of positives", standoff: 8 }, rangemode: "tozero" },
    };
    return { traces, layout, curve };
  };
  let plot = null;
  const draw = (name) => {
    const { traces, layout, curve } = drawing(name);
    if (!plot) {
      plot = make("div", undefined, { class: "plot", role: "img" });
      panel.querySelector(".curve").append(plot);
    }
    const [, share] = opened[name].bins;
    const percent = (value) => `${Math.round(100 * value)} %`;
    plot.setAttribute("aria-label", `Share of positives from ${percent(share[0])} where ${plain(name)} is lowest to `
      + `${percent(share.at(-1))} where it is highest`
      + (curve ? `; mean probability of ${curve.words} from ${percent(curve.y[0])} to ${percent(curve.y.at(-1))}.` : "."));
    Plotly.react(plot, traces, layout, { responsive: true, displaylogo: false, modeBarButtons: [["toImage"]] });
    panel.querySelector(".explanation").textContent = "The rank of each patch differs from its percentile by at most half a per cent of the patches. "
      + "Dots: share of positives in deciles of the feature, with 95 % intervals from resampling slides. " + (curve ? "Line: mean probability when the feature is set to this value in every patch and all other features stay the same."
        : "This model does not use this feature as a single column.");
  };

  const fillPanel = (name) => {
    const part = (selector) => panel.querySelector(selector);
    const [, unit, , ...levels] = features[name];
    part("#explorer-name").textContent = plain(name);
    part(".code").hidden = !name.includes("_");
    part(".code code").replaceChildren(...code(name).childNodes);
    part(".unit").textContent = unit && unit !== "none" ? `unit: ${unit}` : "";
    part(".sentence").textContent = sentence(name);
    part(".percentiles").textContent = levels.length
      ? `1st percentile ${words(levels[0])}, median ${words(levels[1])}, 99th percentile ${words(levels[2])}.` : "";
    const detailed = Object.hasOwn(opened, name);
    part(".shown").replaceChildren(...(detailed ? pictures(name) : []));
    part(".curve").hidden = !detailed;
    if (detailed) draw(name);
    else part(".explanation").textContent = name.includes("_") ? "Pictures and curves are available for the features that lead any measure or board." : "";
  };
  // Put the panel directly below the row that opened it.
  const place = (row) => {
    document.getElementById("explorer-row")?.remove();
    if (row.matches("tr")) {
      const line = make("tr", undefined, { id: "explorer-row" });
      const cell = make("td", undefined, { colspan: row.children.length });
      cell.append(panel);
      line.append(cell);
      row.after(line);
      panel.style.width = `${root.querySelector(".scroll").clientWidth - 4}px`;
    } else {
      panel.style.width = "";
      row.append(panel);
    }
  };
  const release = () => {
    if (opener) opener.setAttribute("aria-expanded", "false");
    opener = null;
    shown = null;
    panel.style.width = "";
    holder.append(panel);
    document.getElementById("explorer-row")?.remove();
  };
  const toggle = (button, row) => {
    const same = opener === button;
    release();
    if (same) return;
    shown = button.dataset.feature;
    opener = button;
    button.setAttribute("aria-expanded", "true");
    place(row);
    fillPanel(shown);
    panel.querySelector("#explorer-name").focus({ preventScroll: true });
    panel.scrollIntoView({ block: "nearest" });
  };
  const close = () => {
    const button = opener;
    release();
    button?.focus();
  };
  body.addEventListener("click", ({ target }) => {
    const button = target.closest("button.feature");
    if (!button) return;
    silence(button);
    toggle(button, button.closest("tr"));
  });
  panel.querySelector("button.close").addEventListener("click", close);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    if (!tip.hidden) tip.hidden = true;
    else if (opener && section.contains(document.activeElement)) close();
  });
  dark.addEventListener("change", () => { if (shown && Object.hasOwn(opened, shown)) draw(shown); });
  const fit = (layout) => { if (plot && opener) Plotly.relayout(plot, layout); };
  addEventListener("beforeprint", () => fit({ width: 660, autosize: false }));
  addEventListener("afterprint", () => fit({ width: null, autosize: true }));
  addEventListener("resize", () => { if (opener) place(opener.closest("tr, li")); });

  importances.toggle = toggle;
  importances.release = release;
  for (const control of [search, ...filters]) control.addEventListener("input", fill);
  all.addEventListener("click", () => { unfolded = !unfolded; fill(); });
  onModel(choose);
})();
