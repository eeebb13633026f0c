"use strict";
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  function css(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  // Colours of the page, in a figure's layout: all that a light and a dark page need to differ in.
  function themed(layout) {
    const font = getComputedStyle(document.body).fontFamily;
    const narrow = window.innerWidth < 640;
    const found = {
      ...layout,
      autosize: true,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: css("--ink"), family: font, size: narrow ? 11 : 13 },
      margin: { l: 8, r: 16, t: 12, b: 8, pad: 4 },
      hoverlabel: { bgcolor: css("--panel"), bordercolor: css("--line"), font: { color: css("--ink") } },
      legend: { ...layout.legend, orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--accent") },
    };
    for (const key of Object.keys(layout)) {
      if (/^[xy]axis\d*$/.test(key)) {
        found[key] = {
          ...layout[key],
          title: { ...layout[key].title, font: { size: narrow ? 12 : 13, color: css("--soft") } },
          automargin: true,
          gridcolor: css("--grid"),
          linecolor: css("--line"),
          zerolinecolor: css("--line"),
          tickcolor: css("--line"),
        };
      }
    }
    return found;
  }

  const config = {
    displaylogo: false,
    responsive: true,
    plotlyServerURL: "",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };

  function draw() {
    for (const place of document.querySelectorAll("div.plot")) {
      const figure = JSON.parse(document.getElementById(place.dataset.figure).textContent);
      Plotly.react(place, figure.data, themed(figure.layout), config);
    }
  }

  function key(row, column, numeric) {
    const cell = row.cells[column];
    if (numeric) {
      return cell.dataset.sort === undefined ? null : Number(cell.dataset.sort);
    }
    return cell.textContent.trim();
  }

  // Cells without a value come last in either order.
  function sort(table, header, numeric) {
    const column = header.cellIndex;
    const down = header.getAttribute("aria-sort") === "ascending";
    const order = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
    const rows = [...table.tBodies[0].rows].map((row) => [key(row, column, numeric), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) {
        return (a === null) - (b === null);
      }
      const way = numeric ? a - b : order.compare(a, b);
      return down ? -way : way;
    });
    for (const other of header.parentElement.cells) {
      if (other.hasAttribute("aria-sort")) {
        other.setAttribute("aria-sort", "none");
      }
    }
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    table.tBodies[0].append(...rows.map(([, row]) => row));
  }

  function filter(table, text, count) {
    const wanted = text.trim().toLowerCase();
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      row.hidden = wanted !== "" && !row.textContent.toLowerCase().includes(wanted);
      shown += row.hidden ? 0 : 1;
    }
    const all = table.tBodies[0].rows.length;
    count.textContent = shown === all ? count.dataset.all : `${shown} of ${count.dataset.all}`;
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    for (const button of table.querySelectorAll("thead button")) {
      const header = button.closest("th");
      button.addEventListener("click", () => sort(table, header, button.dataset.kind === "number"));
    }
    const input = document.querySelector(`input[data-filter="${table.id}"]`);
    const count = document.querySelector(`[data-count="${table.id}"]`);
    count.dataset.all = count.textContent;
    input.addEventListener("input", () => filter(table, input.value, count));
  }

  dark.addEventListener("change", draw);
  draw();
  document.documentElement.dataset.drawn = "yes";
})();
