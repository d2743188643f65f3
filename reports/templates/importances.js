// State and helpers that the parts of the Importances section share.
const importances = (() => {
  const source = document.getElementById("data-importances");
  const chooser = document.getElementById("importance-model");
  if (!source || !chooser) return null;
  const data = JSON.parse(source.textContent).explorer;
  const section = document.getElementById("importances");
  const listeners = [];
  // Data are inserted as text, never as markup.
  const make = (tag, text, attributes = {}) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const model = () => data.models[Number(chooser.value)];
  const partsOf = (name) => {
    const [family, , channel = "", region = ""] = name.split("_");
    return { family, channel, region };
  };
  const measured = (name) => {
    const [family, statistic, ...rest] = name.split("_");
    return rest.length ? [family, statistic.replace("-in-slide", "").replace("-normalised", ""), ...rest].join("_") : name;
  };
  const plain = (name) => data.features[name]?.[0] ?? data.families[name] ?? name;
  const compared = ["", "Measured after the slide’s stains were normalised.", "Relative to the patches of the same slide.",
    "Measured after the slide’s stains were normalised, and relative to the patches of the same slide."];
  const sentence = (name) => [data.words[measured(name)]?.[0], compared[data.features[name]?.[2] ?? 0]].filter(Boolean).join(" ");
  const fixed = (value, digits, sign) => {
    const text = Math.abs(value).toFixed(digits);
    return (Number(text) === 0 ? "" : value < 0 ? "−" : sign ? "+" : "") + text;
  };
  const words = (value) => Number(value.toPrecision(4)).toString().replace("-", "−");
  // A long code name may break after each part.
  const code = (name) => {
    const element = make("code");
    name.split("_").forEach((part, i) => element.append(...(i ? ["_", make("wbr")] : []), part));
    return element;
  };
  const swatch = (family) => {
    const element = make("i", undefined, { class: "family", "aria-hidden": "true" });
    element.style.background = data.colours[family] ?? "#808080";
    return element;
  };
  // A bar from `start` to `end`, and a line from `low` to `high`, on a scale from `left` to `right`.
  const bar = ([left, right], start, end, colour, low, high) => {
    const at = (value) => (100 * (Math.min(Math.max(value, left), right) - left)) / (right - left || 1);
    const track = make("div", undefined, { class: "track", "aria-hidden": "true" });
    const add = (kind, from, to, minimum) => {
      const part = make("i", undefined, { class: kind });
      part.style.left = `${at(Math.min(from, to)).toFixed(2)}%`;
      part.style.width = `max(${minimum}px, ${(at(Math.max(from, to)) - at(Math.min(from, to))).toFixed(2)}%)`;
      track.append(part);
      return part;
    };
    add("fill", start, end, 1).style.background = colour;
    if (left < 0 && right > 0) add("zero", 0, 0, 1);
    if (low !== null && low !== undefined) add("whisker", low, high, 1);
    return track;
  };
  // Charts of the section have one variant per model: show that of the chosen model, or say whose variant is shown.
  const charts = [...section.querySelectorAll("figure.chart")].filter((figure) => figure.querySelector("label.choice"));
  for (const figure of charts) {
    figure.querySelector("label.choice").classList.add("driven");
    figure.querySelector("figcaption").prepend(make("strong", "", { class: "whose" }));
  }
  const follow = () => {
    for (const figure of charts) {
      const select = figure.querySelector("select");
      const options = [...select.options];
      const index = Math.max(0, options.findIndex((option) => option.text === model().words));
      const found = options[index].text === model().words;
      figure.querySelector(".whose").textContent = found ? `${options[index].text}. `
        : `${options[index].text}; not computed for ${model().words}. `;
      if (select.value === String(index)) continue;
      select.value = String(index);
      select.dispatchEvent(new Event("change"));
    }
  };
  // Charts that were drawn in closed details have no width of their own.
  for (const details of section.querySelectorAll("details")) {
    if (details.querySelector(".plot")) details.addEventListener("toggle", () => dispatchEvent(new Event("resize")));
  }
  const changed = () => {
    document.getElementById("importance-about").textContent = model().about ?? "";
    const [board, explorer] = ["board-note", "explorer-note"].map((id) => document.getElementById(id));
    if (board) board.textContent = model().note;
    // The table repeats the first sentence only.
    if (explorer) explorer.textContent = model().note.split(/(?<=\.) /)[0];
    follow();
    for (const listener of listeners) listener();
  };
  chooser.addEventListener("change", changed);
  const onModel = (listener) => {
    listeners.push(listener);
    listener();
  };
  changed();
  return { data, make, model, partsOf, measured, plain, sentence, fixed, words, code, swatch, bar, onModel };
})();
