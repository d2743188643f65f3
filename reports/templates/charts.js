"use strict";
(() => {
  const config = {
    responsive: true,
    displaylogo: false,
    modeBarButtons: [["toImage"]],
    scrollZoom: false,
  };

  const dark = matchMedia("screen and (prefers-color-scheme: dark)");
  // Blue and brown are too dark for a dark page. Blue becomes Okabe and Ito's sky blue, and sky blue and brown become paler.
  const bright = { "#0072B2": "#56B4E9", "#56B4E9": "#C5E6F8", "#8C510A": "#C9935A" };
  const paint = (text) => JSON.parse(dark.matches ? text.replace(/#0072B2|#56B4E9|#8C510A/g, (colour) => bright[colour]) : text);

  const figures = [...document.querySelectorAll("figure[data-figure]")];
  const plots = new Map();
  const draw = (figure) => {
    const target = figure.querySelector(".plot");
    const select = figure.querySelector("select");
    const text = figure.querySelector('script[type="application/json"]').textContent;
    const { data, layout } = paint(text)[select ? Number(select.value) : 0];
    Plotly.react(target, data, layout, config);
    // Until then the page keeps the space of the first variant free.
    target.style.minHeight = "";
    plots.set(figure, target);
  };
  for (const figure of figures) figure.querySelector("select")?.addEventListener("change", () => draw(figure));
  dark.addEventListener("change", () => [...plots.keys()].forEach(draw));

  // Of many charts, the first are drawn at once and the others when they come near the window or the browser is idle.
  const atOnce = figures.length > 8 ? 2 : figures.length;
  const drawMissing = (figure) => plots.has(figure) || draw(figure);
  figures.slice(0, atOnce).forEach(draw);
  const idle = window.requestIdleCallback ?? ((callback) => setTimeout(callback, 50));
  const drawRest = () => {
    const next = figures.find((figure) => !plots.has(figure));
    if (!next) return;
    draw(next);
    idle(drawRest);
  };
  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      drawMissing(target);
    }
  }, { rootMargin: "50% 0px" });
  figures.slice(atOnce).forEach((figure) => near.observe(figure));
  idle(drawRest);
  // A chart that was drawn inside closed details does not know its width.
  document.addEventListener("toggle", ({ target }) => {
    if (!target.open) return;
    for (const [figure, plot] of plots) if (target.contains(figure)) Plotly.Plots.resize(plot);
  }, true);

  const fit = (width) => {
    for (const plot of plots.values()) Plotly.relayout(plot, width ? { width, autosize: false } : { width: null, autosize: true });
  };
  // Details that are closed stay closed on paper: they are many pages, and the CSV files have their numbers.
  addEventListener("beforeprint", () => {
    figures.forEach(drawMissing);
    fit(660 / 0.7); // the scale of charts on paper: style.css
  });
  addEventListener("afterprint", () => fit(null));
})();
