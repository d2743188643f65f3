(() => {
  const source = document.getElementById("data-importances");
  const root = document.getElementById("explorer");
  if (!source || !root) return;
  const { measures, models, features, opened, patches, size, box } = JSON.parse(source.textContent).explorer;
  const find = (selector) => root.querySelector(selector);
  // Data are inserted as text, never as markup.
  const make = (tag, text, attributes = {}) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const foldedRows = 15;
  const body = find("tbody");
  const head = find("thead tr");
  const all = find("button.all");
  const tip = find("#explorer-tip");
  const panel = find("#explorer-panel");
  const chooser = find("#explorer-model");
  const search = find("#explorer-find");
  const filters = [...root.querySelectorAll("select[data-part]")];
  let model = models[0];
  let order = { column: null, down: true };
  let unfolded = false;
  let shown = null;

  const partsOf = (name) => {
    const [family, , channel = "", region = ""] = name.split("_");
    return { family, channel, region };
  };
  const fixed = (value, digits, sign) =>
    (sign && value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(digits);

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
    const row = make("tr");
    const cell = make("th", undefined, { scope: "row" });
    const button = make("button", undefined, { type: "button", class: "feature", "aria-expanded": name === shown });
    const code = make("code");
    name.split("_").forEach((part, i) => code.append(...(i ? ["_", make("wbr")] : []), part));
    button.append(code);
    button.dataset.feature = name;
    cell.append(button);
    const { family, region, channel } = partsOf(name);
    row.append(cell, make("td", family), make("td", region || "–"), make("td", channel || "–"));
    entries.forEach((entry, i) => row.append(cellOf(entry, model.measures[i], tops[i])));
    return row;
  };

  const matching = () => {
    const terms = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    return model.rows.filter(([name]) => {
      const text = `${name} ${features[name][0]}`.toLowerCase();
      const parts = partsOf(name);
      return terms.every((term) => text.includes(term))
        && filters.every((select) => !select.value || parts[select.dataset.part] === select.value);
    });
  };
  const valueOf = (row, column) => {
    if (column === 0) return row[0];
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
    const rows = sorted(matching());
    const narrowed = rows.length < model.rows.length;
    const tops = model.measures.map((_, i) =>
      Math.max(...model.rows.filter(([name]) => name.includes("_")).map((row) => Math.abs(row[i + 1]?.[0] ?? 0))) || 1);
    body.replaceChildren(...(unfolded ? rows : rows.slice(0, foldedRows)).map((row) => rowOf(row, tops)));
    find(".count").textContent = narrowed ? `${rows.length} of ${model.rows.length}` : "";
    all.hidden = rows.length <= foldedRows;
    all.textContent = unfolded ? "Show fewer" : `Show all ${rows.length}`;
    const listed = model.rows.filter(([name]) => name.includes("_")).length;
    find(".rest").textContent = model.total > listed
      ? `The ${listed} leading features of ${model.total}. importances.csv has the rest.` : "";
    tip.hidden = true;
  };

  const headers = () => {
    const names = ["Feature", "Family", "Region", "Channel", ...model.measures.map((name) => measures[name].head)];
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
    model = models[Number(chooser.value)];
    order = { column: null, down: true };
    for (const select of filters) {
      const kept = select.value;
      const values = [...new Set(model.rows.map(([name]) => partsOf(name)[select.dataset.part]))].filter(Boolean).sort();
      select.replaceChildren(make("option", "all", { value: "" }), ...values.map((value) => make("option", value, { value })));
      select.value = values.includes(kept) ? kept : "";
    }
    headers();
    fill();
    if (shown) open(shown);
  };

  // Describe a feature while the pointer or the focus is on it.
  const explain = (button) => {
    const [sentence] = features[button.dataset.feature];
    if (!sentence) return;
    tip.textContent = sentence;
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
  const words = (value) => Number(value.toPrecision(4)).toString().replace("-", "−");
  const pictures = (name) => {
    const percent = ["1st percentile", "median", "99th percentile"];
    return opened[name].shown.map(([index, value], i) => {
      const patch = patches[index];
      const item = make("li");
      const figure = make("figure");
      const frame = make("div", undefined, { class: "patch" });
      frame.append(make("img", undefined, {
        src: patch.image, width: 2 * size[1], height: 2 * size[0], alt: `Patch ${patch.id}, ${name} ${words(value)}`,
      }));
      const square = make("span", undefined, { class: "box" });
      square.style.inset = `${box[0]}% ${box[1]}%`;
      frame.append(square);
      const caption = make("figcaption");
      caption.append(make("strong", words(value)), ` · ${percent[i]}`, make("br"),
        patch.label === 1 ? "positive" : "negative", patch.slide === null ? "" : ` · slide ${patch.slide}`,
        make("code", patch.id, { title: patch.id }));
      figure.append(frame, caption);
      item.append(figure);
      return item;
    });
  };
  const drawing = (name) => {
    const { bins: [x, share, low, high, count, slides], grid, curves } = opened[name];
    const [blue, red] = [dark.matches ? "#56B4E9" : "#0072B2", "#D55E00"];
    const data = [{
      type: "scatter", mode: "markers", name: "share of positives", x, y: share,
      error_y: { type: "data", symmetric: false, array: high.map((end, i) => end === null ? 0 : end - share[i]),
        arrayminus: low.map((end, i) => end === null ? 0 : share[i] - end), color: blue, thickness: 1.6, width: 0 },
      marker: { color: blue, size: 8 },
      text: count.map((patchesIn, i) => `${patchesIn} patches of ${slides[i]} slides`),
      hovertemplate: "%{y:.0%} positive at %{x}<br>%{text}<extra></extra>",
    }];
    const curve = curves[model.model];
    if (curve) data.push({
      type: "scatter", mode: "lines", name: model.words, x: grid, y: curve, line: { color: red, width: 2 },
      hovertemplate: "mean probability %{y:.3f} at %{x}<extra></extra>",
    });
    const axis = { zeroline: false, automargin: true };
    const layout = {
      margin: { l: 8, r: 12, t: 8, b: 12 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      hovermode: "closest", dragmode: false, height: 320, showlegend: true,
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom" },
      font: { size: 13, family: "system-ui, sans-serif" },
      xaxis: { ...axis, title: { text: "value of the feature", standoff: 8 } },
      yaxis: { ...axis, title: { text: "probability or share of positives", standoff: 8 }, rangemode: "tozero" },
    };
    return { data, layout, curve };
  };
  let plot = null;
  const draw = (name) => {
    const { data, layout, curve } = drawing(name);
    if (!plot) {
      plot = make("div", undefined, { class: "plot", role: "img" });
      find(".curve").append(plot);
    }
    const [, share] = opened[name].bins;
    const percent = (value) => `${Math.round(100 * value)} %`;
    plot.setAttribute("aria-label", `Share of positives from ${percent(share[0])} where ${name} is lowest to `
      + `${percent(share.at(-1))} where it is highest`
      + (curve ? `; mean probability of ${model.words} from ${percent(curve[0])} to ${percent(curve.at(-1))}.` : "."));
    Plotly.react(plot, data, layout, { responsive: true, displaylogo: false, modeBarButtons: [["toImage"]] });
    find(".explanation").textContent = "The rank of each patch differs from its percentile by at most half a per cent of the patches. "
      + "Dots: share of positives in deciles of the feature, with 95 % intervals from resampling slides. " + (curve ? "Line: mean probability when the feature is set to this value in every patch and all other features stay the same."
        : "This model does not use this feature as a single column.");
  };

  const open = (name) => {
    shown = name;
    const [sentence, ...levels] = features[name];
    find("#explorer-name").textContent = name;
    find(".sentence").textContent = sentence;
    find(".percentiles").textContent = levels.length
      ? `1st percentile ${words(levels[0])}, median ${words(levels[1])}, 99th percentile ${words(levels[2])}.` : "";
    const detailed = Object.hasOwn(opened, name);
    find(".shown").replaceChildren(...(detailed ? pictures(name) : []));
    find(".curve").hidden = !detailed;
    panel.hidden = false;
    if (detailed) draw(name);
    else find(".explanation").textContent = "Pictures and curves are available for the features that rank highest in any measure.";
    for (const button of body.querySelectorAll("button.feature")) {
      button.setAttribute("aria-expanded", button.dataset.feature === name);
    }
  };
  const close = () => {
    const name = shown;
    shown = null;
    panel.hidden = true;
    const button = [...body.querySelectorAll("button.feature")].find((each) => each.dataset.feature === name);
    if (!button) return;
    button.setAttribute("aria-expanded", "false");
    button.focus();
  };
  body.addEventListener("click", ({ target }) => {
    const button = target.closest("button.feature");
    if (!button) return;
    silence(button);
    open(button.dataset.feature);
    find("#explorer-name").focus({ preventScroll: true });
    panel.scrollIntoView({ block: "nearest" });
  });
  find("button.close").addEventListener("click", close);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (!tip.hidden) tip.hidden = true;
    else if (shown && root.contains(document.activeElement)) close();
  });
  dark.addEventListener("change", () => { if (shown && Object.hasOwn(opened, shown)) draw(shown); });
  const fit = (layout) => { if (plot && !panel.hidden) Plotly.relayout(plot, layout); };
  addEventListener("beforeprint", () => fit({ width: 660, autosize: false }));
  addEventListener("afterprint", () => fit({ width: null, autosize: true }));

  chooser.addEventListener("change", choose);
  for (const control of [search, ...filters]) control.addEventListener("input", fill);
  all.addEventListener("click", () => { unfolded = !unfolded; fill(); });
  choose();

  // Show only the patch of the chosen waterfall. Print all patches.
  const cases = document.querySelector("#importances .cases");
  const picked = cases && cases.querySelector("figure.chart select");
  if (picked) {
    const cards = [...cases.querySelectorAll(".gallery li")];
    const show = () => cards.forEach((card, i) => card.classList.toggle("chosen", i === Number(picked.value)));
    cases.classList.add("one");
    picked.addEventListener("change", show);
    show();
  }
})();
