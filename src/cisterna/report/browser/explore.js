// The table and the figure of every checkpoint on the page of all results (templates/explore.html.j2).
// Both show the rows that the filters leave. A point leads to its row, and a row to its numbers and the path of its checkpoint.
// A user's text, such as the name of a task, becomes text nodes and never HTML.
"use strict";
(() => {
  const { columns, rows } = JSON.parse(document.getElementById("checkpoints").textContent);
  const section = document.getElementById("explore");
  const find = (query) => [...section.querySelectorAll(query)];

  const title = ({ metric, split }) => `${metric} ${split}`;
  const interval = ([, low, high, n]) => `${low === null ? "" : `${low.toFixed(3)} to ${high.toFixed(3)}, `}n = ${n}`;
  const full = (number) => `${number[0].toFixed(3)}, ${interval(number)}`;

  // --- The table ---

  const missingLast = (sign) => (a, b) => (a === null) - (b === null) || sign * (a - b);
  DataTable.type("number or null", "order", { asc: missingLast(1), desc: missingLast(-1) });

  const numberColumn = (place) => ({
    type: "number or null",
    data: (row) => row.numbers[place]?.[0] ?? null,
    render: (value, purpose) => (purpose !== "display" ? value : value === null ? "–" : value.toFixed(3)),
    createdCell: (cell, value, row) => value !== null && (cell.title = interval(row.numbers[place])),
    orderSequence: ["desc", "asc", ""],
    searchable: false,
  });
  const textColumn = (column) => ({
    data: column,
    className: "text",
    render: DataTable.render.text(),
    createdCell: (cell, name, row) => column === "name" && cell.replaceChildren(button(name, row.path)),
    visible: column !== "path", // for the search only
  });
  const heads = find("thead th");

  section.hidden = false;
  const table = new DataTable(find("table")[0], {
    data: rows,
    columns: heads.map(({ dataset }) => ("number" in dataset ? numberColumn(+dataset.number) : textColumn(dataset.column))),
    createdRow: (line, row) => line.classList.add(row.stage.toLowerCase()),
    autoWidth: false,
    order: [],
    pageLength: 25,
    lengthMenu: [25, 100, 500],
    language: {
      lengthMenu: "_MENU_ rows on a page",
      search: "name or path ",
      info: "rows _START_ to _END_ of _TOTAL_",
      infoEmpty: "no rows",
      infoFiltered: "(_MAX_ without filters)",
      zeroRecords: "no checkpoint has all of this",
    },
  });

  function element(tag, ...children) {
    const made = document.createElement(tag);
    made.append(...children);
    return made;
  }

  function button(name, hint) {
    return Object.assign(element("button", name), { title: hint });
  }

  function details(row) {
    const lines = columns.flatMap((column, place) => {
      const number = row.numbers[place];
      return number ? [element("li", `${title(column)}: ${full(number)}`)] : [];
    });
    const seed = row.seed === "none" ? [] : [`seed ${row.seed}`];
    const words = [row.task, row.name, ...seed, ""].join(" · ");
    return element("div", element("p", words, element("code", row.path)), element("ul", ...lines));
  }

  let selected = null; // the index of a row

  /** Go to the page of the table with this row, and show its details below it. */
  function select(index) {
    if (selected !== null) table.row(selected).child.remove();
    selected = index;
    const place = table.rows({ order: "applied", search: "applied" }).indexes().toArray().indexOf(index);
    table.page(Math.floor(place / table.page.len())).draw("page");
    table.row(index).child(details(rows[index]), "details").show();
    table.row(index).node().scrollIntoView({ block: "center" });
    chart.update();
  }

  table.on("click", "td button", (event) => select(table.row(event.target.closest("tr")).index()));

  // --- The figure ---

  const MARKS = {
    baseline: ["crossRot", "#767676"],
    base: ["rect", "#6b6b6b"],
    CPT: ["triangle", "#E69F00"],
    SFT: ["circle", "#009E73"],
    RL: ["rectRot", "#AA4499"],
  }; // in the colours of the other figures
  const axes = Object.fromEntries(find("[data-axis]").map((choice) => [choice.dataset.axis, choice]));
  axes.y.value = "1"; // OOD of the first metric, against ID

  /** The value of a row on an axis, which is the place of a column or the name of another value. */
  const valueOn = (axis, row) => (axis in columns ? (row.numbers[axis]?.[0] ?? null) : row[axis]);
  const describe = ({ value, selectedOptions: [{ text }] }, row) =>
    `${text}: ${value in columns ? full(row.numbers[value]) : row[value]}`;

  const chart = new Chart(find("canvas")[0], {
    type: "scatter",
    data: { datasets: [] },
    options: {
      animation: false,
      maintainAspectRatio: false,
      pointRadius: ({ raw }) => (raw.index === selected ? 9 : 4),
      onClick: (event, points) => {
        // Of several at one place the first, and with each further click the next.
        const indexes = points.map(({ element }) => element.$context.raw.index);
        if (indexes.length) select(indexes[(indexes.indexOf(selected) + 1) % indexes.length]);
      },
      onHover: (event, points) => (event.native.target.style.cursor = points.length ? "pointer" : ""),
      plugins: {
        legend: { onClick: null, labels: { usePointStyle: true, boxHeight: 7 } },
        tooltip: {
          callbacks: {
            title: (points) => points.map(({ raw }) => `${rows[raw.index].task} · ${rows[raw.index].name}`),
            label: ({ raw }) => [axes.y, axes.x].map((axis) => describe(axis, rows[raw.index])),
            footer: (points) => points.map(({ raw }) => rows[raw.index].path),
          },
        },
      },
    },
  });

  function drawFigure() {
    const points = shown
      .map((index) => ({ index, x: valueOn(axes.x.value, rows[index]), y: valueOn(axes.y.value, rows[index]) }))
      .filter(({ x, y }) => x !== null && y !== null);
    const datasets = Object.entries(MARKS).map(([stage, [pointStyle, colour]]) => ({
      label: stage,
      data: points.filter(({ index }) => rows[index].stage === stage),
      pointStyle,
      borderColor: colour,
      backgroundColor: `${colour}99`,
    }));
    chart.data.datasets = [...datasets.filter(({ data }) => data.length), ...diagonal(points)];
    for (const axis of ["x", "y"]) {
      chart.options.scales[axis].title = { display: true, text: axes[axis].selectedOptions[0].text };
    }
    chart.update();
  }

  /** The line on which ID and OOD are equal, where the figure has the two of one metric. */
  function diagonal(points) {
    const [x, y] = [columns[axes.x.value], columns[axes.y.value]];
    if (x?.metric !== y?.metric || x?.split === y?.split || !points.length) return [];
    const values = points.flatMap((point) => [point.x, point.y]);
    const data = [Math.min(...values), Math.max(...values)].map((end) => ({ x: end, y: end }));
    const hidden = { pointRadius: 0, pointHoverRadius: 0, pointHitRadius: 0 };
    return [{ label: "ID = OOD", type: "line", pointStyle: "line", borderColor: "#bbb", borderWidth: 1, data, ...hidden }];
  }

  // --- Filters ---

  let shown = []; // the indexes of the rows that the filters left

  /** Hide the columns without a number in the rows that the filters leave, and draw these rows. */
  function refresh() {
    const indexes = table.rows({ order: "index", search: "applied" }).indexes().toArray();
    if (String(indexes) === String(shown)) return; // sorted, or another page
    shown = indexes;
    heads.forEach(({ dataset: { number } }, place) => {
      if (number) table.column(place).visible(!indexes.length || indexes.some((index) => rows[index].numbers[number]), false);
    });
    drawFigure();
  }

  const filters = find("[data-filter]");
  table.search.fixed("filters", (_, row) =>
    filters.every(({ value, dataset }) => value === "" || String(row[dataset.filter]) === value),
  );
  table.on("draw", refresh);
  for (const filter of filters) filter.addEventListener("change", () => table.draw());
  for (const axis of Object.values(axes)) axis.addEventListener("change", drawFigure);
  table.draw(); // a browser may keep what was chosen before the page was loaded again
})();
