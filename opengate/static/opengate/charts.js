// Draws each `canvas[data-chart]` from the JSON block whose id it names (see opengate/charts.py), in the page's colours.
"use strict";

(() => {
  const drawn = new Map();

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const number = (value, unit) =>
    value === null ? "–" : new Intl.NumberFormat(document.documentElement.lang, { maximumFractionDigits: 6 }).format(value) + (unit ? ` ${unit}` : "");

  function draw(canvas) {
    const told = JSON.parse(document.getElementById(canvas.dataset.chart).textContent);
    drawn.get(canvas)?.destroy();
    const quiet = colour("--body-quiet-color");
    const line = colour("--hairline-color");
    const datasets = told.series.map((series, index) => {
      const own = colour(series.is_bad ? "--series-bad" : `--series-${(index % 6) + 1}`);
      return {
        label: series.name, data: series.values, borderColor: own, backgroundColor: told.kind === "bar" ? own : `${own}22`,
        borderWidth: 2, pointRadius: series.values.length > 40 ? 0 : 2, tension: 0.25, maxBarThickness: 28, borderRadius: 3, spanGaps: true,
        fill: told.kind === "line" && told.series.length === 1,
      };
    });
    drawn.set(canvas, new Chart(canvas, {
      type: told.kind,
      data: { labels: told.labels, datasets },
      options: {
        animation: false, responsive: true, maintainAspectRatio: false, interaction: { mode: "index", intersect: false },
        plugins: {
          legend: { display: told.series.length > 1, labels: { color: quiet, boxWidth: 10, boxHeight: 10 } },
          tooltip: { callbacks: { label: (item) => `${item.dataset.label}: ${number(item.raw, told.unit)}` } },
        },
        scales: {
          x: { stacked: told.stacked, grid: { display: false }, ticks: { color: quiet, maxRotation: 0, autoSkipPadding: 12 }, border: { color: line } },
          y: { stacked: told.stacked, beginAtZero: true, title: { display: Boolean(told.unit), text: told.unit, color: quiet }, grid: { color: line }, ticks: { color: quiet, maxTicksLimit: 6, callback: (value) => number(value) }, border: { display: false } },
        },
      },
    }));
  }

  const all = () => document.querySelectorAll("canvas[data-chart]").forEach(draw);
  addEventListener("DOMContentLoaded", () => {
    all();
    new MutationObserver(all).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
  });
})();
