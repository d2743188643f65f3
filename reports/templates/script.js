"use strict";
(() => {
  const config = {
    responsive: true,
    displaylogo: false,
    modeBarButtons: [["toImage"]],
    scrollZoom: false,
  };
  const plots = [];

  const dark = matchMedia("screen and (prefers-color-scheme: dark)");
  // Blue and brown are too dark for a dark page. Blue becomes Okabe and Ito's sky blue, and sky blue and brown become paler.
  const bright = { "#0072B2": "#56B4E9", "#56B4E9": "#C5E6F8", "#8C510A": "#C9935A" };
  const paint = (text) => JSON.parse(dark.matches ? text.replace(/#0072B2|#56B4E9|#8C510A/g, (colour) => bright[colour]) : text);

  for (const figure of document.querySelectorAll("figure[data-figure]")) {
    const target = figure.querySelector(".plot");
    const select = figure.querySelector("select");
    const text = figure.querySelector('script[type="application/json"]').textContent;
    const draw = () => {
      const { data, layout } = paint(text)[select ? Number(select.value) : 0];
      Plotly.react(target, data, layout, config);
    };
    draw();
    plots.push(target);
    if (select) select.addEventListener("change", draw);
    dark.addEventListener("change", draw);
  }

  const fit = (width) => {
    for (const plot of plots) Plotly.relayout(plot, width ? { width, autosize: false } : { width: null, autosize: true });
  };
  const open = new Set();
  addEventListener("beforeprint", () => {
    fit(660);
    // Details inside table rows, such as 133 names, stay closed: the CSV files have them.
    for (const details of document.querySelectorAll("details:not([open]):not(td details, th details)")) {
      open.add(details);
      details.open = true;
    }
  });
  addEventListener("afterprint", () => {
    fit(null);
    for (const details of open) details.open = false;
    open.clear();
  });

  // A chart in closed details has no width, so it is fitted when the details open.
  addEventListener("toggle", (event) => {
    for (const plot of event.target.open ? event.target.querySelectorAll(".plot") : []) Plotly.Plots.resize(plot);
  }, true);

  const value = (cell, kind) => {
    const raw = cell.dataset.value ?? cell.textContent.trim();
    if (kind === "text") return raw;
    return raw === "" ? NaN : Number(raw);
  };
  const compare = (a, b, sign) => {
    if (typeof a === "string") return sign * a.localeCompare(b, "en", { numeric: true });
    // Rows without a number come last in both directions.
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return sign * (a - b);
  };
  for (const button of document.querySelectorAll(".sortable th button")) {
    button.addEventListener("click", () => {
      const header = button.closest("th");
      const { kind } = button.dataset;
      const next = header.ariaSort === "none" ? (kind === "number" ? "descending" : "ascending")
        : header.ariaSort === "ascending" ? "descending" : "ascending";
      for (const other of header.parentElement.children) other.ariaSort = "none";
      header.ariaSort = next;
      const body = header.closest("table").tBodies[0];
      const column = header.cellIndex;
      const sign = next === "ascending" ? 1 : -1;
      const rows = [...body.rows].map((row) => [value(row.cells[column], kind), row]);
      rows.sort((a, b) => compare(a[0], b[0], sign));
      body.append(...rows.map(([, row]) => row));
    });
  }
})();
