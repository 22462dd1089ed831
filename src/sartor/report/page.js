"use strict";
// Draws the figures in the colours of the reader's scheme, and again when the scheme, the width or the medium changes.
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const figures = read("figures");
  const palettes = read("palettes");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 720px)");
  const coarse = matchMedia("(pointer: coarse)");
  const family = getComputedStyle(document.documentElement).getPropertyValue("--sans").trim();

  const painted = (value, palette) => {
    if (typeof value === "string") return value.startsWith("@") ? palette[value.slice(1)] ?? value : value;
    if (Array.isArray(value)) return value.map((one) => painted(one, palette));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, painted(one, palette)]));
  };

  const draw = (palette) => {
    for (const [id, figure] of Object.entries(figures)) {
      const { data, layout } = painted(figure, palette);
      layout.font.family = family;
      layout.dragmode = coarse.matches ? false : "zoom";
      if (narrow.matches) {
        layout.margin = { ...layout.margin, l: 56, r: 6 };
        layout.legend.font.size = 11;
      }
      Plotly.react(id, data, layout, { displayModeBar: false, responsive: true });
    }
  };

  const redraw = () => draw(dark.matches ? palettes.dark : palettes.light);
  redraw();
  dark.addEventListener("change", redraw);
  narrow.addEventListener("change", redraw);
  addEventListener("beforeprint", () => {
    draw(palettes.light);
    for (const id of Object.keys(figures)) Plotly.Plots.resize(id);
  });
  addEventListener("afterprint", redraw);
})();
