// All images. Only the rows in sight are in the document.

const ROW = 33; // pixels, as in the style
const scroller = $("scroller");
const table = $("table");
const ious = column("iou");
const groups = column("group");
let sorted = { column: data.columns.find((column) => column.name === "iou"), sign: 1 };
let order = []; // indices of the rows that the filter leaves, as sorted
let active = 0; // position in `order`
let drawnFrom = 0; // position of the first row in the document

const heads = data.columns.map((column) => {
  const button = element("button", { type: "button" }, column.label);
  const head = element("th", { scope: "col", className: column.kind === "text" ? "text" : "" }, button);
  button.addEventListener("click", () => {
    sorted = { column, sign: sorted.column === column ? -sorted.sign : 1 };
    arrange();
  });
  return head;
});
$("heads").append(...heads);

function compare(a, b) {
  const [x, y] = [sorted.column.values[a], sorted.column.values[b]];
  if (x === null || y === null) return (x === null) - (y === null) || a - b; // last either way
  const difference = sorted.column.kind === "text" ? String(x).localeCompare(String(y)) : x - y;
  return sorted.sign * difference || a - b;
}

function arrange() {
  const query = $("query").value.trim().toLowerCase();
  const from = $("from").value === "" ? -Infinity : $("from").valueAsNumber;
  const to = $("to").value === "" ? Infinity : $("to").valueAsNumber;
  const isAll = from === -Infinity && to === Infinity;
  order = [...names.keys()].filter((index) => {
    const text = groups ? `${names[index]}\n${groups[index]}` : names[index];
    const iou = ious[index];
    return text.toLowerCase().includes(query) && (isAll || (iou !== null && iou >= from && iou <= to));
  });
  order.sort(compare);
  data.columns.forEach((column, i) => {
    if (column !== sorted.column) heads[i].removeAttribute("aria-sort");
    else heads[i].setAttribute("aria-sort", sorted.sign > 0 ? "ascending" : "descending");
  });
  $("shown").textContent = `${order.length} of ${names.length} images`;
  table.setAttribute("aria-rowcount", order.length + 1);
  active = 0;
  scroller.scrollTop = 0;
  render();
}

function space(rows) {
  const cell = element("td", { colSpan: data.columns.length });
  const row = element("tr", { className: "space" }, cell);
  row.setAttribute("aria-hidden", "true");
  cell.style.height = `${rows * ROW}px`;
  return row;
}

// Ten rows above what is in sight.
const firstRow = () => Math.max(0, Math.min(Math.floor(scroller.scrollTop / ROW), order.length) - 10);

function render() {
  const first = firstRow();
  drawnFrom = first;
  const last = Math.min(order.length, first + Math.ceil(scroller.clientHeight / ROW) + 20);
  const rows = order.slice(first, last).map((index, i) => {
    const cells = data.columns.map((column) =>
      element("td", { className: column.kind === "text" ? "text" : "" }, format(column.values[index], column.kind)),
    );
    const row = element("tr", { id: `row-${index}` }, ...cells);
    row.setAttribute("aria-rowindex", first + i + 2);
    row.setAttribute("aria-selected", first + i === active);
    row.addEventListener("click", () => {
      activate(first + i);
      view(index);
    });
    return row;
  });
  $("body").replaceChildren(space(first), ...rows, space(order.length - last));
  if (order.length) table.setAttribute("aria-activedescendant", `row-${order[active]}`);
  else table.removeAttribute("aria-activedescendant");
}

function activate(position) {
  active = Math.max(0, Math.min(order.length - 1, position));
  const head = $("heads").offsetHeight;
  const top = active * ROW;
  const seen = scroller.clientHeight - head;
  if (top < scroller.scrollTop) scroller.scrollTop = top;
  if (top + ROW > scroller.scrollTop + seen) scroller.scrollTop = top + ROW - seen;
  render();
}

table.addEventListener("keydown", (event) => {
  if (event.target !== table || !order.length) return;
  const page = Math.floor(scroller.clientHeight / ROW) - 1;
  const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -order.length, End: order.length };
  if (event.key in moves) activate(active + moves[event.key]);
  else if (event.key === "Enter" || event.key === " ") view(order[active]);
  else return;
  event.preventDefault();
});

scroller.addEventListener("scroll", () => Math.abs(firstRow() - drawnFrom) >= 5 && render());
for (const id of ["query", "from", "to"]) $(id).addEventListener("input", arrange);
$("clear").addEventListener("click", () => {
  for (const id of ["query", "from", "to"]) $(id).value = "";
  arrange();
});
neighbours = () => (order.includes(viewed) ? order : [...data.worst, ...data.best]);
arrange();
