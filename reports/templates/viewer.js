"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const [view, stage, picture, values] = ["view", "stage", "picture", "values"].map(find);
  const [columns, rows] = data.grid;
  const context = view.getContext("2d");
  const probability = new Float32Array(columns * rows).fill(NaN);
  const heat = Object.assign(document.createElement("canvas"), { width: columns, height: rows });
  // Level-0 position of the upper left corner. The scale is in screen pixels per level-0 pixel.
  const viewport = { x: 0, y: 0, scale: 1, minScale: 1, maxScale: 1 };
  const state = { opacity: data.opacity, threshold: data.threshold, outlines: null, cross: false };

  const unpackProbabilities = () => {
    const sheet = Object.assign(document.createElement("canvas"), { width: columns, height: rows });
    const reader = sheet.getContext("2d", { willReadFrequently: true });
    reader.drawImage(values, 0, 0);
    const bytes = reader.getImageData(0, 0, columns, rows).data;
    for (let i = 0; i < probability.length; i += 1) {
      if (bytes[4 * i + 2] === 255) probability[i] = (256 * bytes[4 * i] + bytes[4 * i + 1]) / 65535;
    }
  };

  const [below, at, above] = data.colours;
  const colour = (value) => {
    const limit = state.threshold;
    const [from, to, share] = value > limit
      ? [at, above, (value - limit) / Math.max(1 - limit, 1e-9)]
      : [below, at, value / Math.max(limit, 1e-9)];
    return from.map((start, channel) => Math.round(start + Math.min(Math.max(share, 0), 1) * (to[channel] - start)));
  };

  const paintHeat = () => {
    const painter = heat.getContext("2d");
    const image = painter.createImageData(columns, rows);
    for (let i = 0; i < probability.length; i += 1) {
      if (!Number.isNaN(probability[i])) image.data.set([...colour(probability[i]), 255], 4 * i);
    }
    painter.putImageData(image, 0, 0);
    const ramp = find("ramp").getContext("2d");
    const strip = ramp.createImageData(256, 1);
    for (let i = 0; i < 256; i += 1) strip.data.set([...colour(i / 255), 255], 4 * i);
    ramp.putImageData(strip, 0, 0);
  };

  const isPositive = (column, row) =>
    column >= 0 && row >= 0 && column < columns && row < rows && probability[row * columns + column] >= state.threshold;

  // Edges between cells above and below the threshold, in cells. Adjacent edges on a line become one stroke.
  const updateOutlines = () => {
    const path = new Path2D();
    const trace = (lines, length, differs, corner) => {
      for (let line = 0; line <= lines; line += 1) {
        let start = -1;
        for (let step = 0; step <= length; step += 1) {
          const edge = step < length && differs(line, step);
          if (edge && start < 0) start = step;
          if (!edge && start >= 0) {
            path.moveTo(...corner(line, start));
            path.lineTo(...corner(line, step));
            start = -1;
          }
        }
      }
    };
    trace(rows, columns, (row, column) => isPositive(column, row - 1) !== isPositive(column, row), (row, column) => [column, row]);
    trace(columns, rows, (column, row) => isPositive(column - 1, row) !== isPositive(column, row), (column, row) => [column, row]);
    state.outlines = path;
  };

  // Sides of the cells in mm. Cells at the right and lower edge end with the slide.
  const sides = (axis) => Array.from({ length: data.grid[axis] }, (_, index) =>
    ((Math.min((index + 1) * data.stride, data.plane[axis]) - index * data.stride) * data.spacing[axis]) / 1000);
  const [widths, heights] = [sides(0), sides(1)];

  const showThreshold = () => {
    let known = 0;
    let positive = 0;
    for (let row = 0; row < rows; row += 1) {
      for (let column = 0; column < columns; column += 1) {
        const value = probability[row * columns + column];
        if (Number.isNaN(value)) continue;
        const area = widths[column] * heights[row];
        known += area;
        if (value >= state.threshold) positive += area;
      }
    }
    find("threshold-value").textContent = state.threshold.toFixed(3);
    find("share").textContent = known
      ? `${positive.toFixed(3)} of ${known.toFixed(3)} mm² (${((100 * positive) / known).toFixed(1)} %) reach it.`
      : "Nothing was predicted.";
    const mark = find("ramp-threshold");
    mark.textContent = state.threshold > 0.06 && state.threshold < 0.94 ? state.threshold.toFixed(2) : "";
    mark.style.left = `${100 * state.threshold}%`;
  };

  const showBar = () => {
    const room = Math.min(160, stage.clientWidth / 3);
    const longest = (room / viewport.scale) * data.um[0];
    const power = 10 ** Math.floor(Math.log10(longest));
    const length = [5, 2, 1].map((digit) => digit * power).find((each) => each <= longest);
    const words = length >= 1000 ? `${length / 1000} mm` : `${Number(length.toPrecision(1))} µm`;
    const bar = find("bar");
    bar.querySelector("i").style.width = `${(length / data.um[0]) * viewport.scale}px`;
    bar.querySelector("span").textContent = words;
    bar.ariaLabel = `Scale bar: ${words}`;
    bar.dataset.um = length;
  };

  const draw = () => {
    const ratio = devicePixelRatio || 1;
    const [width, height] = [Math.round(stage.clientWidth * ratio), Math.round(stage.clientHeight * ratio)];
    if (view.width !== width || view.height !== height) Object.assign(view, { width, height });
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    const zoom = ratio * viewport.scale;
    context.setTransform(zoom, 0, 0, zoom, -viewport.x * zoom, -viewport.y * zoom);
    context.save();
    context.beginPath();
    context.rect(0, 0, ...data.slide);
    context.clip();
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, 0, 0, ...data.picture);
    context.imageSmoothingEnabled = false;
    context.globalAlpha = state.opacity;
    context.drawImage(heat, 0, 0, columns * data.cell[0], rows * data.cell[1]);
    context.restore();
    if (find("outlines").checked && state.outlines) {
      const lines = new Path2D();
      lines.addPath(state.outlines, new DOMMatrix([zoom * data.cell[0], 0, 0, zoom * data.cell[1], -viewport.x * zoom, -viewport.y * zoom]));
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.lineCap = "square";
      for (const [line, breadth] of [["#ffffff", 3.5], ["#7a2e00", 1.5]]) {
        context.strokeStyle = line;
        context.lineWidth = breadth * ratio;
        context.stroke(lines);
      }
    }
    if (state.cross) {
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.strokeStyle = "#000000";
      context.lineWidth = 1;
      const [x, y] = [stage.clientWidth / 2, stage.clientHeight / 2];
      context.strokeRect(x - 6, y - 6, 12, 12);
    }
    showBar();
    // For tests.
    view.dataset.place = JSON.stringify([viewport.x, viewport.y, viewport.scale]);
  };
  let scheduled = false;
  const redraw = () => {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(() => {
      scheduled = false;
      draw();
    });
  };

  // The slide always covers at least a fifth of the window.
  const clampViewport = () => {
    viewport.scale = Math.min(Math.max(viewport.scale, viewport.minScale), viewport.maxScale);
    for (const [axis, side, room] of [["x", data.slide[0], stage.clientWidth], ["y", data.slide[1], stage.clientHeight]]) {
      const visible = room / viewport.scale;
      viewport[axis] = Math.min(Math.max(viewport[axis], -0.8 * visible), side - 0.2 * visible);
    }
  };
  const fit = (left, top, right, bottom) => {
    const [width, height] = [stage.clientWidth, stage.clientHeight];
    viewport.scale = Math.min(width / (right - left), height / (bottom - top));
    viewport.scale = Math.min(Math.max(viewport.scale, viewport.minScale), viewport.maxScale);
    viewport.x = (left + right) / 2 - width / viewport.scale / 2;
    viewport.y = (top + bottom) / 2 - height / viewport.scale / 2;
    clampViewport();
    redraw();
  };
  const fitAll = () => {
    const [width, height] = data.slide;
    fit(-0.02 * width, -0.02 * height, 1.02 * width, 1.02 * height);
  };
  const setZoomLimits = () => {
    viewport.minScale = 0.5 * Math.min(stage.clientWidth / data.slide[0], stage.clientHeight / data.slide[1]);
    viewport.maxScale = Math.max((8 * picture.naturalWidth) / data.picture[0], 4 * viewport.minScale);
  };
  const zoomAt = (x, y, factor) => {
    const before = viewport.scale;
    viewport.scale = Math.min(Math.max(before * factor, viewport.minScale), viewport.maxScale);
    viewport.x += x / before - x / viewport.scale;
    viewport.y += y / before - y / viewport.scale;
    clampViewport();
    redraw();
  };
  const zoomMiddle = (factor) => zoomAt(stage.clientWidth / 2, stage.clientHeight / 2, factor);

  const showProbability = (x, y) => {
    const [left, top] = [viewport.x + x / viewport.scale, viewport.y + y / viewport.scale];
    const [column, row] = [Math.floor(left / data.cell[0]), Math.floor(top / data.cell[1])];
    const inside = left >= 0 && top >= 0 && left < data.slide[0] && top < data.slide[1];
    const value = inside ? probability[row * columns + column] : NaN;
    const position = `x ${Math.floor(left)}, y ${Math.floor(top)} px`;
    find("readout").textContent = !inside ? "outside the slide"
      : Number.isNaN(value) ? `no prediction · ${position}` : `probability ${value.toFixed(3)} · ${position}`;
  };

  const pointers = new Map();
  const local = (event) => {
    const box = view.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const pinch = () => {
    const [a, b] = [...pointers.values()];
    return { x: (a[0] + b[0]) / 2, y: (a[1] + b[1]) / 2, distance: Math.hypot(a[0] - b[0], a[1] - b[1]) };
  };
  view.addEventListener("pointerdown", (event) => {
    view.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, local(event));
    view.classList.add("held");
    state.cross = false;
    showProbability(...local(event));
  });
  view.addEventListener("pointermove", (event) => {
    const now = local(event);
    const last = pointers.get(event.pointerId);
    if (last && pointers.size === 1) {
      viewport.x -= (now[0] - last[0]) / viewport.scale;
      viewport.y -= (now[1] - last[1]) / viewport.scale;
      pointers.set(event.pointerId, now);
      clampViewport();
      redraw();
    } else if (last && pointers.size === 2) {
      const before = pinch();
      pointers.set(event.pointerId, now);
      const after = pinch();
      viewport.x -= (after.x - before.x) / viewport.scale;
      viewport.y -= (after.y - before.y) / viewport.scale;
      zoomAt(after.x, after.y, after.distance / Math.max(before.distance, 1));
    }
    showProbability(...now);
  });
  for (const kind of ["pointerup", "pointercancel"]) {
    view.addEventListener(kind, (event) => {
      pointers.delete(event.pointerId);
      if (!pointers.size) view.classList.remove("held");
    });
  }
  view.addEventListener("wheel", (event) => {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : 1;
    zoomAt(...local(event), Math.exp(-0.0018 * lines * Math.max(Math.min(event.deltaY, 300), -300)));
    showProbability(...local(event));
  }, { passive: false });
  view.addEventListener("keydown", (event) => {
    const step = Math.min(stage.clientWidth, stage.clientHeight) / 8 / viewport.scale;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in moves) {
      viewport.x += moves[event.key][0];
      viewport.y += moves[event.key][1];
      clampViewport();
    } else if (event.key === "+" || event.key === "=") zoomMiddle(1.5);
    else if (event.key === "-") zoomMiddle(1 / 1.5);
    else if (event.key === "0") fitAll();
    else return;
    event.preventDefault();
    state.cross = true;
    redraw();
    showProbability(stage.clientWidth / 2, stage.clientHeight / 2);
  });

  find("in").addEventListener("click", () => zoomMiddle(1.5));
  find("out").addEventListener("click", () => zoomMiddle(1 / 1.5));
  find("fit").addEventListener("click", fitAll);
  find("opacity").addEventListener("input", (event) => {
    state.opacity = Number(event.target.value) / 100;
    redraw();
  });
  const setThreshold = (value) => {
    state.threshold = value;
    paintHeat();
    updateOutlines();
    showThreshold();
    redraw();
  };
  find("threshold").addEventListener("input", (event) => setThreshold(Number(event.target.value)));
  find("reset").addEventListener("click", () => {
    find("threshold").value = data.threshold;
    setThreshold(data.threshold);
  });
  find("outlines").addEventListener("change", redraw);
  for (const button of document.querySelectorAll(".regions button")) {
    button.addEventListener("click", () => {
      for (const other of document.querySelectorAll(".regions button")) other.removeAttribute("aria-current");
      button.ariaCurrent = "true";
      const [left, top, right, bottom] = button.dataset.box.split(" ").map(Number);
      // Show small regions with at least ten cells around them.
      const [across, down] = [Math.max(0.3 * (right - left), 10 * data.cell[0]), Math.max(0.3 * (bottom - top), 10 * data.cell[1])];
      fit(left - across, top - down, right + across, bottom + down);
      stage.scrollIntoView({ block: "nearest" });
    });
  }

  Promise.all([picture.decode(), values.decode()]).then(() => {
    unpackProbabilities();
    find("opacity").value = 100 * data.opacity;
    find("threshold").value = data.threshold;
    setZoomLimits();
    setThreshold(data.threshold);
    fitAll();
    let [width, height] = [stage.clientWidth, stage.clientHeight];
    new ResizeObserver(() => {
      // Keep the middle of the view in the middle.
      viewport.x += (width - stage.clientWidth) / 2 / viewport.scale;
      viewport.y += (height - stage.clientHeight) / 2 / viewport.scale;
      [width, height] = [stage.clientWidth, stage.clientHeight];
      setZoomLimits();
      clampViewport();
      redraw();
    }).observe(stage);
    view.dataset.ready = "yes";
  });
})();
