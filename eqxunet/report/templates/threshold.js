// The cards of the worst and the best, and the threshold that they follow.

const cards = [];
const inSight = new Set();

function refresh(card) {
  if (data.isBinary) {
    const iou = iouOf(countsAt(level, card.index));
    card.score.value = iou;
    card.score.textContent = `IoU ${iou.toFixed(3)}`;
  }
  card.isStale = !inSight.has(card);
  if (!card.isStale) card.redraw();
}

const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const card = cards.find((card) => card.item === entry.target);
    if (!entry.isIntersecting) {
      inSight.delete(card);
      continue;
    }
    inSight.add(card);
    if (card.isStale) refresh(card);
  }
});

async function add(part, index) {
  const button = element("button", { type: "button", title: names[index] }, names[index]);
  button.addEventListener("click", () => view(index));
  const iou = column("iou")[index];
  const score = element("data", { value: iou }, `IoU ${format(iou, "number")}`);
  const box = element("div");
  const head = element("div", { className: "card-head" }, button, score);
  const item = element("li", { className: "card" }, head, box);
  $(part).append(item);
  const card = { index, item, score, redraw: await fill(box, index), isStale: false };
  cards.push(card);
  observer.observe(item);
}

await Promise.all(["worst", "best"].flatMap((part) => data[part].map((index) => add(part, index))));

function show(id, value) {
  const digits = value.toFixed(6);
  $(id).value = value;
  $(id).replaceChildren(digits.slice(0, 5), element("small", {}, digits.slice(5)));
}

function scoresAt(k) {
  const sum = { tp: 0, fp: 0, fn: 0 };
  let iou = 0;
  let dice = 0;
  for (let index = 0; index < names.length; index++) {
    const counts = countsAt(k, index);
    iou += iouOf(counts);
    dice += diceOf(counts);
    for (const name in sum) sum[name] += counts[name];
  }
  return {
    "mean-iou": iou / names.length,
    "mean-dice": dice / names.length,
    "pooled-iou": iouOf(sum),
    "pooled-dice": diceOf(sum),
  };
}

// The scores at all thresholds, as lines over the axes that the page has for them.
const scores = data.isBinary ? Array.from({ length: 256 }, (_, k) => scoresAt(k)) : [];
const chart = document.querySelector("#by-threshold svg[role]");

function abscissa(k) {
  const [left, , width] = chart.dataset.plot.split(" ").map(Number);
  return left + (width * k) / 256;
}

function drawCurves() {
  const [, above, , height] = chart.dataset.plot.split(" ").map(Number);
  ["mean-iou", "mean-dice"].forEach((name, line) => {
    const points = scores.map((score, k) => `${abscissa(k)},${above + height * (1 - score[name])}`);
    chart.querySelector(`.line-${line}`).setAttribute("points", points.join(" "));
  });
}

function setLevel(k) {
  level = k;
  const text = (k / 256).toFixed(3);
  $("slider").value = k;
  $("slider").setAttribute("aria-valuetext", text);
  $("level").value = text;
  Object.entries(scores[k]).forEach(([id, value]) => show(id, value));
  for (const end of ["x1", "x2"]) chart.querySelector(".mark").setAttribute(end, abscissa(k));
  cards.forEach(refresh);
}

if (data.isBinary) {
  drawCurves();
  $("slider").addEventListener("input", () => setLevel(Number($("slider").value)));
  $("reset").addEventListener("click", () => setLevel(data.start));
  setLevel(data.start);
}
